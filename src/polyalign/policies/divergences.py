"""What two laws over the same choices say of each other, whatever policy they belong to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2 = math.log(2.0)


def between(name: str, law: Tensor, ref: Tensor) -> Tensor:
    """A signal of two log-laws [..., V], the policy's p and the reference's q; [...], nats.

    "kl(policy|ref)", "kl(ref|policy)", "js(policy|ref)", "tv(policy|ref)" (total variation, in
    [0, 1]), or "log_overlap(policy|ref)@a": ``log sum p^a q^(1-a)``, a = 1/2 when it is not said.
    """
    base, _, a = name.partition("@")
    match base:
        case "kl(ref|policy)":
            return (ref.exp() * (ref - law)).sum(-1)
        case "kl(policy|ref)":
            return (law.exp() * (law - ref)).sum(-1)
        case "js(policy|ref)":
            middle = torch.logaddexp(law, ref) - LOG_2
            return ((law.exp() * (law - middle)).sum(-1) + (ref.exp() * (ref - middle)).sum(-1)) / 2
        case "tv(policy|ref)":
            return (law.exp() - ref.exp()).abs().sum(-1) / 2
        case "log_overlap(policy|ref)":
            order = float(a or 0.5)
            return torch.logsumexp(order * law + (1.0 - order) * ref, -1)
    raise ValueError(f"{name} is no signal of two laws")
