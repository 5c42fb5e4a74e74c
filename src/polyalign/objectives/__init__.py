"""Objectives: frozen dataclasses of hyper-parameters with one pure call on scores."""

from polyalign.objectives.actor_critic import SacActor, SacCritic, SacTemperature
from polyalign.objectives.anchored import Anchored, Down, Miss, Toward
from polyalign.objectives.divergence_likelihood import DivergenceLikelihood
from polyalign.objectives.group_preference import GroupPreference
from polyalign.objectives.kernels import KernelGap
from polyalign.objectives.law_divergence import LawDivergence, Penalised
from polyalign.objectives.likelihood import Likelihood, Nll
from polyalign.objectives.links import (
    Hinge,
    Logistic,
    LogRatioModulated,
    Mixed,
    ReverseKl,
    Robust,
    Squared,
)
from polyalign.objectives.list_targets import (
    Classification,
    Match,
    NoiseContrast,
    Posterior,
    Regression,
    Shares,
    Softmax,
)
from polyalign.objectives.listwise import BestNll, Listwise, LogRatioTo, PenalisedLogp
from polyalign.objectives.margins import (
    ChosenShortfall,
    Constant,
    Field,
    LengthGap,
    SequentialKl,
    SoftReferenceGap,
)
from polyalign.objectives.mixtures import TwoKinds
from polyalign.objectives.pairwise import Pairwise
from polyalign.objectives.path_consistency import OreoPolicy, OreoValue
from polyalign.objectives.pointwise import Prospect, ShiftedBinary, ShiftedPair
from polyalign.objectives.policy_gradient import PolicyGradient
from polyalign.objectives.ranking import OrderedPairs, PlackettLuce, TemperedPlackettLuce
from polyalign.objectives.reduce import reduce
from polyalign.objectives.reward_regression import DroPolicy, DroValue
from polyalign.objectives.reward_shapes import AlphaPower, JensenShannon, Shaped
from polyalign.objectives.reward_weighted import RewardWeighted
from polyalign.objectives.rewards import (
    DiscountedLogRatio,
    LogOdds,
    MeanLogp,
    MeanLogRatio,
    SumLogp,
    SumLogRatio,
    SumLogRatioPlusKl,
    UnevenLogRatio,
)
from polyalign.objectives.soft_labels import ScoreGap, SoftLogistic, Strength
from polyalign.objectives.token_functionals import (
    AveragedLogRatio,
    DifferenceWeightedLogRatio,
    SampledLogRatio,
)
from polyalign.objectives.transport import PowerHinge, Transport
from polyalign.objectives.two_winners import TwoWinners
from polyalign.objectives.weights import LikelihoodWeight

__all__ = [
    "AlphaPower",
    "Anchored",
    "AveragedLogRatio",
    "BestNll",
    "ChosenShortfall",
    "Classification",
    "Constant",
    "DifferenceWeightedLogRatio",
    "DiscountedLogRatio",
    "DivergenceLikelihood",
    "Down",
    "DroPolicy",
    "DroValue",
    "Field",
    "GroupPreference",
    "Hinge",
    "JensenShannon",
    "KernelGap",
    "LawDivergence",
    "LengthGap",
    "Likelihood",
    "LikelihoodWeight",
    "Listwise",
    "LogOdds",
    "LogRatioModulated",
    "LogRatioTo",
    "Logistic",
    "Match",
    "MeanLogRatio",
    "MeanLogp",
    "Miss",
    "Mixed",
    "Nll",
    "NoiseContrast",
    "OrderedPairs",
    "OreoPolicy",
    "OreoValue",
    "Pairwise",
    "Penalised",
    "PenalisedLogp",
    "PlackettLuce",
    "PolicyGradient",
    "Posterior",
    "PowerHinge",
    "Prospect",
    "Regression",
    "ReverseKl",
    "RewardWeighted",
    "Robust",
    "SacActor",
    "SacCritic",
    "SacTemperature",
    "SampledLogRatio",
    "ScoreGap",
    "SequentialKl",
    "Shaped",
    "Shares",
    "ShiftedBinary",
    "ShiftedPair",
    "SoftLogistic",
    "SoftReferenceGap",
    "Softmax",
    "Squared",
    "Strength",
    "SumLogRatio",
    "SumLogRatioPlusKl",
    "SumLogp",
    "TemperedPlackettLuce",
    "Toward",
    "Transport",
    "TwoKinds",
    "TwoWinners",
    "UnevenLogRatio",
    "reduce",
]
