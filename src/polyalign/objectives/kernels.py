"""Kernels between a prompt and its answers, as numbers of their embeddings.

Embeddings are constant, so each kernel is a function of three numbers of a prompt and an answer:
their inner product, their squared distance, and their squared Mahalanobis distance. Units bring
them as fields. Axes: U pairs, D features of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.types import Needs, Scores, needs

SIDES = ("chosen", "rejected")
MEASURES = ("dot", "distance", "mahalanobis")
FIELDS = tuple(f"{measure}_{side}" for side in SIDES for measure in MEASURES)
"""The units' fields: each measure between the prompt and each side's answer."""

TINY = 1e-12


@dataclass(frozen=True)
class Likeness:
    """``dot`` a.b, ``distance`` |a - b|^2 and ``mahalanobis`` (a - b)' S^-1 (a - b), each [U]."""

    dot: Tensor
    distance: Tensor
    mahalanobis: Tensor

    @staticmethod
    def of(a: Tensor, b: Tensor, precision: Tensor | None = None) -> Likeness:
        """Of embeddings [U, D]; ``precision`` [D, D] is S^-1, the identity when None."""
        gap = a - b
        moved = gap if precision is None else gap @ precision
        return Likeness((a * b).sum(-1), gap.square().sum(-1), (moved * gap).sum(-1))

    @staticmethod
    def read(fields: Mapping[str, Tensor], side: str) -> Likeness:
        """From the units' fields."""
        return Likeness(*(fields[f"{measure}_{side}"] for measure in MEASURES))


class Kernel(Protocol):
    """``log K(a, b)`` [U]; ``logits`` are the trained mixing weights, where there are any."""

    def __call__(self, likeness: Likeness, logits: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Rbf:
    """``K = exp(-|a - b|^2 / (2 sigma^2))``."""

    sigma: float = 1.0

    def __call__(self, likeness: Likeness, logits: Tensor | None = None) -> Tensor:
        return -likeness.distance / (2.0 * self.sigma**2)


@dataclass(frozen=True)
class Polynomial:
    """``K = (a.b + c)^degree``; a base below 1e-12 counts as that."""

    c: float = 1.0
    degree: float = 2.0

    def __call__(self, likeness: Likeness, logits: Tensor | None = None) -> Tensor:
        return self.degree * (likeness.dot + self.c).clamp(min=TINY).log()


@dataclass(frozen=True)
class Mahalanobis:
    """``K = exp(-(a - b)' S^-1 (a - b) / 2)``."""

    def __call__(self, likeness: Likeness, logits: Tensor | None = None) -> Tensor:
        return -likeness.mahalanobis / 2.0


@dataclass(frozen=True)
class Spectral:
    """``K = sum_k lam_k exp(-rate_k |a - b|^2)``."""

    lam: tuple[float, ...] = (1.0, 0.5)
    rates: tuple[float, ...] = (1.0, 0.1)

    def __call__(self, likeness: Likeness, logits: Tensor | None = None) -> Tensor:
        distance = likeness.distance.unsqueeze(-1)
        lam, rates = distance.new_tensor(self.lam), distance.new_tensor(self.rates)
        return (lam.log() - rates * distance).logsumexp(-1)


@dataclass(frozen=True)
class Hierarchical:
    """``tau_1 (w_1 rbf + w_2 polynomial) + tau_2 (w_3 spectral + w_4 mahalanobis)``.

    ``logits`` [6] hold those of (w_1, w_2), (w_3, w_4) and (tau_1, tau_2); each two go through a
    softmax. Without them all weights are one half.
    """

    rbf: Rbf = field(default_factory=Rbf)
    polynomial: Polynomial = field(default_factory=Polynomial)
    spectral: Spectral = field(default_factory=Spectral)
    mahalanobis: Mahalanobis = field(default_factory=Mahalanobis)

    def __call__(self, likeness: Likeness, logits: Tensor | None = None) -> Tensor:
        near = torch.stack([self.rbf(likeness), self.polynomial(likeness)], -1)
        far = torch.stack([self.spectral(likeness), self.mahalanobis(likeness)], -1)
        free = near.new_zeros(6) if logits is None else logits.to(near)
        inner_near, inner_far, outer = free.reshape(3, 2).log_softmax(-1)
        both = torch.stack([(inner_near + near).logsumexp(-1), (inner_far + far).logsumexp(-1)], -1)
        mixed: Tensor = (outer + both).logsumexp(-1)
        return mixed


@dataclass(frozen=True)
class KernelGap:
    """``scale * (log K(x, chosen) - log K(x, rejected))``, a margin that embeddings give.

    ``module`` names the module of trained mixing weights, None where nothing is trained.
    Source: Das et al. 2025, arXiv 2501.03271.
    """

    kernel: Kernel
    scale: float
    module: str | None = None

    @property
    def needs(self) -> Needs:
        return needs(fields=FIELDS, modules=[] if self.module is None else [self.module])

    def __call__(self, chosen: Scores, rejected: Scores) -> Tensor:
        logits = None if self.module is None else chosen.modules[self.module]()
        both = [self.kernel(Likeness.read(chosen.fields, side), logits) for side in SIDES]
        return self.scale * (both[0] - both[1]).to(chosen.logp.dtype)


@dataclass(frozen=True)
class Linear:
    """``-z``: the margin itself is maximised, without bound."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        return -z


def precision_of(embeddings: Tensor, ridge: float = 0.1) -> Tensor:
    """S^-1 [D, D] of the covariance S of embeddings [N, D] drawn towards a multiple of the
    identity: ``(1 - ridge) S + ridge (trace S / D) I``.
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    covariance = centred.T @ centred / max(len(embeddings) - 1, 1)
    size = covariance.shape[0]
    spread = float(covariance.diagonal().mean())
    # Identical embeddings have no spread; then distances are all zero and any scale will do.
    level = spread if spread > 0 else 1.0
    shrunk = (1.0 - ridge) * covariance + ridge * level * torch.eye(size, dtype=torch.float64)
    return torch.cholesky_inverse(torch.linalg.cholesky(shrunk))


def unit_length(embeddings: Tensor) -> Tensor:
    """Embeddings [N, D] of length 1."""
    return F.normalize(embeddings.double(), dim=-1, eps=math.sqrt(TINY))
