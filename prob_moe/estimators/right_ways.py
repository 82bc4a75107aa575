"""What an estimator that cannot train an assignment site recommends instead."""

#: the objectives that a model with assignment sites can be trained on, and what trains them
RIGHT_WAYS = (
    "TraceRouting_ELBO for the router objective, TraceBalanced_ELBO for the balanced one, or TraceMixture_ELBO for the "
    "mixture bound with num_selected experts per datapoint"
)
