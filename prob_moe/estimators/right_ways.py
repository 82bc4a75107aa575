"""What an estimator that cannot train an assignment site recommends instead."""

#: the two objectives that a model with assignment sites can be trained on, and what trains them
RIGHT_WAYS = (
    "TraceRouting_ELBO for the router objective, or an ELBO of Pyro's on balanced_objective(model) for the balanced one"
)
