"""
Every estimator's gradients against exact ones.

``problem`` makes small mixtures whose gradients are known, ``estimators`` and ``alternatives`` what is compared,
``comparison`` draws and counts; ``expected_gradients`` needs no draws.
"""
