"""
The study of routing: does a task depend on routing at all, and where it does, what trains a router best?

A ``Task`` (``tasks``) goes through ``stages``: a gate on seeds of its own (``gate``), equal tuning of every arm on
further seeds (``tuning``), and only then the seeds that are reported, at equal numbers of steps and at equal compute.
``protocol`` conducts them with the runs, cache and processes of :mod:`inference.study`; ``rows`` makes one table of
all, which ``schema`` checks, ``report`` describes and :mod:`inference.claims` reads.
"""
