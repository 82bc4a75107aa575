"""The arms: every way to train, with the objective that it aims at. Procedures and rules are those of the registry."""

from inference.study.arms.arm import Arm, Group
from inference.study.arms.catalogue import FEW_PIECES, LONGER, PIECES, all_arms, core

__all__ = ["FEW_PIECES", "LONGER", "PIECES", "Arm", "Group", "all_arms", "core"]
