"""What an expert layer changes in the routing of a rule: the experts of a record, and the number of slots."""

from dataclasses import replace

from torch import Tensor

from prob_moe.distributions.support import router_choices
from prob_moe.layer.records import RecordedLayer, check_padding
from prob_moe.rules import Routing, RoutingRule, SparseRouting, StraightThroughRouting


def sparse_routing(routing: Routing) -> SparseRouting | None:
    """:returns: who goes to which expert; None where datapoints are not given to experts of their own."""
    sparse = routing.sparse if isinstance(routing, StraightThroughRouting) else routing
    return sparse if isinstance(sparse, SparseRouting) else None


def with_slots(routing: Routing, slots: int | None) -> Routing:
    """:returns: the same sparse routing with another number of slots of an expert."""
    if isinstance(routing, StraightThroughRouting):
        return replace(routing, sparse=replace(routing.sparse, slots=slots))
    return replace(routing, slots=slots) if isinstance(routing, SparseRouting) else routing


def with_experts(
    rule: RoutingRule, routing: Routing, logits: Tensor, mask: Tensor | None, recorded: RecordedLayer, num_experts: int
) -> Routing:
    """
    :param routing: what the rule decided now; its losses stay.
    :returns: the routing of the recorded experts; as it is where the rule chooses none.
    :raises ValueError: if the record does not fit.
    :raises NotImplementedError: if the rule does not know what given experts contribute.
    """
    present = routing.chosen
    if recorded.num_experts != num_experts:
        raise ValueError(f"the record has {recorded.num_experts} experts where the layer has {num_experts}")
    got, wanted = (None if value is None else tuple(value.shape) for value in (recorded.value, present))
    if got != wanted:
        raise ValueError(f"the record has an assignment of shape {got} where the layer's is of shape {wanted}")
    if present is None or recorded.value is None:
        return routing
    value = check_padding(recorded.value.to(present.device), mask)
    largest = int(router_choices(value).max())
    if largest >= num_experts:
        raise ValueError(f"the record names expert {largest} of {num_experts}")
    return rule.replay(routing, rule.prepare(logits, mask)[0], mask, value)
