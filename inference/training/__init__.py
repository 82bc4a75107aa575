"""
The training loop, for every command that trains.

``objective`` says how the gradient is estimated, ``batches`` gives the data, ``run`` takes the steps of a fit,
``keeper`` writes down what happens, and ``trainer`` is the loop itself.
"""
