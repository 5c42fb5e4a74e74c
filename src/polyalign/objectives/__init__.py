"""Objectives: frozen dataclasses of hyper-parameters with one pure call on scores."""

from polyalign.objectives.actor_critic import SacActor, SacCritic, SacTemperature
from polyalign.objectives.group_preference import GroupPreference
from polyalign.objectives.likelihood import Likelihood, Nll
from polyalign.objectives.links import Hinge, Logistic, LogRatioModulated, Mixed, Robust, Squared
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
from polyalign.objectives.pointwise import Prospect
from polyalign.objectives.policy_gradient import PolicyGradient
from polyalign.objectives.reduce import reduce
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
    "ChosenShortfall",
    "Constant",
    "DiscountedLogRatio",
    "Field",
    "GroupPreference",
    "Hinge",
    "JensenShannon",
    "LengthGap",
    "Likelihood",
    "LogOdds",
    "LogRatioModulated",
    "Logistic",
    "MeanLogRatio",
    "MeanLogp",
    "Mixed",
    "Nll",
    "OreoPolicy",
    "OreoValue",
    "Pairwise",
    "PolicyGradient",
    "PowerHinge",
    "Prospect",
    "Robust",
    "SacActor",
    "SacCritic",
    "SacTemperature",
    "SequentialKl",
    "Shaped",
    "SoftReferenceGap",
    "Squared",
    "SumLogRatio",
    "SumLogRatioPlusKl",
    "SumLogp",
    "Transport",
    "TwoWinners",
    "reduce",
]
