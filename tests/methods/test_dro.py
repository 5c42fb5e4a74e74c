"""dro against its card, and the scale of its scores."""

import numpy as np
import pytest

from polyalign import objective
from polyalign.errors import DataError, OptionError
from polyalign.feedback.records import Scored
from polyalign.loops.scaling import StandardiseScores
from polyalign.methods import get
from tests.methods.by_hand import close

DRAW = np.random.default_rng(3)
STEPS = {
    "logp": -DRAW.uniform(0.1, 2, (4, 5)),
    "ref": -DRAW.uniform(0.1, 2, (4, 5)),
    "value": DRAW.normal(size=(4, 5)),
    "mask": np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 1, 0]]),
    "r": DRAW.normal(size=4),
}


@pytest.mark.parametrize("values", ["token", "prompt"])
def test_dros_two_gradients_are_the_cards(values):
    tau, mask = 0.7, STEPS["mask"].astype(bool)
    count = len(mask)
    loss, by_logp, by_value = np.zeros(count), np.zeros((count, 5)), np.zeros((count, 5))
    for i in range(count):
        at = np.flatnonzero(mask[i])[: None if values == "token" else 1]
        ratio = (STEPS["logp"] - STEPS["ref"])[i, mask[i]].sum()
        e = STEPS["r"][i] - STEPS["value"][i, at] - tau * ratio
        loss[i] = 0.5 * (e**2).mean()
        by_value[i, at] = -e / len(at) / count
        by_logp[i, mask[i]] = -e.mean() / count  # -mean_i e_i grad log pi, after division by tau
    value = objective("dro", update="value", tau=tau, values=values)(STEPS)
    policy = objective("dro", update="policy", tau=tau, values=values)(STEPS)
    close(value.per_unit, loss)
    close(value.gradients["value"], by_value)
    close(policy.per_unit, loss / tau)
    close(policy.gradients["logp"], by_logp)
    assert (value.gradients["logp"] == 0).all()
    assert (policy.gradients["value"] == 0).all()


def test_a_value_of_the_prompt_is_the_same_at_every_token():
    one = {"lp": [-1.0, -2.0], "rf": [-1.5, -1.0], "r": [1.0, 0.0], "value": [0.2, 0.1]}
    close(objective("dro")(one).value, objective("dro", values="prompt")(one).value)
    e = np.array([1.0, 0.0]) - np.array([0.2, 0.1]) - np.array([0.5, -1.0])
    close(objective("dro", update="value")(one).per_unit, e**2 / 2)


def test_dros_residual_vanishes_at_the_tilted_reference_for_any_behaviour():
    tau, reward = 0.6, np.array([1.0, -0.5, 0.3])
    ref = np.log([0.2, 0.5, 0.3])
    value = tau * np.log(np.exp(ref + reward / tau).sum())
    policy = ref + (reward - value) / tau
    a = {"lp": policy, "rf": ref, "r": reward, "value": np.full(3, value)}
    for weight in ([1.0, 1.0, 1.0], [5.0, 0.1, 2.0]):
        result = objective("dro", tau=tau)(a, weight=weight)
        close(result.value, 0.0, 1e-20)
        close(result.gradients["lp"], 0.0, 1e-12)


def test_two_answers_of_one_prompt_cancel_the_value():
    a = {"lp": [-1.0, -2.0], "rf": [-1.5, -1.0], "r": [1.0, 0.3], "value": [7.0, 7.0]}
    g = objective("dro", update="policy", tau=0.5)(a).gradients["lp"] * -2
    close(g[0] - g[1], (1.0 - 0.3) - 0.5 * (0.5 - (-1.0)))


def test_at_response_level_dros_residual_is_oreos():
    arrays = {k: v for k, v in STEPS.items() if k != "r"} | {"reward": STEPS["r"]}
    oreo = objective("oreo", update="value", beta=0.7, level="response", alpha=0)(arrays)
    dro = objective("dro", update="value", tau=0.7, values="prompt")(arrays)
    close(dro.per_unit, oreo.per_unit / 2)


class Here:
    """The part of a loop's context that the step reads."""

    def __init__(self, records):
        self.session = type("Session", (), {"records": records})()


def scored(*scores, weight=1.0):
    return Scored(
        key=str(scores), prompt="p", completions=("a",) * len(scores), scores=scores, weight=weight
    )


def test_scores_are_standardised_over_the_training_records_with_their_weights():
    records = [scored(1.0, 3.0), scored(8.0, weight=2.0)]
    made = StandardiseScores()(records, Here(records))
    flat, weight = np.array([1.0, 3.0, 8.0]), np.array([1.0, 1.0, 2.0])
    mean = (flat * weight).sum() / 4
    spread = np.sqrt((weight * (flat - mean) ** 2).sum() / 4)
    close([*made[0].scores, *made[1].scores], (flat - mean) / spread)
    held = StandardiseScores()([scored(4.0)], Here(records))
    close(held[0].scores, [(4.0 - mean) / spread])


def test_equal_scores_cannot_be_standardised():
    records = [scored(2.0), scored(2.0)]
    with pytest.raises(DataError, match="All 2 scores are equal") as caught:
        StandardiseScores()(records, Here(records))
    assert "standardise=false" in caught.value.mend


def test_dro_asks_for_its_reward_and_its_temperature_is_positive():
    with pytest.raises(OptionError, match="needs the array 'reward'"):
        objective("dro")(lp=[-1.0], rf=[-1.0], value=[0.0])
    with pytest.raises(OptionError, match="dro: tau="):
        get("dro")(tau=0)
