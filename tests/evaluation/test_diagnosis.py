import math
import random

import pytest

from polyalign.evaluation.diagnosis import advise, series


def history(n=60, noise=0.0, **curves):
    """Rows of n steps; a curve is a function of progress in [0, 1]."""
    draw = random.Random(0)
    return [
        {
            "step": i + 1,
            "split": "train",
            "epoch": 2 * i / n,
            **{
                name.replace("__", "/"): curve(i / (n - 1)) + draw.gauss(0, noise)
                for name, curve in curves.items()
            },
        }
        for i in range(n)
    ]


def codes(rows, samples=()):
    return [advice.code for advice in advise(rows, samples)]


healthy = {
    "loss": lambda t: 0.69 - 0.3 * t,
    "grad_norm": lambda t: 2.0,
    "rewards__chosen": lambda t: 0.5 * t,
    "rewards__rejected": lambda t: -0.5 * t,
    "logps__chosen": lambda t: -100 + 5 * t,
    "logps__rejected": lambda t: -100 - 5 * t,
    "rewards__accuracies": lambda t: 0.5 + 0.3 * t,
}


def test_a_healthy_run_gets_no_advice():
    assert advise(history(noise=0.02, **healthy)) == []


def test_nothing_and_nearly_nothing_give_no_advice():
    assert advise([]) == []
    assert advise([{"step": 1}]) == []
    assert advise(history(n=3, **healthy)) == []


def test_both_log_probabilities_falling_is_displacement_in_plain_words():
    curves = healthy | {
        "rewards__chosen": lambda t: -1.0 * t,
        "rewards__rejected": lambda t: -2.0 * t,
        "logps__chosen": lambda t: -100 - 30 * t,
        "logps__rejected": lambda t: -100 - 60 * t,
    }
    (advice,) = advise(history(noise=0.05, **curves))
    assert advice.code == "displacement"
    assert advice.step == 60
    assert "both become less likely (by 2" in advice.text
    assert "lower learning rate" in advice.text


def test_displacement_is_seen_without_a_reference_when_it_stands_out_from_the_noise():
    curves = {
        "loss": healthy["loss"],
        "logps__chosen": lambda t: -100 - 30 * t,
        "logps__rejected": lambda t: -100 - 60 * t,
    }
    rows = history(noise=5, **curves)
    for i, row in enumerate(rows):
        row["loss"] = 0.69 - 0.005 * i
    assert codes(rows) == ["displacement"]


def test_the_noise_of_ever_new_batches_is_not_displacement():
    curves = {
        "loss": healthy["loss"],
        "logps__chosen": lambda t: -100,
        "logps__rejected": lambda t: -100,
    }
    assert codes(history(noise=0.02, **curves)) == []
    far_apart = history(noise=40, **{k: v for k, v in curves.items() if k != "loss"})
    assert codes(far_apart) in ([], ["no-learning"])


def test_evaluation_rows_decide_on_displacement_where_there_are_some():
    rows = history(noise=0.02, **healthy)
    for i in range(3):
        rows.append({"step": 20 * i, "split": "eval", "eval_rewards/chosen": -0.2 * i,
                     "eval_rewards/rejected": -0.5 * i})  # fmt: skip
    assert codes(rows) == ["displacement"]


def test_a_rising_chosen_reward_is_no_displacement():
    curves = healthy | {"logps__chosen": lambda t: -100 - 30 * t}
    assert codes(history(noise=0.02, **curves)) == []


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_told_with_its_step(name, value):
    rows = history(noise=0.02, **healthy)
    rows[30][name] = value
    (advice,) = advise(rows)
    assert (advice.code, advice.step) == ("divergence", 31)


def test_an_exploding_gradient_with_climbing_loss_is_divergence():
    rows = history(noise=0.01, **healthy)
    for row in rows[-3:]:
        row["grad_norm"], row["loss"] = 80.0, 9.0
    assert codes(rows) == ["divergence"]


def test_one_large_gradient_is_forgiven():
    rows = history(noise=0.01, **healthy)
    rows[-1]["grad_norm"] = 80.0
    assert codes(rows) == []


def test_a_large_divergence_from_the_reference_is_told():
    assert codes(history(noise=0.02, **healthy, kl=lambda t: 40 * t)) == ["kl"]
    assert codes(history(noise=0.02, **healthy, kl=lambda t: 4 * t)) == []


def test_accuracy_at_a_coins_after_an_epoch_is_no_learning():
    curves = healthy | {"rewards__accuracies": lambda t: 0.5}
    (advice,) = advise(history(noise=0.1, **curves))
    assert advice.code == "no-learning"
    assert "a coin also reaches" in advice.text


def test_few_pairs_that_cannot_tell_learning_from_a_coin_say_nothing():
    few = history(noise=0.02, **healthy)[:20]
    for i, row in enumerate(few):
        row["rewards/accuracies"] = (0.375, 0.5, 0.625, 0.875)[i % 4]
        row["epoch"] = (i + 1) / 20
    assert "no-learning" not in codes(few)


def test_accuracy_at_a_coins_is_forgiven_at_the_start():
    curves = healthy | {"rewards__accuracies": lambda t: 0.5}
    assert codes(history(noise=0.1, **curves)[:25]) == []


def test_a_flat_loss_is_no_learning_and_a_falling_one_is_learning():
    assert codes(history(noise=0.1, loss=lambda t: 2.0)) == ["no-learning"]
    assert codes(history(noise=0.1, loss=lambda t: 2.0 - t)) == []


def test_a_flat_loss_with_a_rising_reward_is_learning():
    rows = history(noise=0.02, loss=lambda t: 0.0, reward=lambda t: t, reward_std=lambda t: 0.4)
    assert codes(rows) == []


def test_held_out_loss_that_rises_while_training_loss_falls_is_overfitting():
    rows = history(noise=0.01, **healthy)
    for step, loss in [(10, 0.66), (20, 0.6), (30, 0.64), (40, 0.7), (50, 0.8)]:
        rows.append({"step": step, "split": "eval", "eval_loss": loss})
    (advice,) = advise(rows)
    assert (advice.code, advice.step) == ("overfitting", 20)


def test_held_out_loss_that_wobbles_at_its_best_is_not_overfitting():
    rows = history(noise=0.01, **healthy)
    for step, loss in [(10, 0.66), (20, 0.600), (30, 0.604), (40, 0.603)]:
        rows.append({"step": step, "split": "eval", "eval_loss": loss})
    assert codes(rows) == []


@pytest.mark.parametrize(
    ("end", "word"), [(300, "longer"), (40, "shorter"), (110, None), (90, None)]
)
def test_length_drift_is_told_in_its_direction(end, word):
    curves = {
        "reward": lambda t: t,
        "completions__mean_length": lambda t: 100 + (end - 100) * t,
    }
    found = [a.text for a in advise(history(**curves)) if a.code == "length"]
    assert [word in text for text in found] == ([True] if word else [])


def test_equal_rewards_leave_nothing_to_learn_from():
    rows = history(reward=lambda t: t, reward_std=lambda t: 0.3 if t < 0.5 else 0.0)
    assert codes(rows) == ["no-spread"]


def test_looping_samples_are_told_unless_they_looped_before():
    good = "a perfectly usual answer that ends"
    loop = "and so on " * 20
    rows = [{"before": good, "after": loop}] * 2 + [{"before": good, "after": good}] * 2
    assert codes([], rows) == ["degenerate"]
    assert codes([], [{"before": loop, "after": loop}] * 4) == []
    assert codes([], [{"before": good, "after": ""}] * 4) == ["degenerate"]


def test_series_keeps_training_and_evaluation_apart():
    rows = [
        {"step": 1, "split": "train", "loss": 1.0},
        {"step": 1, "split": "eval", "eval_loss": 2.0, "loss": 9.0},
        {"step": 2, "split": "train", "loss": None},
    ]
    assert series(rows, "loss") == [(1, 1.0)]
    assert series(rows, "eval_loss") == [(1, 2.0)]


def test_advice_names_no_method():
    text = " ".join(
        advice.text for rows in [history(noise=0.1, loss=lambda t: 2.0)] for advice in advise(rows)
    )
    assert not {"dpo", "simpo", "kto", "grpo", "ppo"} & set(text.lower().split())
