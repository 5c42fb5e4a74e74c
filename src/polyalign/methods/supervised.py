"""Supervised methods: imitate."""

from typing import Literal

from polyalign.feedback.records import Demonstration
from polyalign.objectives import Likelihood
from polyalign.recipe import Method, Offline, method


@method(
    id="sft",
    feedback=Demonstration,
    aliases=("bc-lm",),
    tags=("baseline", "reference-free"),
    paper={"lr": 2e-5, "epochs": 1},
)
def sft(reduction: Literal["token", "sequence", "sum"] = "token") -> Method:
    """Imitation of demonstrations by maximum likelihood, the baseline of every comparison.

    Formula: token `-sum l / sum n`; sequence `-mean(sum_t l / n)`; sum `-mean(sum_t l)`.
    When: before any preference method, or alone on chosen answers to see what imitation gives.
    When not: to make bad answers less likely; it raises the likelihood of rejected answers too.
    Limits: `token` lets long answers weigh more, `sequence` short ones; the three agree on equal
    lengths up to that constant.
    Source: maximum likelihood; no single paper.
    """
    return Offline(Likelihood(reduction))
