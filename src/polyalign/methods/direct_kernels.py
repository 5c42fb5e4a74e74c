"""DPO with a margin of kernels between embeddings, and with an explicit divergence."""

from typing import Annotated, Literal

from pydantic import Field

from polyalign.errors import OptionError
from polyalign.feedback.records import Pair
from polyalign.loops.embedding import Embed
from polyalign.objectives import Constant, Logistic, Pairwise, SumLogp, SumLogRatio
from polyalign.objectives.kernels import (
    Hierarchical,
    Kernel,
    KernelGap,
    Linear,
    Mahalanobis,
    Polynomial,
    Rbf,
    Spectral,
)
from polyalign.objectives.law_divergence import LawDivergence, Name, Penalised
from polyalign.recipe import (
    Count,
    Method,
    Module,
    NonNegative,
    NonNegatives,
    Positive,
    Positives,
    Records,
    Stage,
    Stages,
    Update,
    method,
)
from polyalign.types import Objective

KernelName = Literal["rbf", "polynomial", "mahalanobis", "spectral", "mixture"]


@method(
    id="dpo-kernels",
    arxiv="2501.03271",
    feedback=Pair,
    tags=("embeddings", "divergence"),
    paper={"lr": 1e-5},
)
def dpo_kernels(
    kernel: KernelName = "rbf",
    divergence: Name = "kl",
    link: Literal["logistic", "identity"] = "logistic",
    kappa: Positive = 1.0,
    gamma: NonNegative = 1.0,
    alpha: NonNegative = 1.0,
    rbf_sigma: Positive = 1.0,
    poly_c: NonNegative = 1.0,
    poly_degree: Count = 2,
    spectral_lam: Positives = (1.0, 0.5),
    spectral_a: NonNegatives = (1.0, 0.1),
    renyi_alpha: Annotated[float, Field(gt=0, lt=100)] = 0.9,
    encoder: str = "policy",
) -> Method:
    """DPO whose margin adds a kernel's preference between embeddings, held by a chosen divergence.

    Formula: `M = kappa ((lp_w - lp_l) + gamma (log K(e_x, e_w) - log K(e_x, e_l)))`; logistic
    `-logsig(M - kappa (rf_w - rf_l)) + alpha D(pi, ref)`; identity `-M + alpha D`. K: rbf,
    polynomial, mahalanobis, spectral, or the mixture of all four with trained weights. D at each
    token over the whole law, mean over both answers: kl, forward-kl, js, hellinger, renyi,
    bhattacharyya, wasserstein (with cost 1 between any two tokens: `sum |p - q| / 2`).
    When: embeddings know something about the preference that likelihoods do not.
    When not: plain DPO does; gamma=0, alpha=0 is DPO with beta=kappa.
    Limits: embeddings are constant, so with link=identity the kernel gives the policy no gradient,
    and the loss has no lower bound; with the logistic link it shifts each pair's margin.
    encoder: policy (means of the start's own states), given (columns embedding_prompt,
    embedding_chosen, embedding_rejected) or the folder of a sentence encoder.
    Deviations: logistic and bounded by default, where the paper maximises M; embeddings have length
    1; wasserstein takes no other costs between tokens; mahalanobis uses the embeddings' covariance,
    which is not trained. The numbers were not confirmed in the paper's own text.
    Source: Das et al. 2025.
    """
    _refuse_unread(
        kernel, divergence, gamma, alpha,
        rbf_sigma=rbf_sigma, poly_c=poly_c, poly_degree=poly_degree,
        spectral_lam=spectral_lam, spectral_a=spectral_a, renyi_alpha=renyi_alpha, encoder=encoder,
    )  # fmt: skip
    if renyi_alpha == 1.0:
        raise OptionError("dpo-kernels: renyi_alpha=1 is kl.", "Use divergence=kl.")
    if len(spectral_lam) != len(spectral_a) or not spectral_lam:
        raise OptionError(
            f"dpo-kernels: {len(spectral_lam)} spectral_lam for {len(spectral_a)} spectral_a.",
            "Give as many of the one as of the other.",
        )
    rbf, polynomial = Rbf(rbf_sigma), Polynomial(poly_c, poly_degree)
    spectral, mahalanobis = Spectral(spectral_lam, spectral_a), Mahalanobis()
    kernels: dict[str, Kernel] = {
        "rbf": rbf,
        "polynomial": polynomial,
        "mahalanobis": mahalanobis,
        "spectral": spectral,
        "mixture": Hierarchical(rbf, polynomial, spectral, mahalanobis),
    }
    mixed = kernel == "mixture" and gamma > 0
    gap = KernelGap(kernels[kernel], -kappa * gamma, "kernel" if mixed else None)
    bounded = link == "logistic"
    objective: Objective = Pairwise(
        SumLogRatio() if bounded else SumLogp(),
        scale=kappa,
        margin=gap if gamma > 0 else Constant(),
        link=Logistic() if bounded else Linear(),
    )
    if alpha > 0:
        objective = Penalised(objective, LawDivergence(divergence, renyi_alpha), alpha)
    return Stages(
        Stage(
            (Update(objective, trains=("policy", "kernel") if mixed else ("policy",)),),
            streams={"data": Records() >> Embed(encoder) if gamma > 0 else Records()},
            modules={"kernel": Module("logits", {"size": 6})} if mixed else {},
        )
    )


READS = {
    "rbf_sigma": ("rbf", "mixture"),
    "poly_c": ("polynomial", "mixture"),
    "poly_degree": ("polynomial", "mixture"),
    "spectral_lam": ("spectral", "mixture"),
    "spectral_a": ("spectral", "mixture"),
}
"""Which kernels read an option."""

DEFAULTS = {
    "rbf_sigma": 1.0,
    "poly_c": 1.0,
    "poly_degree": 2,
    "spectral_lam": (1.0, 0.5),
    "spectral_a": (1.0, 0.1),
    "renyi_alpha": 0.9,
    "encoder": "policy",
}


def _refuse_unread(
    kernel: str, divergence: str, gamma: float, alpha: float, **given: object
) -> None:
    """Raise :class:`OptionError` for an option that this kernel or divergence does not read."""
    if alpha == 0 and divergence != "kl":
        raise OptionError(
            f"dpo-kernels: divergence={divergence} has no effect with alpha=0.",
            "Use alpha > 0, or leave it out.",
        )
    if gamma == 0 and (kernel != "rbf" or given["encoder"] != DEFAULTS["encoder"]):
        raise OptionError(
            "dpo-kernels: kernel and encoder have no effect with gamma=0.",
            "Use gamma > 0, or leave them out.",
        )
    for name, value in given.items():
        if value == DEFAULTS[name] or name == "encoder":
            continue
        if name == "renyi_alpha":
            if divergence != "renyi" or alpha == 0:
                raise OptionError(
                    "dpo-kernels: renyi_alpha is only read by divergence=renyi (alpha > 0).",
                    "Use it, or leave renyi_alpha out.",
                )
        elif kernel not in READS[name] or gamma == 0:
            raise OptionError(
                f"dpo-kernels: {name} has no place in kernel={kernel}, gamma={gamma:g}.",
                f"Use kernel={' or '.join(READS[name])} with gamma > 0, or leave it out.",
            )
