"""Choosing feedback by implicit reward: what sera selects and makes."""

import math
import random

import pytest

from polyalign.errors import DataError, OptionError
from polyalign.feedback.records import Pair
from polyalign.loops.selection import Bootstrap, SelectByMargin, Together, top
from polyalign.methods import get


class Ctx:
    """Implicit rewards from tables, samples from a list; remembers who was asked."""

    def __init__(self, current, previous=None, samples=(), scale=1.0):
        self.tables = {"current": current, "previous": previous or {}}
        self.samples, self.scale, self.asked = samples, scale, []

    def implicit(self, prompts, completions, policy="current"):
        self.asked.append(policy)
        return [self.scale * self.tables[policy][p, y] for p, y in zip(prompts, completions)]

    def margins(self, pairs, policy="current"):
        prompts = [p.prompt for p in pairs]
        good = self.implicit(prompts, [p.chosen for p in pairs], policy)
        bad = self.implicit(prompts, [p.rejected for p in pairs], policy)
        return [g - b for g, b in zip(good, bad)]

    def sample(self, prompts, n, temperature):
        return [list(self.samples[:n]) for _ in prompts]


def pairs(count=10, seed=0):
    draw = random.Random(seed)
    made = [Pair(key=str(i), prompt=f"x{i}", chosen="a", rejected="b") for i in range(count)]
    table = {(p.prompt, y): draw.gauss(0, 1) for p in made for y in "ab"}
    return made, table


def margin(table, pair):
    return table[pair.prompt, pair.chosen] - table[pair.prompt, pair.rejected]


def test_the_largest_margins_stay_in_their_order():
    records, table = pairs()
    kept = SelectByMargin(keep=0.7)(records, Ctx(table))
    assert len(kept) == 7
    assert kept == sorted(kept, key=lambda p: int(p.key))
    worst = min(margin(table, p) for p in kept)
    assert all(margin(table, p) <= worst for p in records if p not in kept)


@pytest.mark.parametrize(
    ("n", "share", "kept"), [(10, 0.7, 7), (10, 0.71, 8), (3, 0.5, 2), (1, 0.1, 1)]
)
def test_the_share_is_rounded_up_and_binary_fractions_do_not_add_one(n, share, kept):
    assert len(top(list(range(n)), share)) == kept == math.ceil(round(n * share, 9))


def test_scaling_all_margins_changes_no_choice():
    records, table = pairs()
    plain = SelectByMargin(0.5, gamma=0.0)(records, Ctx(table))
    assert SelectByMargin(0.5, gamma=0.0)(records, Ctx(table, scale=17.0)) == plain


def test_the_ensemble_weighs_the_older_policy_by_gamma_and_asks_it_only_then():
    records, now = pairs(seed=1)
    _, before = pairs(seed=2)
    ctx = Ctx(now, before)
    kept = SelectByMargin(0.5, gamma=0.3)(records, ctx)
    mixed = {p.key: 0.7 * margin(now, p) + 0.3 * margin(before, p) for p in records}
    assert {p.key for p in kept} == set(sorted(mixed, key=mixed.get)[-5:])
    alone = Ctx(now)
    SelectByMargin(0.5)(records, alone)
    assert "previous" in ctx.asked
    assert "previous" not in alone.asked


def test_a_share_of_one_without_samples_is_iterated_dpo_on_the_same_data():
    records, table = pairs()
    assert Together((SelectByMargin(1.0),))(records, Ctx(table)) == records


def test_a_bootstrapped_pair_is_the_best_against_the_worst():
    records, _ = pairs(1)
    table = {("x0", y): float(v) for y, v in {"p": 1, "q": 3, "r": -2, "s": 0}.items()}
    (made,) = Bootstrap(n=4, keep=1.0, name="t1")(records, Ctx(table, samples="pqrs"))
    assert (made.chosen, made.rejected, made.key) == ("q", "r", "0/t1")


def test_ties_and_identical_texts_are_dropped():
    records, _ = pairs(2)
    tied = {(x, y): 1.0 for x in ("x0", "x1") for y in "pq"}
    assert Bootstrap(n=2, keep=1.0)(records, Ctx(tied, samples="pq")) == []
    assert Bootstrap(n=2, keep=1.0)(records, Ctx(tied, samples="pp")) == []


def test_each_prompt_is_asked_once_and_the_largest_margins_stay():
    one = [Pair(key=f"{x}{i}", prompt=x, chosen="a", rejected="b") for x in "xyz" for i in range(2)]
    gaps = {"x": 1.0, "y": 3.0, "z": 2.0}
    table = {(x, y): gaps[x] * (y == "p") for x in "xyz" for y in "pq"}
    made = Bootstrap(n=2, keep=0.5)(one, Ctx(table, samples="pq"))
    assert [m.prompt for m in made] == ["y", "z"]


def test_flipped_labels_are_rarer_among_the_kept():
    draw = random.Random(0)
    records, table, flipped = [], {}, set()
    for i in range(400):
        good, bad = draw.gauss(1, 0.5), draw.gauss(-1, 0.5)
        table[f"x{i}", "a"], table[f"x{i}", "b"] = good, bad
        flip = draw.random() < 0.25
        flipped |= {str(i)} if flip else set()
        chosen, rejected = ("b", "a") if flip else ("a", "b")
        records.append(Pair(key=str(i), prompt=f"x{i}", chosen=chosen, rejected=rejected))
    kept = SelectByMargin(0.7)(records, Ctx(table))
    assert sum(p.key in flipped for p in kept) / len(kept) < len(flipped) / 400 / 2


def test_what_cannot_be_selected_is_refused():
    records, table = pairs(2)
    with pytest.raises(DataError, match="no pairs"):
        SelectByMargin()([], Ctx(table))
    with pytest.raises(DataError, match="No example is left"):
        Together(())(records, Ctx(table))
    table["x1", "a"] = float("nan")
    with pytest.raises(DataError, match="implicit reward of example 1 is not finite"):
        SelectByMargin()(records, Ctx(table))


def test_sera_declares_its_iterations():
    stages = get("sera")(n_iter=3, n_generate=4, ensemble_gamma=0.3).stages
    assert len(stages) == 3
    assert stages[0].streams["data"].steps == ()
    (first,), (second,) = (stage.streams["data"].steps for stage in stages[1:])
    assert [step.gamma for step in first.steps] == [0.0, 0.0]  # one policy so far
    assert [step.gamma for step in second.steps] == [0.3, 0.3]
    assert all(stage.start == "policy" for stage in stages)
    assert all(stage.reference("ref").weights == "start" for stage in stages)
    (only,) = get("sera")(n_iter=2, n_generate=0).stages[1].streams["data"].steps
    assert len(only.steps) == 1
    with pytest.raises(OptionError, match="one sample makes no pair"):
        get("sera")(n_generate=1)
    with pytest.raises(OptionError, match="keep_ratio=0"):
        get("sera")(keep_ratio=0)
    with pytest.raises(OptionError, match="ensemble_gamma=1.5"):
        get("sera")(ensemble_gamma=1.5)
