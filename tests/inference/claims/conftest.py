"""The tables of the study of routing, without training."""

from tests.inference.routing_study.conftest import _done, study, table

__all__ = ["_done", "study", "table"]
