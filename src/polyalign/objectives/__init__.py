"""Objectives: frozen dataclasses of hyper-parameters with one pure call on scores."""

from polyalign.objectives.group_preference import GroupPreference
from polyalign.objectives.likelihood import Likelihood, Nll
from polyalign.objectives.links import Hinge, Logistic, Mixed, Robust, Squared
from polyalign.objectives.margins import Constant, Field, SequentialKl
from polyalign.objectives.pairwise import Pairwise
from polyalign.objectives.pointwise import Prospect
from polyalign.objectives.reduce import reduce
from polyalign.objectives.rewards import LogOdds, MeanLogp, MeanLogRatio, SumLogp, SumLogRatio

__all__ = [
    "Constant",
    "Field",
    "GroupPreference",
    "Hinge",
    "Likelihood",
    "LogOdds",
    "Logistic",
    "MeanLogRatio",
    "MeanLogp",
    "Mixed",
    "Nll",
    "Pairwise",
    "Prospect",
    "Robust",
    "SequentialKl",
    "Squared",
    "SumLogRatio",
    "SumLogp",
    "reduce",
]
