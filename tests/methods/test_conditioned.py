"""reward-augmented and offline-rlhf against their cards: their data, and their losses by hand."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import DataError, OptionError, PolyalignWarning
from polyalign.feedback.conditioning import (
    Condition,
    Goals,
    RewardInPrompt,
    both_goals,
    conditioned,
)
from polyalign.feedback.records import Demonstration, Pair, Scored
from polyalign.feedback.rewarded import BestAnswer, EachAnswer, KeepBest
from polyalign.methods import get
from tests.methods.by_hand import close, sig


class Trained:
    """A data step's context: what is being trained on."""

    def __init__(self, records):
        self.session = self
        self.records = records


def pair(key, s_w, s_l, prompt="Say hi."):
    fields = {"score_chosen": s_w, "score_rejected": s_l}
    return Pair(key=key, prompt=prompt, chosen="Hi!", rejected="Go.", fields=fields)


def scored(*scores, key="q"):
    answers = tuple(f"answer {i}" for i in range(len(scores)))
    return Scored(key=key, prompt="Say hi.", completions=answers, scores=scores)


TURNS = ({"role": "user", "content": "Say hi."},)


@pytest.mark.parametrize(
    ("place", "text", "turns"),
    [
        ("system", "C\n\nSay hi.", ({"role": "system", "content": "C"}, *TURNS)),
        ("user", "C\n\nSay hi.", ({"role": "user", "content": "C\n\nSay hi."},)),
        ("end", "Say hi.C", ({"role": "user", "content": "Say hi.C"},)),
    ],
)
def test_a_condition_is_written_where_it_is_said(place, text, turns):
    assert conditioned("Say hi.", "C", place) == text
    assert conditioned(TURNS, "C", place) == turns
    assert TURNS[0]["content"] == "Say hi."


def test_a_condition_joins_a_system_message_that_is_there():
    whole = ({"role": "system", "content": "Be brief."}, *TURNS)
    assert conditioned(whole, "C")[0]["content"] == "Be brief.\n\nC"
    assert len(conditioned(whole, "C")) == 2


def test_a_condition_cannot_be_written_into_numbers():
    with pytest.raises(DataError, match="can only be written into text"):
        conditioned(3, "C")


def test_each_pair_becomes_two_with_swapped_answers_and_its_own_goals():
    first, second = Goals()([pair("a", 9.0, 2.5)], None)
    assert "quality is 9 on a scale from 1 to 10" in first.prompt
    assert "quality is 2.5 on" in second.prompt
    assert (first.chosen, first.rejected) == (second.rejected, second.chosen) == ("Hi!", "Go.")
    assert first.key != second.key


@given(st.floats(1, 10), st.floats(1, 10))
def test_swapping_a_pair_with_its_scores_gives_the_same_two_pairs(high, low):
    def ask(prompt, goal):
        return (prompt, goal)

    one = both_goals(pair("a", high, low), (high, low), ask)
    turned = Pair(key="a", prompt="Say hi.", chosen="Go.", rejected="Hi!")
    two = both_goals(turned, (low, high), ask)
    assert {(p.prompt, p.chosen, p.rejected) for p in one} == {
        (p.prompt, p.chosen, p.rejected) for p in two
    }


def test_pairs_that_say_nothing_about_goals_are_left_out_with_a_warning():
    records = [pair("a", 5, 5), pair("b", 2, 8), pair("c", 8, 2)]
    with pytest.warns(PolyalignWarning, match="1 have equal scores and 1 a rejected answer with"):
        assert {r.key.split("/")[0] for r in Goals()(records, None)} == {"c"}
    with pytest.warns(PolyalignWarning, match="1 have equal scores and 0"):
        assert len(Goals(consistent=False)(records, None)) == 4


@pytest.mark.parametrize("bad", [11.0, 0.0, math.nan, math.inf])
def test_scores_outside_the_scale_are_refused(bad):
    with pytest.raises(DataError, match="a: 'score_chosen' is .*no score from 1 to 10"):
        Goals()([pair("a", bad, 2)], None)


def test_missing_scores_and_impossible_goals_are_refused():
    with pytest.raises(DataError, match="a has no 'score_chosen'"):
        Goals()([Pair(key="a", prompt="x", chosen="y", rejected="z")], None)
    with pytest.raises(OptionError, match="goal=11 lies outside the scale"):
        get("reward-augmented")(goal=11)
    with pytest.raises(OptionError, match="scale from 5 to 5 is empty"):
        get("reward-augmented")(low=5, high=5)


def test_reward_augmented_loss_is_dpo_on_the_pairs_that_its_data_step_makes():
    a = {"lp_w": [-3.0], "lp_l": [-2.0], "rf_w": [-2.5], "rf_l": [-2.5]}
    close(objective("reward-augmented", beta=0.3)(a).value, objective("dpo", beta=0.3)(a).value)


SCORES = np.array([10.0, 9.0, 7.0, 4.0, 1.0])


@pytest.mark.parametrize("goal", SCORES)
def test_reward_augmented_has_no_gradient_at_the_reference_tilted_by_the_goal(goal):
    """All pairs of one prompt asked for a goal, weighted by Bradley-Terry on -(g - r)^2."""
    beta, count = 2.0, len(SCORES)
    reward = -((goal - SCORES) ** 2)
    ref = np.random.default_rng(0).normal(0, 1, count)
    optimum = ref + reward / beta  # up to a constant, which cancels in every pair
    i, j = (x.ravel() for x in np.meshgrid(range(count), range(count), indexing="ij"))
    arrays = {"lp_w": optimum[i], "lp_l": optimum[j], "rf_w": ref[i], "rf_l": ref[j]}
    weight = sig(reward[i] - reward[j]) * (i != j)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolyalignWarning)  # a response against itself, unweighted
        result = objective("reward-augmented", beta=beta)(arrays | {"weight": weight})
    by_response = np.zeros(count)
    np.add.at(by_response, i, result.gradients["lp_w"])
    np.add.at(by_response, j, result.gradients["lp_l"])
    close(by_response, 0.0, 1e-12)


def test_rewards_stand_at_the_prompts_end_with_two_decimals_and_no_minus_zero():
    ask = RewardInPrompt()
    record = Demonstration(key="a", prompt="Say hi.", completion="Hi", fields={"reward": -0.001})
    assert ask([record], None)[0].prompt == "Say hi. <rm_score>: 0.00 "
    assert ask.ask("Say hi.", 1.234) == "Say hi. <rm_score>: 1.23 "


def test_a_trained_policy_is_asked_for_a_high_quantile_or_the_target():
    rewards = [float(i) for i in range(100)]
    records = [
        Demonstration(key=str(i), prompt="p", completion="c", fields={"reward": r})
        for i, r in enumerate(rewards)
    ]
    usual = RewardInPrompt(quantile=0.95).condition(records)
    assert usual.ask("p") == "p <rm_score>: 94.00 "
    assert usual.at(12.0).ask("p") == "p <rm_score>: 12.00 "
    assert RewardInPrompt(target=50.0).condition(records).ask("p") == "p <rm_score>: 50.00 "
    with pytest.warns(PolyalignWarning, match="outside the values seen in training, 0 to 99"):
        RewardInPrompt(target=500.0).condition(records)


def test_a_condition_is_the_same_after_it_was_written_down():
    goals = Goals(goal=8.0, place="user").condition()
    again = Condition.read(json.loads(json.dumps(goals.to_json())))
    assert again == goals
    assert again.ask("Say hi.") == Goals(place="user").ask("Say hi.", 8.0)
    assert "quality is 2.5 on a scale from 1 to 10" in again.at(2.5).told()
    with pytest.raises(OptionError, match="condition 11 lies outside the scale from 1 to 10"):
        again.at(11.0)
    with pytest.raises(DataError, match="not readable"):
        Condition.read({"word": "x"})


def test_the_best_share_of_all_answers_is_kept_and_held_out_ones_by_the_same_threshold():
    records = [scored(1.0, 5.0, 3.0, key="a"), scored(4.0, 2.0, key="b")]
    kept = KeepBest(0.4)(records, Trained(records))
    assert [(r.key, r.scores) for r in kept] == [("a", (5.0,)), ("b", (4.0,))]
    held = [scored(4.5, 0.0, key="c")]
    assert KeepBest(0.4)(held, Trained(records))[0].scores == (4.5,)
    assert KeepBest(1.0)(records, Trained(records)) == records


def test_the_best_share_of_each_prompt_and_the_best_answer_alone():
    records = [scored(1.0, 5.0, 3.0, key="a"), scored(4.0, 2.0, 4.0, key="b")]
    kept = KeepBest(0.5, "prompt")(records, Trained(records))
    assert [r.scores for r in kept] == [(5.0, 3.0), (4.0, 4.0)]
    best = BestAnswer()(records, Trained(records))
    assert [(r.scores, r.completions) for r in best] == [
        ((5.0,), ("answer 1",)),
        ((4.0,), ("answer 0",)),
    ]


def test_prompts_that_lose_all_their_answers_are_told_of_and_bad_scores_refused():
    records = [scored(1.0, 2.0, key="a"), scored(8.0, 9.0, key="b")]
    with pytest.warns(PolyalignWarning, match="1 of 2 prompts have no answer among the best 0.5"):
        assert [r.key for r in KeepBest(0.5)(records, Trained(records))] == ["b"]
    with pytest.raises(DataError, match="q has a score that is not finite"):
        EachAnswer()([scored(1.0, math.nan)], None)


def test_each_answer_is_a_demonstration_with_its_reward():
    made = EachAnswer()([scored(1.0, 5.0)], None)
    assert [(d.completion, d.fields["reward"]) for d in made] == [("answer 0", 1), ("answer 1", 5)]
    assert len({d.key for d in made}) == 2


DRAW = np.random.default_rng(0)
SIZE = 5
ARRAYS = {
    "lp": -DRAW.uniform(1, 9, SIZE),
    "n": DRAW.integers(2, 6, SIZE),
    "R": DRAW.normal(0, 1, SIZE),
}


def weights(temperature, normalise="batch", clip=20.0):
    e = np.exp(ARRAYS["R"] / temperature)
    return np.minimum(e / e.mean() if normalise == "batch" else e, clip)


@pytest.mark.parametrize("normalise", ["batch", "none"])
@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
def test_rwr_loss_and_gradient_are_the_cards(reduction, normalise):
    w, clip = weights(0.7, normalise, 1.5), 1.5
    lp, n = ARRAYS["lp"], ARRAYS["n"]
    value, slope = {
        "token": (-(w * lp).sum() / n.sum(), -w / n.sum()),
        "sequence": (-(w * lp / n).mean(), -w / n / SIZE),
        "sum": (-(w * lp).mean(), -w / SIZE),
    }[reduction]
    result = objective(
        "offline-rlhf", form="rwr", temperature=0.7, normalise=normalise, clip=clip,
        reduction=reduction,
    )(ARRAYS)  # fmt: skip
    close(result.value, value)
    close(result.gradients["lp"], slope)
    close(result.metrics["weights"], w.mean())


@settings(max_examples=20)
@given(st.floats(-500, 500))
def test_rwr_ignores_a_constant_in_all_rewards_only_with_normalised_weights(constant):
    moved = dict(ARRAYS, R=ARRAYS["R"] + constant)
    rwr = objective("offline-rlhf", form="rwr", clip=1e6)
    close(rwr(moved).value, rwr(ARRAYS).value, 1e-8)
    if abs(constant) > 1e-3:
        plain = objective("offline-rlhf", form="rwr", normalise="none")
        assert plain(moved).value != plain(ARRAYS).value


def test_rwr_at_a_large_temperature_is_sft_and_at_a_small_one_the_best_answer_alone():
    sft = objective("sft")({k: ARRAYS[k] for k in ("lp", "n")})
    close(objective("offline-rlhf", form="rwr", temperature=1e9)(ARRAYS).value, sft.value, 1e-8)
    cold = objective("offline-rlhf", form="rwr", temperature=1e-3, clip=1e6)(ARRAYS)
    best = ARRAYS["R"].argmax()
    alone = np.where(np.arange(SIZE) == best, -SIZE / ARRAYS["n"].sum(), 0.0)
    close(cold.gradients["lp"], alone)


@pytest.mark.parametrize("normalise", ["batch", "none"])
def test_rwr_has_no_gradient_at_the_data_tilted_by_the_rewards(normalise):
    """One prompt, answers as often as mu says: the regularised optimum with reference mu."""
    mu, reward, temperature = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 1.0, -1.0, 2.0]), 0.8
    law = mu * np.exp(reward / temperature)
    law /= law.sum()
    rwr = objective("offline-rlhf", form="rwr", temperature=temperature, normalise=normalise)
    slope = rwr(lp=np.log(law), n=[1] * 4, R=reward, weight=mu).gradients["lp"]
    # By the logits of a softmax policy over the four answers.
    close(slope - law * slope.sum(), 0.0, 1e-12)
    assert np.abs(slope).min() > 1e-3


def test_options_that_a_form_does_not_read_are_refused():
    for form, hyper in (
        ("dt", {"keep_ratio": 0.5}),
        ("dt", {"temperature": 2.0}),
        ("filter", {"clip": 3.0}),
        ("filter", {"standardise": False}),
        ("best", {"per": "prompt"}),
        ("rwr", {"target": 1.0}),
        ("rwr", {"target_quantile": 0.5}),
        ("filter", {"normalise": "none"}),
    ):
        with pytest.raises(OptionError, match=f"{next(iter(hyper))} has no place in form={form}"):
            get("offline-rlhf")(form=form, **hyper)
    with pytest.raises(OptionError, match="target_quantile has no place beside target"):
        get("offline-rlhf")(target=1.0, target_quantile=0.5)
    for hyper in ({"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"temperature": 0.0}):
        with pytest.raises(OptionError, match="is not allowed"):
            get("offline-rlhf")(**hyper)
