"""Parts of pairwise losses that bend, discount and offset: their shapes and symmetries."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyalign.objectives import (
    AlphaPower,
    ChosenShortfall,
    DiscountedLogRatio,
    JensenShannon,
    LengthGap,
    LogRatioModulated,
    Pairwise,
    Shaped,
    SoftReferenceGap,
    SumLogRatio,
    TwoWinners,
    reduce,
)
from polyalign.types import Scores

U, T = 4, 6


def scores(seed=0, roles=("chosen", "rejected")):
    draw = torch.Generator().manual_seed(seed)
    n = U * len(roles)
    mask = torch.rand(n, T, generator=draw) < 0.6
    mask[:, 2] = True
    logp, ref = (
        torch.where(mask, -2 * torch.rand(n, T, generator=draw, dtype=torch.float64), 0.0)
        for _ in range(2)
    )
    return Scores(
        logp=logp.requires_grad_(),
        mask=mask,
        weight=torch.ones(U),
        roles={role: torch.arange(U) + i * U for i, role in enumerate(roles)},
        refs={"ref": ref},
    )


def swapped(s):
    roles = {"chosen": s.roles["rejected"], "rejected": s.roles["chosen"]}
    return replace(s, roles=roles)


def at(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@given(st.floats(-3, 3), st.floats(-8, 8), st.floats(1e-3, 3))
def test_powers_increase_through_the_origin_with_their_slope(alpha, h, more):
    shape, x = AlphaPower(alpha), at(h)
    value = shape(x)
    value.backward()
    assert shape(at(0.0)).item() == 0
    assert shape(x + more).item() > value.item()
    assert x.grad.item() == pytest.approx(math.exp(-alpha * h), rel=1e-9)


@given(st.floats(-8, 8), st.floats(0.01, 3))
def test_a_power_and_its_negative_are_mirror_images(h, alpha):
    one, other = AlphaPower(alpha)(at(h)), AlphaPower(-alpha)(at(-h))
    assert one.item() == pytest.approx(-other.item(), rel=1e-9, abs=1e-12)


@given(st.floats(-1e4, 1e4), st.floats(-9, 9))
def test_powers_and_their_slopes_are_finite_in_float32(h, alpha):
    x = torch.tensor(h, requires_grad=True)
    value = AlphaPower(alpha)(x)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad)


@given(st.floats(-8, 8))
def test_the_jensen_shannon_shape_passes_the_origin_with_half_the_slope(h):
    x = at(h)
    value = JensenShannon()(x)
    value.backward()
    assert JensenShannon()(at(0.0)).item() == pytest.approx(0, abs=1e-15)
    assert value.item() == pytest.approx(math.log(2 / (1 + math.exp(-h))), abs=1e-12)
    assert x.grad.item() == pytest.approx(1 / (1 + math.exp(h)), rel=1e-9)


@given(st.integers(0, 50), st.floats(0, 1))
def test_swapping_a_pair_negates_its_discounted_difference(seed, beyond):
    s = scores(seed)
    w, l = s["chosen"], s["rejected"]  # noqa: E741
    reward = DiscountedLogRatio(beyond)
    forth = reward(w, l) - reward(l, w)
    other = swapped(s)
    back = reward(other["chosen"], other["rejected"]) - reward(other["rejected"], other["chosen"])
    torch.testing.assert_close(forth, -back)


@given(st.integers(0, 50))
def test_a_discount_leaves_the_shorter_answer_and_lies_between_all_and_nothing(seed):
    s = scores(seed)
    w, l = s["chosen"], s["rejected"]  # noqa: E741
    whole, half, none = (DiscountedLogRatio(b)(w, l) for b in (1.0, 0.5, 0.0))
    torch.testing.assert_close(whole, SumLogRatio()(w, l))
    torch.testing.assert_close(half, 0.5 * (whole + none))
    shorter = w.lengths <= l.lengths
    torch.testing.assert_close(none[shorter], whole[shorter])


@given(st.integers(0, 50), st.floats(-2, 2))
def test_swapping_a_pair_negates_its_length_gap(seed, scale):
    s = scores(seed)
    other = swapped(s)
    gap = LengthGap(scale)
    torch.testing.assert_close(
        gap(s["chosen"], s["rejected"]), -gap(other["chosen"], other["rejected"])
    )


@given(st.integers(0, 50))
def test_what_an_answer_has_lost_is_never_negative_and_nothing_at_the_reference(seed):
    s = scores(seed)
    assert (ChosenShortfall(3.0)(s["chosen"], s["rejected"]) >= 0).all()
    same = replace(s, logp=s.refs["ref"].clone().requires_grad_())
    lost = ChosenShortfall(3.0)(same["chosen"], same["rejected"])
    assert (lost == 0).all()
    assert (torch.autograd.grad(lost.sum(), same.logp)[0] == 0).all()


@given(st.integers(0, 50))
def test_the_references_soft_gap_is_above_its_gap_and_above_zero_and_has_no_gradient(seed):
    s = scores(seed)
    w, l = s["chosen"], s["rejected"]  # noqa: E741
    margin = SoftReferenceGap(2.0)(w, l)
    assert (margin > 0).all()
    assert (margin > 2.0 * (w.mean(w.refs["ref"]) - l.mean(l.refs["ref"]))).all()
    assert not margin.requires_grad


@given(st.floats(-1e4, 1e4), st.floats(0.01, 10))
def test_the_modulated_loss_is_positive_and_finite_in_float32_with_its_slope(z, tau):
    x = torch.tensor(z, requires_grad=True)
    value = LogRatioModulated(tau)(x, scores())
    value.backward()
    assert value >= 0
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad)


def test_a_shaped_reward_needs_what_its_reward_needs():
    assert Shaped(SumLogRatio(), JensenShannon()).needs == SumLogRatio().needs
    assert Pairwise(SumLogRatio(), margin=SoftReferenceGap(1.0)).needs.references == {"ref"}


def test_two_winners_at_either_end_are_a_pair():
    s = scores(3, ("chosen", "rejected", "source_chosen"))
    for share, winner in ((0.0, "chosen"), (1.0, "source_chosen")):
        pair = replace(s, roles={**s.roles, "chosen": s.roles[winner]})
        one, other = TwoWinners(share, 0.3)(s, {}), Pairwise(SumLogRatio(), scale=0.3)(pair, {})
        torch.testing.assert_close(reduce(one), reduce(other))
        torch.testing.assert_close(
            torch.autograd.grad(reduce(one), s.logp)[0],
            torch.autograd.grad(reduce(other), s.logp)[0],
        )
