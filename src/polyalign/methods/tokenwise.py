"""Direct methods that read the whole law at each token."""

from typing import Literal

from polyalign.errors import OptionError
from polyalign.feedback.records import Pair
from polyalign.objectives import Pairwise, SequentialKl, SumLogRatio, SumLogRatioPlusKl
from polyalign.recipe import Method, NonNegative, Offline, Positive, method


@method(
    id="tdpo",
    arxiv="2404.11999",
    feedback=Pair,
    tags=("token-level", "divergence"),
    paper={"lr": 5e-6, "batch": 4, "epochs": 1},
)
def tdpo(
    variant: Literal["tdpo1", "tdpo2"] = "tdpo2", alpha: NonNegative = 0.5, beta: Positive = 0.1
) -> Method:
    """DPO whose margin is corrected by the sequential forward KL to the reference.

    Formula: `D(y) = sum_t KL(ref_t || pi_t)`, `u = beta (h_w - h_l)`;
    tdpo1 `-logsig(u - beta (D_l - D_w))`; tdpo2 `-logsig(u - alpha beta (D_l - sg[D_w]))`.
    When: DPO drifts far from the reference or loses diversity.
    When not: the reference only exists as cached log-probabilities; it must be live.
    Limits: two full-vocabulary softmaxes a step; alpha is for tdpo2, and tdpo1 refuses it.
    Deviations: none. Source: Zeng et al. 2024, equations 13 to 17.
    """
    if variant == "tdpo1" and alpha != 0.5:
        raise OptionError("tdpo: alpha has no place in variant=tdpo1.", "Use variant=tdpo2.")
    kl = SequentialKl(beta if variant == "tdpo1" else alpha * beta, push_chosen=variant == "tdpo1")
    return Offline(Pairwise(SumLogRatio(), scale=beta, margin=kl, shown=SumLogRatioPlusKl()))
