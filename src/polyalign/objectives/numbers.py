"""Elementary functions that stay finite, with finite gradients, where floating point does not."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2 = math.log(2.0)


def log1mexp(a: Tensor) -> Tensor:
    """``log(1 - exp(a))`` for a < 0, elementwise.

    Near zero ``1 - exp(a)`` loses its digits and far from zero ``log`` does; the two safe forms
    meet at ``a = -log 2``. (Maechler 2012, "Accurately computing log(1 - exp(-|a|))")
    """
    near = a > -LOG_2
    # Both branches are differentiated, so each sees only arguments at which it is safe.
    close = torch.where(near, a, -LOG_2)
    far = torch.where(near, -LOG_2, a)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))


def log_odds(a: Tensor) -> Tensor:
    """Log odds ``a - log(1 - exp(a))`` of a probability ``exp(a)``, elementwise.

    At ``a = 0`` (a probability that rounds to one) the odds are infinite: the value is then taken
    one rounding step before it, and the gradient ``1 / (1 - exp(a))`` there is kept, so that it
    is finite and never zero.
    """
    edge = -torch.finfo(a.dtype).eps
    inside = a + (a.clamp(max=edge) - a).detach()
    return inside - log1mexp(inside)


def bounded_exp(x: Tensor) -> Tensor:
    """``exp(x)`` with x cut at 60, which keeps sums and products finite in float32."""
    return torch.exp(x.clamp(max=60.0))


def k3(log_ratio: Tensor) -> Tensor:
    """Schulman's estimate ``exp(r) - r - 1 >= 0`` of KL(policy || ref), r = log ref - log policy.

    Unbiased when the steps are the policy's own samples; zero exactly where r is.
    """
    # exp(r) - 1 - r would lose its digits, and its sign, near zero.
    return torch.expm1(log_ratio.clamp(max=60.0)) - log_ratio


def tanh_log_derivative(u: Tensor) -> Tensor:
    """``log(d tanh(u) / du) = 2 (log 2 - u - softplus(-2u))``, elementwise and finite at any u.

    A squashed Gaussian's log-density is the Gaussian's at u minus the sum of this over dimensions.
    """
    return 2.0 * (LOG_2 - u - F.softplus(-2.0 * u))


def suffix_sums(x: Tensor) -> Tensor:
    """Sums from each position to the end of the last axis."""
    return x.flip(-1).cumsum(-1).flip(-1)
