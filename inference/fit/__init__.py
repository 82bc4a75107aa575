"""
A fit: train a task's model so that nothing is lost, and judge it on data it has not seen.

``tasks`` says what can be fitted, ``objective`` how its gradient is estimated, ``run`` takes the steps, ``keeper``
writes down what happens (``run_folder``: where), and ``checkpoint`` lets a fit go on bit for bit.
"""
