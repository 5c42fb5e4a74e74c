"""Objectives: frozen dataclasses of hyper-parameters with one pure call on scores."""

from polyalign.objectives.actor_critic import SacActor, SacCritic, SacTemperature
from polyalign.objectives.anchored import Anchored, Down, Miss, Toward
from polyalign.objectives.group_preference import GroupPreference
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
from polyalign.objectives.pairwise import Pairwise
from polyalign.objectives.path_consistency import OreoPolicy, OreoValue
from polyalign.objectives.pointwise import Prospect, ShiftedBinary
from polyalign.objectives.policy_gradient import PolicyGradient
from polyalign.objectives.ranking import OrderedPairs, PlackettLuce, TemperedPlackettLuce
from polyalign.objectives.reduce import reduce
from polyalign.objectives.reward_regression import DroPolicy, DroValue
from polyalign.objectives.reward_shapes import AlphaPower, JensenShannon, Shaped
from polyalign.objectives.rewards import (
    DiscountedLogRatio,
    LogOdds,
    MeanLogp,
    MeanLogRatio,
    SumLogp,
    SumLogRatio,
    SumLogRatioPlusKl,
)
from polyalign.objectives.transport import PowerHinge, Transport
from polyalign.objectives.two_winners import TwoWinners

__all__ = [
    "AlphaPower",
    "Anchored",
    "BestNll",
    "ChosenShortfall",
    "Classification",
    "Constant",
    "DiscountedLogRatio",
    "Down",
    "DroPolicy",
    "DroValue",
    "Field",
    "GroupPreference",
    "Hinge",
    "JensenShannon",
    "LengthGap",
    "Likelihood",
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
    "PenalisedLogp",
    "PlackettLuce",
    "PolicyGradient",
    "Posterior",
    "PowerHinge",
    "Prospect",
    "Regression",
    "ReverseKl",
    "Robust",
    "SacActor",
    "SacCritic",
    "SacTemperature",
    "SequentialKl",
    "Shaped",
    "Shares",
    "ShiftedBinary",
    "SoftReferenceGap",
    "Softmax",
    "Squared",
    "SumLogRatio",
    "SumLogRatioPlusKl",
    "SumLogp",
    "TemperedPlackettLuce",
    "Toward",
    "Transport",
    "TwoWinners",
    "reduce",
]
