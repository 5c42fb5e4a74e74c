"""grpo and its refinements against the card."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import NumericsError, OptionError
from tests.methods.by_hand import close

N, T = 6, 5
DRAW = np.random.default_rng(0)
MASK = (np.arange(T) < np.array([5, 2, 3, 4, 1, 5])[:, None]).astype(float)
LENGTH = MASK.sum(1, keepdims=True)
OLD = -DRAW.uniform(0.2, 2, (N, T))
A = {
    "logp": OLD + DRAW.normal(0, 0.3, (N, T)),
    "old": OLD,
    "ref": OLD + DRAW.normal(0, 0.3, (N, T)),
    "mask": MASK,
    "rewards": np.array([[1.0, 0.0, 0.5], [0.0, 2.0, 1.0]]),
}


def advantages(rewards, eps=1e-4, scale=True):
    centred = rewards - rewards.mean(1, keepdims=True)
    if scale:
        centred = centred / (rewards.std(1, ddof=1, keepdims=True) + eps)
    return centred.reshape(-1, 1)


def clipped(rho, adv, low, high, delta=None):
    """-min(rho A, clip(rho) A) and its derivative by rho."""
    free = rho if delta is None else np.minimum(rho, delta)
    cut = np.clip(rho, 1 - low, 1 + high)
    use_free = free * adv <= cut * adv
    moves = use_free & ((delta is None) | (rho < (delta or np.inf)))
    inside = ~use_free & (rho > 1 - low) & (rho < 1 + high)
    return -np.minimum(free * adv, cut * adv), -adv * (moves | inside)


def aggregated(token, aggregation, L_max=10):
    weights = {
        "grpo": MASK / (N * LENGTH),
        "dapo": MASK / MASK.sum(),
        "dr_grpo": MASK / (N * L_max),
    }[aggregation]
    return (token * weights).sum(), weights


@pytest.mark.parametrize("aggregation", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("delta", [None, 1.5])
def test_token_level_losses_and_gradients_are_the_cards(aggregation, delta):
    beta, low, high = 0.1, 0.15, 0.25
    adv = advantages(A["rewards"], scale=aggregation != "dr_grpo")
    rho = np.exp(A["logp"] - A["old"])
    surrogate, slope = clipped(rho, adv, low, high, delta)
    r = A["ref"] - A["logp"]
    token = surrogate + beta * (np.exp(r) - r - 1)
    value, weights = aggregated(token, aggregation)
    result = objective(
        "grpo",
        aggregation=aggregation,
        beta=beta,
        eps_low=low,
        eps_high=high,
        delta=delta,
        L_max=10,
    )(A)
    close(result.value, value)
    close(result.gradients["logp"], weights * (slope * rho + beta * (1 - np.exp(r))))
    close(result.metrics["kl"], ((np.exp(r) - r - 1) * MASK).sum() / MASK.sum())
    share = ((slope == 0) * (adv != 0) * MASK).sum() / MASK.sum()
    close(result.metrics["clip_ratio/region"], share)
    assert 0 < share < 1


@pytest.mark.parametrize("level", ["sequence", "sequence-token"])
def test_gspo_loss_and_gradient_are_the_cards(level):
    adv = advantages(A["rewards"])
    s = np.exp(((A["logp"] - A["old"]) * MASK).sum(1, keepdims=True) / LENGTH)
    low, high = 0.05, 0.05
    value, slope = clipped(s, adv, low, high)
    result = objective("grpo", level=level, aggregation="gspo", eps_low=low, eps_high=high, beta=0)(
        {k: v for k, v in A.items() if k != "ref"}
    )
    close(result.value, value.mean())
    close(result.gradients["logp"], slope * s * MASK / LENGTH / N)


def test_T21_the_sequence_ratio_is_not_the_token_ratio():
    plain = {k: v for k, v in A.items() if k != "ref"}
    sequence = objective("grpo", level="sequence", aggregation="gspo", beta=0)(plain).value
    assert abs(sequence - objective("grpo", beta=0)(plain).value) > 1e-3


@pytest.mark.parametrize("eps_max", [1.2, 1e9])
def test_cispo_gradient_is_the_advantage_times_the_capped_ratio(eps_max):
    adv, rho = advantages(A["rewards"]), np.exp(A["logp"] - A["old"])
    result = objective("grpo", surrogate="cispo", aggregation="dapo", eps_max=eps_max, beta=0)(A)
    capped = np.minimum(rho, eps_max)
    close(result.value, (-capped * adv * A["logp"] * MASK).sum() / MASK.sum())
    # With a cap out of reach this is the unclipped importance-weighted policy gradient.
    close(result.gradients["logp"], -adv * capped * MASK / MASK.sum())


def on_policy(**more):
    return {k: v for k, v in A.items() if k != "ref"} | {"logp": A["old"]} | more


def test_on_policy_the_loss_is_minus_the_mean_advantage_and_the_gradient_is_the_policys():
    result = objective("grpo", beta=0)(on_policy())
    adv = advantages(A["rewards"])
    close(result.value, 0, 1e-12)
    close(result.gradients["logp"], -adv * MASK / (N * LENGTH))
    assert result.metrics["clip_ratio/region"] == 0
    dr = objective("grpo", beta=0, aggregation="dr_grpo", L_max=7)(on_policy())
    close(dr.gradients["logp"], -advantages(A["rewards"], scale=False) * MASK / (N * 7))


def test_T24_the_ratio_is_built_from_the_sampling_law():
    # exp(logp - logp.detach()) would be 1 and would never clip.
    far = on_policy(logp=A["old"] + 1.0)
    result = objective("grpo", beta=0)(far)
    adv = np.broadcast_to(advantages(A["rewards"]), MASK.shape)
    assert (result.gradients["logp"][(adv > 0) & (MASK > 0)] == 0).all()
    assert result.metrics["clip_ratio/high"] > 0


@pytest.mark.parametrize(
    ("advantage", "rho", "delta", "moves"),
    [
        (1.0, 1.5, None, False),
        (1.0, 0.5, None, True),
        (-1.0, 0.5, None, False),
        (-1.0, 9.0, None, True),
        (-1.0, 9.0, 4.0, False),
    ],
)
def test_the_clip_stops_exactly_the_gradients_it_should(advantage, rho, delta, moves):
    result = objective("grpo", beta=0, delta=delta)(
        logp=[[np.log(rho)]], old=[[0.0]], advantage=[advantage]
    )
    assert (result.gradients["logp"][0, 0] != 0) == moves


def test_the_aggregations_coincide_on_equal_lengths():
    even = on_policy(mask=np.ones((N, T)), logp=A["logp"])
    values = [objective("grpo", beta=0, aggregation=a)(even).value for a in ("grpo", "dapo")]
    close(values[0], values[1])


def test_dr_grpo_is_the_leave_one_out_gradient_times_G_minus_1_over_G():
    even = on_policy(mask=np.ones((N, T)))
    result = objective("grpo", beta=0, aggregation="dr_grpo", L_max=T)(even)
    r = A["rewards"]
    others = (r.sum(1, keepdims=True) - r) / 2
    rloo = -(r - others).reshape(-1, 1) / N * np.ones((N, T))
    close(result.gradients["logp"], (2 / 3) * rloo / T)


def test_T7_dr_grpo_divides_by_the_budget_and_not_by_the_padded_width():
    wide = {k: np.pad(v, ((0, 0), (0, 4))) for k, v in A.items() if k != "rewards"}
    dr = objective("grpo", aggregation="dr_grpo", L_max=20)
    close(dr(wide, rewards=A["rewards"]).value, dr(A).value)


@given(st.floats(0.1, 50), st.floats(-50, 50))
@settings(max_examples=25, deadline=None)
def test_advantages_do_not_see_affine_changes_of_the_reward(a, b):
    scaled = objective("grpo", beta=0, eps_std=0)
    close(scaled(on_policy(rewards=a * A["rewards"] + b)).gradients["logp"],
          scaled(on_policy()).gradients["logp"], 1e-6)  # fmt: skip
    shifted = objective("grpo", beta=0, scale="none")
    close(shifted(on_policy(rewards=A["rewards"] + b)).gradients["logp"],
          shifted(on_policy()).gradients["logp"], 1e-6)  # fmt: skip


def test_equal_rewards_have_no_gradient_at_all():
    result = objective("grpo", beta=0)(on_policy(rewards=np.full((2, 3), 0.1)))
    assert (result.gradients["logp"] == 0).all()


def law(logits):
    p = np.exp(logits - logits.max())
    return p / p.sum()


def test_T19_T20_k3_is_unbiased_in_value_and_its_correction_in_gradient():
    # A vocabulary of three, enumerated: the expectation over the sampling law is a weighted sum.
    theta, mu, ref = (
        law(np.array([0.2, -0.5, 0.9])),
        law(np.array([0.0, 0.3, 0.1])),
        law(np.array([-0.4, 0.5, 0.0])),
    )
    arrays = {"logp": np.log(theta)[:, None], "ref": np.log(ref)[:, None], "advantage": np.zeros(3)}
    kl = (theta * np.log(theta / ref)).sum()
    on = objective("grpo", beta=1.0)(arrays, old=arrays["logp"], weight=theta)
    close(on.value, kl)
    close(on.metrics["kl"], kl)  # what is reported is what is optimised
    close(on.gradients["logp"][:, 0], theta * (1 - ref / theta))
    off = objective("grpo", beta=1.0, kl_correction=True)(
        arrays, old=np.log(mu)[:, None], weight=mu
    )
    close(off.value, kl)
    # d/dlogits sum_v theta (log theta - log ref), by the chain rule through the softmax.
    exact = theta * (np.log(theta / ref) - kl)
    per_logp = off.gradients["logp"][:, 0]
    close(per_logp - theta * per_logp.sum(), exact)


def test_k3_is_zero_exactly_where_policy_is_reference():
    result = objective("grpo", beta=1.0)(dict(A, ref=A["logp"], rewards=np.zeros((2, 3))))
    assert result.value == 0
    assert (result.gradients["logp"] == 0).all()


def test_T27_masked_numbers_that_are_not_finite_do_not_leak():
    dirty = {k: v.copy() for k, v in A.items()}
    for name in ("logp", "old", "ref"):
        dirty[name][MASK == 0] = np.nan
    close(objective("grpo")(dirty).value, objective("grpo")(A).value)
    assert np.isfinite(objective("grpo")(dirty).gradients["logp"]).all()


def test_T27_rows_without_steps_shift_no_baseline_and_divide_by_nothing():
    empty = MASK.copy()
    empty[0] = 0
    g = objective("grpo", beta=0, scale="none")(on_policy(mask=empty)).gradients["logp"]
    close(g[1, 0], -(0.0 - 0.25) / (N * 2))  # the mean of (0, 0.5) and not of (1, 0, 0.5)
    nothing = objective("grpo", aggregation="dapo")(dict(A, mask=np.zeros((N, T))))
    assert nothing.value == 0


def test_overlong_filtering_masks_unfinished_rows_and_still_counts_them():
    finished = np.array([1, 1, 0, 1, 1, 1])
    g = objective("grpo", beta=0, drop_truncated=True)(on_policy(finished=finished))
    full = objective("grpo", beta=0)(on_policy()).gradients["logp"]
    close(g.gradients["logp"], full * finished[:, None])


def test_dynamic_sampling_gives_groups_without_spread_no_weight():
    rewards = np.array([[1.0, 0.0, 0.5], [1.0, 1.0, 1.0]])
    kept = objective("grpo", beta=0.1, dynamic_sampling=True)(dict(A, rewards=rewards))
    first = {k: v[:3] for k, v in A.items() if k != "rewards"}
    close(kept.value, objective("grpo", beta=0.1)(first, rewards=rewards[:1]).value)


def test_the_overlong_punishment_enters_the_reward():
    rewards = np.zeros((2, 3))
    lengths = MASK.sum(1).reshape(2, 3)
    punished = rewards - np.clip((lengths - 2) / 3, 0, 1)
    adv = advantages(punished, scale=False)
    g = objective("grpo", beta=0, scale="none", L_max=5, L_cache=3)(on_policy(rewards=rewards))
    close(g.gradients["logp"], -adv * MASK / (N * LENGTH))


def test_advantages_may_come_by_step():
    by_step = DRAW.normal(0, 1, (N, T))
    g = objective("grpo", beta=0)(
        {k: v for k, v in on_policy().items() if k != "rewards"}, advantage=by_step
    )
    close(g.gradients["logp"], -by_step * MASK / (N * LENGTH))


def test_what_the_card_refuses_is_refused():
    with pytest.raises(NumericsError, match="each group has one"):
        objective("grpo")(dict(A, rewards=np.zeros((6, 1))))
    with pytest.raises(OptionError, match="G=1 is not allowed"):
        objective("grpo", G=1)
    with pytest.raises(OptionError, match="aggregation='mean' is not allowed"):
        objective("grpo", aggregation="mean")
    with pytest.raises(OptionError, match="eps_low=1.0 is not allowed"):
        objective("grpo", eps_low=1.0)
    with pytest.raises(OptionError, match="needs the array 'advantage'"):
        objective("grpo")({k: v for k, v in A.items() if k != "rewards"})
    with pytest.raises(NumericsError, match="5 steps, more than L_max=4"):
        objective("grpo", aggregation="dr_grpo", L_max=4)(A)
    with pytest.raises(OptionError, match="needs one ratio a row"):
        objective("grpo", aggregation="gspo")
    with pytest.raises(OptionError, match="delta=1.1 would cut"):
        objective("grpo", delta=1.1)
