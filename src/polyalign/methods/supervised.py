"""Supervised methods: imitate."""

from typing import Literal

from polyalign.errors import OptionError
from polyalign.feedback.records import Demonstration
from polyalign.objectives import Likelihood
from polyalign.objectives.divergence_likelihood import Divergence, DivergenceLikelihood
from polyalign.recipe import Method, Offline, Positive, method


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


@method(
    id="implicit-reward-sft",
    arxiv="2507.00018",
    feedback=Demonstration,
    aliases=("f-sft",),
    tags=("divergence", "overfitting"),
    paper={"lr": 5e-6, "epochs": 3},
)
def implicit_reward_sft(
    f: Divergence = "pearson", b: Positive = 0.1, saturate: bool = False
) -> Method:
    """Imitation that weakens as the implicit reward of the demonstrations grows.

    Formula: `L = -mean phi(t)`, `t = b (log pi - log ref)` summed over the answer; `phi(t)` is
    pearson `t - t^2/4` (stops at t = 2), hellinger `t/(1+t)`, reverse-kl `-exp(-(t+1))`, js
    `log(2 - exp(-t))`, or tv `t`, which is plain SFT times b, without a reference.
    When: SFT before a preference method, on few demonstrations that plain SFT would overfit.
    When not: demonstrations that have to be learnt whatever they cost.
    Limits: then train dpo from the result, which becomes its reference. pearson turns back beyond
    t = 2 unless saturate (the exact conjugate stays there). The paper's other recipe, SFT at a
    quarter of the usual rate, is sft with that lr.
    Deviations: hellinger (t > -1) and js (t > -log 2) go on along their tangents near the end of
    their domains (metric `outside`). The divergences were derived from the paper's framework; which
    of them and which constants it uses was not confirmed.
    Source: Wang et al. 2025.
    """
    if saturate and f != "pearson":
        raise OptionError(
            f"implicit-reward-sft: saturate has no place in f={f}.",
            "Use f=pearson, or leave it out.",
        )
    return Offline(DivergenceLikelihood(f, b, saturate))
