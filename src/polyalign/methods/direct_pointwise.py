"""Direct methods from thumbs up and down."""

from polyalign.feedback.records import Binary
from polyalign.objectives import Prospect
from polyalign.recipe import Method, NonNegative, Offline, Positive, method


@method(
    id="kto",
    arxiv="2402.01306",
    feedback=Binary,
    tags=("unpaired", "imbalance"),
    paper={"lr": 5e-7, "batch": 32, "epochs": 1},
)
def kto(beta: Positive = 0.1, lam_D: NonNegative = 1.0, lam_U: NonNegative = 1.0) -> Method:
    """Prospect-theoretic value of single good or bad answers around the policy's own divergence.

    Formula: `h = log pi - log ref`; good: `lam_D (1 - sig(beta (h - z0)))`; bad:
    `lam_U (1 - sig(beta (z0 - h)))`; `z0 = max(0, mean h of mismatched answers)`, constant.
    When: thumbs instead of pairs, also very imbalanced (keep lam_D n_D / (lam_U n_U) in [1, 4/3]).
    When not: clean pairs that you can use as such. Limits: it saturates on both sides, so very bad
    answers stop mattering; needs at least two prompts, and more than one example a step.
    Deviations: z0 is the mean over the whole optimizer step and the mismatched answer is fixed by
    (seed, epoch, example), so neither order nor micro-batches change the loss.
    Source: Ethayarajh et al. 2024, equation 8.
    """
    return Offline(Prospect(beta, lam_D, lam_U))
