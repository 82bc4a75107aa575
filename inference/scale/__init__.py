"""
What a step of experts on several processes costs: counted, measured, and by a model.

``workload`` is the step, ``traffic`` counts what processes send, ``measure`` times a step, ``costs`` says what it
should take, and on what machine. :mod:`prob_moe.parallel` is what is looked at.
"""
