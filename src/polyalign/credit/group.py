"""Credit within groups: K completions of one prompt against each other.

Rewards are [P, K]: P prompts with K completions each. ``valid`` [P, K] is False for completions
that do not count (a row without a step): they move neither mean nor spread and get advantage 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def _centred(rewards: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards minus their group's mean [P, K], who counts [P, K], and how many [P, 1]."""
    counts = torch.ones_like(rewards) if valid is None else valid.to(rewards.dtype)
    size = counts.sum(-1, keepdim=True)
    # Measured from the group's first reward, equal rewards are exactly zero.
    first = rewards.gather(-1, counts.argmax(-1, keepdim=True))
    shifted = torch.where(counts > 0, rewards - first, 0.0)
    mean = shifted.sum(-1, keepdim=True) / size.clamp(min=1.0)
    return torch.where(counts > 0, shifted - mean, 0.0), counts, size


def group_advantages(
    rewards: Tensor,
    scale: Literal["group", "none"] = "group",
    eps: float = 1e-4,
    valid: Tensor | None = None,
) -> Tensor:
    """``(r - mean) / (std + eps)`` within each group [P, K]; ``scale`` "none" leaves the division
    out.

    std is the sample's (ddof = 1), from squared deviations in a second pass. Groups of equal
    rewards give exactly 0. Sources: Shao et al. 2024, arXiv 2402.03300, section 4.1.2; without
    std: Liu et al. 2025, arXiv 2503.20783.
    """
    centred, _, size = _centred(rewards, valid)
    if scale == "none":
        return centred
    variance = centred.square().sum(-1, keepdim=True) / (size - 1.0).clamp(min=1.0)
    return centred / (variance.sqrt() + eps)


def leave_one_out(rewards: Tensor, valid: Tensor | None = None) -> Tensor:
    """``r_i - mean of the others`` within each group [P, K]; 0 in a group of one.

    Source: Ahmadian et al. 2024, arXiv 2402.14740, equation 8.
    """
    centred, _, size = _centred(rewards, valid)
    return torch.where(size > 1, centred * size / (size - 1.0).clamp(min=1.0), 0.0)


def overlong_punishment(lengths: Tensor, L_max: int, L_cache: int) -> Tensor:
    """DAPO's soft punishment, added to the reward, of completions near the budget; in [-1, 0].

    0 up to ``L_max - L_cache`` steps, then linear, -1 from ``L_max`` on. Source: Yu et al. 2025,
    arXiv 2503.14476, equation 13.
    """
    over = lengths.double() - (L_max - L_cache)
    return -(over / L_cache).clamp(0.0, 1.0)


def has_spread(rewards: Tensor, valid: Tensor | None = None) -> Tensor:
    """Groups [P] whose rewards differ: the ones that have a gradient (DAPO's dynamic sampling)."""
    centred, _, _ = _centred(rewards, valid)
    return (centred != 0).any(-1)


@dataclass(frozen=True)
class GroupCredit:
    """The GRPO family's credit: rewards [P, K] to the fields of their completions.

    Gives ``advantage`` [P, K], ``finished`` [P, K] (1.0 where a completion ended by itself) and,
    with ``dynamic_sampling``, ``keep`` [P, K]: 0 for groups without spread, which then have no
    weight. With ``L_cache`` > 0 the overlong punishment is added to the rewards first.
    """

    scale: Literal["group", "none"] = "group"
    eps_std: float = 1e-4
    L_max: int = 256
    L_cache: int = 0
    dynamic_sampling: bool = False

    def __call__(self, reward: Tensor, *, lengths: Tensor, finished: Tensor) -> dict[str, Tensor]:
        valid = lengths > 0
        # Spread is of the judge's rewards: lengths alone are no signal of what is right.
        keep = has_spread(reward, valid)
        if self.L_cache > 0:
            reward = reward + overlong_punishment(lengths, self.L_max, self.L_cache).to(reward)
        fields = {
            "advantage": group_advantages(reward, self.scale, self.eps_std, valid),
            "finished": finished.to(reward.dtype),
        }
        if self.dynamic_sampling:
            fields["keep"] = keep.to(reward.dtype).unsqueeze(-1).expand_as(reward)
        return fields
