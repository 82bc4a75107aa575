"""Laws of y given an expert, by name; what a family owes is said by :class:`Family`."""

from prob_moe.sklearn.families.base import Family
from prob_moe.sklearn.families.classes import Classes
from prob_moe.sklearn.families.counts import Binomial, Poisson
from prob_moe.sklearn.families.gamma import Gamma
from prob_moe.sklearn.families.gaussian import Gaussian
from prob_moe.sklearn.families.student import Student

#: Those of numbers.
REGRESSIONS: dict[str, type[Family]] = {family.name: family for family in (Gaussian, Poisson, Binomial, Gamma, Student)}
FAMILIES: dict[str, type[Family]] = REGRESSIONS | {Classes.name: Classes}

__all__ = ["FAMILIES", "REGRESSIONS", "Family"]
