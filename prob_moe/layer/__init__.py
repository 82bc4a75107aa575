"""A drop-in expert layer: in a Pyro model a sample site, in a plain training loop recorded and replayed."""

from prob_moe.layer.expert_layer import ExpertLayer
from prob_moe.layer.recording import Routed, record_routing
from prob_moe.layer.records import RecordedLayer, RoutingRecord
from prob_moe.layer.replaying import replay_routing

__all__ = ["ExpertLayer", "RecordedLayer", "Routed", "RoutingRecord", "record_routing", "replay_routing"]
