"""What an expert layer changes in the routing of a rule: the experts of a record, and the number of slots."""

from dataclasses import replace

import torch
from torch import Tensor

from prob_moe.distributions.support import router_choices
from prob_moe.layer.records import RecordedLayer, check_padding
from prob_moe.rules import Routing, RoutingRule, SparseRouting, StraightThroughRouting


def sparse_routing(routing: Routing) -> SparseRouting | None:
    """:returns: who goes to which expert; None where datapoints are not given to experts of their own."""
    sparse = routing.sparse if isinstance(routing, StraightThroughRouting) else routing
    return sparse if isinstance(sparse, SparseRouting) else None


def chosen_experts(routing: Routing) -> Tensor | None:
    """:returns: the assignment, long (*batch, m, n), of a sparse routing."""
    sparse = sparse_routing(routing)
    return None if sparse is None else sparse.assignment


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
    :returns: the routing with the recorded experts, and the gates that the present logits give to them.
    :raises ValueError: if the record does not fit.
    :raises NotImplementedError: if the rule's gates do not follow from logits and experts.
    """
    present = chosen_experts(routing)
    if recorded.num_experts != num_experts:
        raise ValueError(f"the record has {recorded.num_experts} experts where the layer has {num_experts}")
    got, wanted = (None if value is None else tuple(value.shape) for value in (recorded.value, present))
    if got != wanted:
        raise ValueError(f"the record has an assignment of shape {got} where the layer's is of shape {wanted}")
    if present is None or recorded.value is None:
        return routing
    value = check_padding(recorded.value.to(present.device), mask)
    choices = router_choices(value)
    if int(choices.max()) >= num_experts:
        raise ValueError(f"the record names expert {int(choices.max())} of {num_experts}")
    gate, carry = rule.gates(rule.prepare(logits, mask)[0], choices)
    if carry is not None and mask is not None:
        carry = torch.where(mask, carry, 0.0)
    if isinstance(routing, StraightThroughRouting):
        return replace(routing, sparse=replace(routing.sparse, assignment=value, gate=gate.detach(), slots=None))
    assert isinstance(routing, SparseRouting)
    return replace(routing, assignment=value, gate=gate, slots=None, carry=carry)
