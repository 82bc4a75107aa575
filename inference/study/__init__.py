"""
The study: every way to train a router on the same grid of settings.

A run (``settings``) names an arm (``arms``), which makes a learner (``learners``) of the task's problem (``problems``);
``runner`` trains what the ``cache`` does not have, and ``statistics``, ``robustness_plots`` and ``curve_plots`` read
the records.
"""
