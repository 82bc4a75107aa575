"""The ways to train that the study compares, each a model together with its loss."""

from inference.study.learners.base import Learner, MixtureLearner
from inference.study.learners.dense import ExactGradient, ExactMarginal, ExpectationMaximisation
from inference.study.learners.fixed import FixedExperts
from inference.study.learners.gated import GatedLearner, StraightThroughLearner
from inference.study.learners.importance_weighted import ImportanceWeighted
from inference.study.learners.sampled import SampledObjective
from inference.study.learners.sum_and_sample import SumAndSample
from inference.study.learners.unordered_set import UnorderedSet

__all__ = [
    "ExactGradient",
    "ExactMarginal",
    "ExpectationMaximisation",
    "FixedExperts",
    "GatedLearner",
    "ImportanceWeighted",
    "Learner",
    "MixtureLearner",
    "SampledObjective",
    "StraightThroughLearner",
    "SumAndSample",
    "UnorderedSet",
]
