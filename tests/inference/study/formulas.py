"""Where every arm of the study is held to its own formula: by enumeration, by a loop, or for draws by their errors."""

_GRADIENTS = "tests/inference/gradients/test_gradients.py::"
_UNBIASED = f"{_GRADIENTS}test_unbiased_estimators_pass_and_their_biased_twins_fail"
_EXPECTED = "tests/inference/gradients/test_expected_gradients.py::test_enumeration_equals_the_mean_over_draws"
_BALANCED = f"{_GRADIENTS}test_the_enumerated_balanced_objective_is_the_librarys"
_ESTIMATORS = "tests/estimators/test_gradients.py::test_unbiased"
_SETS = "tests/inference/study/test_two_experts.py::test_the_mean_over_all_draws_is_the_objective_and_its_gradient"
_BOUND = "tests/estimators/test_mixture_bound.py::test_value_and_gradient_against_enumeration"
_ROUNDED = "tests/inference/study/test_rounding_bounds.py::test_value_and_gradient_are_those_of_all_sets"
_MAP = "tests/inference/study/test_fixed_experts.py::test_the_loss_is_that_of_the_experts_of_the_map"
_BOTH = "tests/inference/study/test_arms.py::test_of_two_experts_both_give_the_likelihood_and_its_gradient"
_RULES = "tests/rules/test_"

#: by name of the arm
FORMULAS: dict[str, tuple[str, ...]] = {
    # of the router objective
    "exact-gradient": (f"{_GRADIENTS}test_exact_gradients_are_finite_differences",),
    "rl-r": (_ESTIMATORS,),
    "independent-leave-one-out": (_ESTIMATORS,),
    "independent-pairs": ("tests/estimators/test_pairs.py::test_expectation_by_enumeration",),
    "unordered-set": (_SETS,),
    "sum-and-sample": (_SETS,),
    "independent": (_UNBIASED,),
    "skip": (_UNBIASED,),
    "gumbel-matching": (_UNBIASED,),
    "dependent-rounding": (_UNBIASED,),
    "skip-unweighted": (_UNBIASED,),
    "gumbel-matching-unweighted": (_UNBIASED,),
    "dependent-rounding-unweighted": (_UNBIASED,),
    # of the balanced one
    "skip-balanced": (_UNBIASED, _BALANCED),
    "gumbel-matching-balanced": (_UNBIASED, _BALANCED),
    # of the likelihood and its bounds
    "exact-marginal": (_BOTH, "tests/test_mixture.py::test_exact_quantities_agree_with_the_model"),
    "em": (_BOTH, "tests/inference/study/test_arms.py::test_em_holds_its_responsibilities"),
    "iwae": (_SETS, "tests/inference/study/test_arms.py::test_the_importance_weighted_bound_needs_its_score"),
    "independent-mixture-bound": (_BOUND,),
    "skip-mixture-bound": (_BOUND,),
    "dependent-rounding-mixture-bound": (_ROUNDED,),
    "unlimited-rounding-mixture-bound": (_ROUNDED,),
    "dependent-rounding-guided-bound": (
        "tests/estimators/test_mixture_programs.py::test_a_guide_proposes_and_learns_by_wake_phi",
    ),
    # rules
    "sampled-gate": (_EXPECTED,),
    "sparsemixer-v1": (_EXPECTED, f"{_RULES}sparse_mixer.py::test_exactness_where_the_argmax_is_not_drawn"),
    "sparsemixer-v2": (_EXPECTED, f"{_RULES}sparse_mixer.py::test_exactness_where_the_argmax_is_not_drawn"),
    "switch": (_EXPECTED, f"{_RULES}top_one.py::test_switch_gradient_is_that_of_its_deterministic_model"),
    "gumbel-softmax": (f"{_RULES}straight_through.py::test_gumbel_softmax_equals_a_loop_given_its_noise",),
    "top-2-gates": (f"{_RULES}top_gates.py::test_equals_loop",),
    "gshard": (f"{_RULES}gshard.py::test_the_expected_gradient_over_all_draws_is_that_of_its_formula",),
    "gated-sets": (f"{_RULES}gated_sets.py::test_the_expected_gradient_over_all_sets_is_that_of_its_formula",),
    "quantile-balancing": (
        f"{_RULES}quantile_balancing.py::test_experts_gates_and_gradient_are_those_of_the_best_choice",
    ),
    "base": (
        f"{_RULES}base_layer.py::test_equals_loop",
        f"{_RULES}base_layer.py::test_matching_is_that_of_exact_transport",
    ),
    "s-base": (f"{_RULES}sinkhorn.py::test_equals_loop", f"{_RULES}sinkhorn.py::test_plan_is_that_of_another_sinkhorn"),
    "expert-choice": (f"{_RULES}expert_choice.py::test_equals_loop",),
    "sigma-moe": (f"{_RULES}sigma_moe.py::test_equals_loop",),
    "loss-free-bias": (f"{_RULES}loss_free_bias.py::test_equals_a_loop",),
    "sparse-transport": (f"{_RULES}sparsity_constrained.py::test_equals_loop",),
    "densemixer": (f"{_RULES}straight_through.py::test_dense_mixer_equals_a_loop",),
    "dense-mixture": (f"{_RULES}straight_through.py::test_dense_mixture_equals_a_loop",),
    "smear": (f"{_RULES}smear.py::test_equals_loop",),
    "soft-moe": (f"{_RULES}soft_moe.py::test_equals_loop",),
    # whose routing is not learnt
    "hash": (f"{_RULES}hash_routing.py::test_equals_a_loop", f"{_RULES}hash_routing.py::test_map_is_splitmix64"),
    "random": (
        f"{_RULES}random_routing.py::test_the_mean_over_all_draws_is_the_uniform_objective_and_its_gradient",
        f"{_RULES}random_routing.py::test_the_draws_are_uniform_whatever_the_router_says",
    ),
    "oracle": (_MAP,),
    "frozen-router": (_MAP,),
    "one-expert": (_MAP,),
    "one-wide-expert": (_MAP,),
}
