"""Every clause of the contract can fail, and says so with numbers."""

import pytest
import torch

from prob_moe.distributions import CapacitySkip, IndependentRouting
from prob_moe.testing import CLAUSES, ContractError, check_assignment_distribution
from tests.testing import broken

BROKEN = [
    (broken.ForgetsTheSample, "shapes", r"importance_weights with sample_shape \(1,\) .* instead of \(1, 6\)"),
    (broken.SqueezesPlatesOfOne, "shapes", r"a site in a plate of size 1 has shape \(1, 6\) instead of \(1, 1, 6\)"),
    (broken.DrawsInt32, "values are long", "sample has dtype torch.int32"),
    (broken.NamesAnExpertTooMany, "draws lie in the support", r"\d+ of 1000 draws are outside .* the first is \["),
    (broken.HidesDrops, "draws lie in the support", "draws are outside the support .*nobody dropped"),
    (broken.OverflowsCapacity, "capacity holds", "gives [3-6] datapoints to one expert"),
    (broken.MiscountsLoads, "capacity holds", "loads miscounts a draw"),
    (broken.EnumeratesTwice, "the enumeration is the support", "only 144 of the 145 values enumerated are unique"),
    (broken.EnumeratesTooLittle, "the enumeration is the support", r"draws show \d+ values that the 72 enumerated"),
    (broken.EnumeratesWithoutBatch, "the enumeration is the support", r"shape \(144, 1, 4\) instead of \(144, 2, 4\)"),
    (broken.HasNoEnumerationAfterAll, "the enumeration is the support", "has_enumerate_support is True, yet: too many"),
    (broken.ServesAtRandom, "the mode is in the support and deterministic", r"the mode is \[\[.*\]\], then \[\["),
    (broken.ServesNobody, "the mode is in the support and deterministic", "is outside the support"),
    (broken.ChoosesForbiddenExperts, "forbidden experts are never chosen", r"\d+ datapoints of the draws choose"),
    (
        broken.WeighsForbiddenExpertsInfinite,
        "forbidden experts are never chosen",
        "6000 of 6000 weights are not finite",
    ),
    (broken.RoutesPadding, "padding takes no part", r"\d+ padding entries of the draws are not coded -1"),
    (
        broken.PaddingTakesCapacity,
        "padding takes no part",
        r"datapoint \d goes to expert \d with frequency .* without padding.* standard errors off",
    ),
    (
        broken.ScoresPadding,
        "what stands in padding changes nothing",
        "router_log_prob changes with -?inf in place",
    ),
    (
        broken.DifferentiatesPadding,
        "what stands in padding changes nothing",
        "gradient of router_log_prob changes with .* in place of 0",
    ),
    (broken.ScoresDropsAsZero, "router_log_prob is the router's", r"differs by [\d.]+ nats from log_softmax"),
    (broken.DetachesTheRouter, "router_log_prob is the router's", "carries no gradient"),
    (broken.ForgetsWhoWasDropped, "log_prob is normalised", r"probabilities of all values sum to [12]\.\d+"),
    (broken.TakesAnotherLaw, "log_prob equals frequencies", r"is drawn with frequency .* log_prob says .* errors off"),
    (
        broken.DetachesTheNormaliser,
        "log_prob is differentiable",
        "directional derivative of .* finite differences give",
    ),
    (broken.DetachesLogProb, "log_prob is differentiable", "log_prob carries no gradient"),
    (
        broken.HasNoCurvature,
        "log_prob has second derivatives or says so",
        "carries no graph: second derivatives are 0 without a word, where finite differences give",
    ),
    (broken.HoldsTheRouterFixed, "log_prob has second derivatives or says so", "a second derivative .* is .* finite"),
    (broken.ScoresWithoutNormaliser, "score_function scores the law", "enumeration gives .* standard errors off"),
    (
        broken.LeavesOutWeights,
        "weights are unbiased",
        r"E\[w 1\{z_\d = \d\}\] is 0\.\d+ ± 0\.\d+, the router has 0\.\d+",
    ),
    (
        broken.WeighsPairsOfChoices,
        "weights of pairs are unbiased",
        r"experts \d and \d of datapoint \d have the mean .* p_a p_b is .* standard errors off",
    ),
    (
        broken.KeepsForCertain,
        "keep probabilities count who is kept",
        r"datapoint \d is kept 0\.\d+ ± 0\.\d+ times as often as keep_probability says",
    ),
    (broken.WeighsDropped, "weights are 0 where dropped", "a dropped datapoint has a weight of 1"),
    (broken.WeighsNegatively, "weights are 0 where dropped", "a weight is -2"),
    (broken.DifferentiatesWeights, "weights carry no gradient", "require a gradient"),
    (broken.ExpandsOneDraw, "expanded draws are independent", "the 20000 draws .* are all the same"),
    (broken.ExpandsToTheSameShape, "expanded draws are independent", r"expand\(\[2, 3\]\) has batch_shape \(2, 1\)"),
    (broken.WeighsInDouble, "dtype and device are kept", "importance_weights has dtype torch.float64"),
    (broken.LeavesTheDevice, "dtype and device are kept", "with logits on cpu, mode is on device meta"),
    (
        broken.SamplesOutsideTorch,
        "provenance is kept",
        "that depend on a site 'earlier' give a draw that knows frozenset",
    ),
    (broken.LeavesTorch, "provenance is kept", r"log_prob of site 'z' has lost its provenance"),
    (broken.KnowsDrawsByIdentity, "provenance is kept", "raised ValueError: not my draw"),
    (broken.KnowsDrawsByIdentity, "copies go on", "copy.deepcopy: ValueError: not my draw"),
    (broken.CannotBePickled, "copies go on", "pickle: .*lambda"),
    (broken.HasItsOwnRandomness, "the same seed gives the same draw", r"\d+ of 50 draws differ"),
    (broken.RepeatsItself, "the same seed gives the same draw", "50 further draws repeat the 50 before"),
    (broken.FreezesInTraces, "a traced draw is refused", "not refused, and 50 of 50 runs"),
    (broken.TakesAnyCapacity, "bad arguments are refused", "capacity=0: accepted, where a ValueError"),
    (broken.TakesNaN, "bad arguments are refused", "NaN logits: accepted, where a ValueError that names 'logits'"),
    (broken.RefusesByAssertion, "bad arguments are refused", "capacity=1.5: raised AssertionError instead of"),
]


@pytest.mark.parametrize(("distribution", "clause", "message"), BROKEN)
def test_a_broken_distribution_fails_its_clause(distribution: type, clause: str, message: str) -> None:
    with pytest.raises(ContractError, match=rf"clause '{clause}': .*{message}") as caught:
        check_assignment_distribution(distribution, clauses=[clause])
    assert list(caught.value.report.failed) == [clause]


def test_every_clause_is_seen_to_fail() -> None:
    assert {clause for _, clause, _ in BROKEN} == set(CLAUSES)


def test_all_failures_are_reported_at_once() -> None:
    with pytest.raises(ContractError, match="KnowsDrawsByIdentity breaks 2 of 27 clauses") as caught:
        check_assignment_distribution(broken.KnowsDrawsByIdentity)
    report = caught.value.report
    assert list(report.failed) == ["provenance is kept", "copies go on"]
    assert "failed  copies go on: copy.deepcopy" in str(report)
    assert isinstance(caught.value, AssertionError)


def test_what_does_not_apply_is_skipped_with_a_reason() -> None:
    report = check_assignment_distribution(lambda logits, capacity: IndependentRouting(logits, capacity=capacity))
    assert report.skipped["padding takes no part"] == "make takes no mask"
    assert report.skipped["capacity holds"] == "limited is False"
    assert report.table().row_count == len(report.results) == len(CLAUSES)
    assert not report.failed


def test_without_an_enumeration_the_support_is_searched() -> None:
    clauses = ["log_prob is normalised", "log_prob equals frequencies"]
    assert check_assignment_distribution(broken.HasNoEnumerationAfterAll, clauses=clauses).passed == clauses


def test_a_claimed_tolerance_is_granted() -> None:
    clauses = ["log_prob equals frequencies"]
    with pytest.raises(ContractError):
        check_assignment_distribution(broken.TakesAnotherLaw, clauses=clauses)
    check_assignment_distribution(broken.TakesAnotherLaw, clauses=clauses, log_prob_tolerance=0.5)


def test_the_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    check_assignment_distribution(CapacitySkip, clauses=["weights are unbiased"])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(clauses=["wieghts"]), r"unknown clauses \['wieghts'\]; known are"),
        (dict(num_samples=10), "num_samples must be at least 1000 .* got 10"),
        (dict(sizes=[]), "sizes must hold at least one"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_assignment_distribution(CapacitySkip, **options)


def test_something_else_than_an_assignment_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="must return an AssignmentDistribution, got Categorical"):
        check_assignment_distribution(lambda logits, capacity: torch.distributions.Categorical(logits=logits))  # type: ignore[return-value]
