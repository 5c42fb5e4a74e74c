"""Known optima of pairwise losses with other rewards and weights than DPO's log-ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from polyalign.feedback.records import Pair
from polyalign.methods.optima.known import Known
from polyalign.worlds import closed_forms
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import tilt
from polyalign.worlds.sequences import Sequences, node, path_sums

TWO = {"prompts": 8, "responses": 2}
ENDING = {"vocabulary": 3, "length": 2, "eos": 0}


def _per_token(world: Any, options: Mapping[str, Any]) -> Tensor:
    return closed_forms.per_token(world, options["beta"])


def _hidden(world: Sequences) -> Tensor:
    """Next-token log-laws [X, S, V] of a policy that nobody told the method about."""
    draw = torch.Generator().manual_seed(7)
    noise = torch.randn(world.logits.shape, generator=draw, dtype=torch.float64)
    return (world.logits + noise).log_softmax(-1)


def _step_rewards(world: Sequences, beta: float) -> list[Tensor]:
    """beta times the hidden policy's log-ratio at each step of each completion."""
    ratio = beta * (_hidden(world) - world.logits)[0]
    return [
        torch.stack([ratio[node(y[:t], world.vocabulary), v] for t, v in enumerate(y)])
        for y in world.completions
    ]


def _labelled_by_tails(world: Sequences, options: Mapping[str, Any]) -> Sequences:
    """The world whose labels the hidden policy's tail-discounted rewards gave."""
    gap = closed_forms.discounted_tails(_step_rewards(world, options["beta"]), options["alpha"])
    return replace(world, prefer=torch.sigmoid(gap).unsqueeze(0))


def _labelled_by_means(world: Sequences, options: Mapping[str, Any]) -> Sequences:
    """The same with mean step rewards, times the mean length of the two answers."""
    means = torch.stack([steps.mean() for steps in _step_rewards(world, options["beta"])])
    n = (world.lengths.unsqueeze(-1) + world.lengths) / 2
    gap = n * (means.unsqueeze(-1) - means)
    return replace(world, prefer=torch.sigmoid(gap).unsqueeze(0))


def _two_kinds(world: Bandit) -> list[Pair]:
    """Pairs with a trace, labelled by the reward, and pairs without, labelled by a coin."""
    informed = [replace(p, fields={"trace": 1.0}) for p in world.pairs()]
    coin = replace(world, prefer=torch.full_like(world.prefer, 0.5)).pairs()
    return informed + [replace(p, key=f"{p.key}-", fields={"trace": 0.0}) for p in coin]


def _mixed_labels(world: Bandit, options: Mapping[str, Any]) -> Tensor:
    """Two answers labelled by a share ``a`` of rewards and 1 - a of coins."""
    p = options["a"] * closed_forms.first_wins(world) + (1 - options["a"]) / 2
    gap = world.start[:, 0] - world.start[:, 1]
    return closed_forms.of_two(world, gap + p.logit() / options["beta"])


def _with_strengths(world: Bandit) -> list[Pair]:
    """Every pair with the probability that the labelled winner is better."""
    return [
        replace(p, fields={"strength": float(world.prefer[p.prompt, p.chosen, p.rejected])})
        for p in world.pairs()
    ]


def _powered_odds(world: Any, options: Mapping[str, Any]) -> Tensor:
    """Two answers under a power reward with a margin."""
    beta, alpha, gamma = options["beta"], options["alpha"], options["gamma"]
    z = closed_forms.margined_odds(closed_forms.first_wins(world), gamma, gamma)
    gap = closed_forms.gap_of_rewards(lambda a: (1 - torch.exp(-alpha * a)) / alpha, z / beta)
    return closed_forms.of_two(world, gap)


def _embeddings(world: Bandit) -> tuple[Tensor, Tensor]:
    """Unit embeddings of prompts [X, 3] and answers [Y, 3]."""
    draw = torch.Generator().manual_seed(5)
    size = (world.prompts + len(world.completions), 3)
    rows = normalize(torch.randn(size, generator=draw, dtype=torch.float64), dim=-1)
    return rows[: world.prompts], rows[world.prompts :]


def _embedded(world: Bandit) -> list[Pair]:
    """The population of pairs with the embeddings of prompt and answers."""
    x, y = (rows.tolist() for rows in _embeddings(world))
    return [
        replace(
            p,
            meta={
                "embedding_prompt": x[p.prompt],
                "embedding_chosen": y[p.chosen],
                "embedding_rejected": y[p.rejected],
            },
        )
        for p in world.pairs()
    ]


def _kernel_tilted(world: Bandit, options: Mapping[str, Any]) -> Tensor:
    """``kappa (h + gamma log K) = r + c``, with log K = e_x.e_y - 1 at width 1."""
    x, y = _embeddings(world)
    return tilt(world.start, world.reward / options["kappa"] - options["gamma"] * x @ y.T)


PER_TOKEN = Known(
    "ref exp(n (r + c)/beta), answers of one and two tokens",
    world="sequences",
    make=ENDING,
    law=_per_token,
    hyper={"beta": 2.0},
    strength="beta",
)

KNOWN: dict[str, tuple[Known, ...]] = {
    "ln-dpo": (PER_TOKEN,),
    "sigmoid-norm": (PER_TOKEN,),
    "ld-dpo": (
        Known(
            "the hidden policy whose tail-discounted rewards labelled the pairs",
            world="sequences",
            make=ENDING,
            labels=_labelled_by_tails,
            law=lambda w, o: path_sums(_hidden(w), w.completions),
            hyper={"beta": 1.0, "alpha": 0.5},
        ),
    ),
    "r-dpo": (
        Known(
            "ref exp((r - alpha n)/beta)/Z, answers of one and two tokens",
            world="sequences",
            make=ENDING,
            law=lambda w, o: closed_forms.with_length_cost(w, o["beta"], o["alpha"]),
            hyper={"beta": 0.5, "alpha": 0.3},
            strength="beta",
        ),
    ),
    "f-dpo": tuple(
        Known(
            "ref (f')^-1((r - lambda)/beta)",
            law=lambda w, o: closed_forms.divergence(
                w, o["beta"], o["divergence"], 0.5 if o["alpha"] is None else o["alpha"]
            ),
            hyper={"beta": 1.0, "divergence": divergence},
            strength="beta",
            name=divergence.replace("_", " "),
        )
        for divergence in ("js", "forward_kl", "alpha", "reverse_kl")
    ),
    "alphapo": (
        Known(
            "pi^(1/n) = (1 - alpha (r + c)/beta)^(-1/alpha) without a margin",
            world="sequences",
            make=ENDING,
            law=lambda w, o: closed_forms.powered(w, o["beta"], o["alpha"]),
            hyper={"beta": 2.5, "gamma": 0.0},
            strength="beta",
        ),
        Known(
            "two answers: the root of its margin's equation",
            make=TWO,
            law=_powered_odds,
            hyper={"beta": 2.5, "gamma": 0.5},
            name="margin",
        ),
    ),
    "daa-blur": (
        Known(
            "sig((r + c)/beta)^n, answers of one and two tokens",
            world="sequences",
            make=ENDING,
            law=lambda w, o: closed_forms.odds(w, o["beta"]),
            strength="beta",
        ),
        Known(
            "two answers: softmax(r/beta)",
            make=TWO,
            law=lambda w, o: closed_forms.of_two(w, closed_forms.first_wins(w).logit() / o["beta"]),
            hyper={"link": "pointwise", "beta": 0.5},
            name="pointwise",
        ),
    ),
    "dpo-kernels": (
        Known(
            "ref exp(r/kappa - gamma e_x.e_y)/Z of unit embeddings, radial kernel, alpha 0",
            feedback=_embedded,
            law=_kernel_tilted,
            hyper={"alpha": 0.0, "gamma": 0.7, "kappa": 0.5, "encoder": "given"},
            strength="kappa",
        ),
        Known(
            "no closed form with a divergence beside: the gradient over the population vanishes",
            feedback=_embedded,
            hyper={"alpha": 0.5, "divergence": "js", "encoder": "given"},
            tolerance=1e-9,
            name="divergence",
        ),
    ),
    "wpo": (
        Known(
            "ref exp(r/beta)/Z: the weight is the same for both orders of a pair",
            law=lambda w, o: w.regularised(o["beta"]),
            hyper={"beta": 0.5},
            strength="beta",
            steps=150,
        ),
    ),
    "h-dpo": (
        Known(
            "ref^(1/alpha) exp(r/(alpha beta))/Z",
            law=lambda w, o: closed_forms.entropy_scaled(w, o["beta"], o["alpha"]),
            hyper={"beta": 0.5, "alpha": 0.8},
            strength="beta",
        ),
    ),
    "bvpo": (
        Known(
            "two answers: log-odds of the mixture of both kinds' labels, over beta",
            make=TWO,
            feedback=_two_kinds,
            law=_mixed_labels,
            hyper={"beta": 0.5, "a": 0.7},
        ),
    ),
    "sampo": (
        Known(
            "ref exp(r/beta)/Z where all answers have one length",
            world="sequences",
            make={"vocabulary": 3, "length": 2},
            law=lambda w, o: w.regularised(o["beta"]),
            hyper={"beta": 0.5},
            strength="beta",
        ),
        Known(
            "the hidden policy whose averaged rewards labelled the pairs",
            world="sequences",
            make=ENDING,
            labels=_labelled_by_means,
            law=lambda w, o: path_sums(_hidden(w), w.completions),
            hyper={"beta": 1.0, "form": "averaged"},
            name="averaged",
        ),
    ),
    "bmc": (
        Known(
            "ref exp(r/(beta (1 + delta)))/Z of single tokens less likely than 1/delta",
            law=lambda w, o: w.regularised(o["beta"] * (1 + o["delta"])),
            hyper={"beta": 0.5, "delta": 1.0, "exclude_stopwords": False},
            strength="beta",
        ),
    ),
    "robust-dpo": (
        Known(
            "the clean ref exp(r/beta)/Z, although a fifth of the labels is flipped",
            make={"responses": 5, "noise": 0.2},
            law=lambda w, o: w.regularised(o["beta"]),
            hyper={"beta": 0.5, "eps": 0.2},
            strength="beta",
        ),
    ),
    "mmpo": (
        Known(
            "ref exp(gamma s/beta)/Z, whatever pairs occur",
            law=lambda w, o: tilt(w.start, o["gamma"] * w.reward / o["beta"]),
            hyper={"beta": 0.5, "gamma": 0.8},
            strength="beta",
        ),
    ),
    "osp": (
        Known(
            "ref exp(r/beta)/Z of strengths sig(r - r')",
            feedback=_with_strengths,
            law=lambda w, o: w.regularised(o["beta"]),
            hyper={"beta": 0.5},
            strength="beta",
        ),
    ),
}
