"""The engine: one normaliser, three couplings, and nothing that depends on how a step is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign.engine.cuts import cut
from polyalign.engine.scoring import Cast
from polyalign.engine.step import Engine
from polyalign.errors import DataError, NeedsError, NumericsError
from polyalign.feedback.records import Binary, Demonstration, Pair
from polyalign.feedback.units import assemble, make_units
from polyalign.objectives.likelihood import Likelihood
from polyalign.objectives.pairwise import Pairwise
from polyalign.objectives.pointwise import Prospect
from polyalign.objectives.rewards import MeanLogp, SumLogRatio
from polyalign.policies.tabular import SequencePolicy
from polyalign.recipe import Update
from polyalign.types import Batch, Loss, Needs, Row, Rows, Scores, State, Term, needs

VOCABULARY, LENGTH, PROMPTS = 4, 5, 6


def policy(seed: int = 0) -> SequencePolicy:
    generator = torch.Generator().manual_seed(seed)
    prefixes = sum(VOCABULARY**t for t in range(LENGTH))
    logits = torch.randn(PROMPTS, prefixes, VOCABULARY, generator=generator, dtype=torch.float64)
    return SequencePolicy(logits, LENGTH)


def answer(generator: torch.Generator) -> tuple[int, ...]:
    size = int(torch.randint(1, LENGTH + 1, (1,), generator=generator))
    return tuple(torch.randint(0, VOCABULARY, (size,), generator=generator).tolist())


def pairs(count: int, seed: int = 0) -> list[Pair]:
    g = torch.Generator().manual_seed(seed)
    return [
        Pair(
            key=f"p{i}",
            prompt=int(torch.randint(0, PROMPTS, (1,), generator=g)),
            chosen=answer(g),
            rejected=answer(g),
            weight=float(torch.rand(1, generator=g)) + 0.1,
        )
        for i in range(count)
    ]


def binary(count: int, seed: int = 0) -> list[Binary]:
    g = torch.Generator().manual_seed(seed)
    return [
        Binary(key=f"b{i}", prompt=i % PROMPTS, completion=answer(g), label=bool(i % 2))
        for i in range(count)
    ]


OBJECTIVES = {
    "a reference pairwise loss": (Pairwise(SumLogRatio(), scale=0.3), pairs),
    "a length-normalised pairwise loss": (Pairwise(MeanLogp(), scale=2.0), pairs),
    "token likelihood": (
        Likelihood("token"),
        lambda n, s=0: [
            Demonstration(key=p.key, prompt=p.prompt, completion=p.chosen, weight=p.weight)
            for p in pairs(n, s)
        ],
    ),
    "a global statistic": (Prospect(beta=0.3), binary),
}


class Sorted:
    """A coupled objective in its smallest form: ranks of the whole step decide partners."""

    needs = needs("chosen", "rejected", references=["ref"], couples="batch")

    def __call__(self, scores: Scores, state: State) -> Loss:
        chosen = scores["chosen"].sum(scores["chosen"].log_ratio())
        rejected = scores["rejected"].sum(scores["rejected"].log_ratio())
        gap = chosen.sort().values - rejected.sort().values
        value = torch.nn.functional.softplus(-gap)
        return Loss((Term(value, torch.ones_like(value)),))


OBJECTIVES["a coupled loss"] = (Sorted(), pairs)


def measure(objective, records, budget: int | None, arrangement: list[int] | None = None):
    """Loss and gradient of a step, cut by ``budget``."""
    model = policy()
    cast = Cast(model, {"ref": policy(1).freeze()}, {})
    engine = Engine(cast, budget)
    indices = arrangement or list(range(len(records)))
    units = make_units(records, indices, objective.needs, 0, 0)
    batch = assemble(units, model.encode)
    state = objective.start() if hasattr(objective, "start") else {}
    report, _ = engine.backward(Update(objective), batch, state)
    gradient = {name: p.grad.clone() for name, p in model.trainable().items()}
    return report, gradient, len(cut(batch, budget))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_do_not_depend_on_how_a_step_is_cut(name):
    """T1: 1x8, 2x4, 8x1 with unequal lengths."""
    objective, make = OBJECTIVES[name]
    records = make(8)
    whole, gradient, count = measure(objective, records, None)
    assert count == 1
    seen = set()
    for budget in (1, 20, 60):
        part, other, count = measure(objective, records, budget)
        seen.add(count)
        assert part.loss == pytest.approx(whole.loss, rel=1e-12)
        for key, value in gradient.items():
            torch.testing.assert_close(other[key], value, rtol=1e-10, atol=1e-12)
        for key, value in whole.metrics.items():
            assert part.metrics[key] == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert max(seen) == 8
    assert len(seen) >= 2


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_loss_and_gradient_do_not_depend_on_the_order_of_examples(name, data):
    objective, make = OBJECTIVES[name]
    records = make(6)
    arrangement = data.draw(st.permutations(range(6)))
    budget = data.draw(st.sampled_from([None, 1, 25]))
    first, gradient, _ = measure(objective, records, None)
    second, other, _ = measure(objective, records, budget, list(arrangement))
    assert second.loss == pytest.approx(first.loss, rel=1e-12)
    for key, value in gradient.items():
        torch.testing.assert_close(other[key], value, rtol=1e-10, atol=1e-12)


def test_mismatched_answers_are_fixed_by_example_and_not_by_batch_position():
    """T26: the partner is a function of (seed, epoch, key)."""
    records = binary(7)
    kto_needs = OBJECTIVES["a global statistic"][0].needs
    alone = [make_units(records, [i], kto_needs, 0, 3)[0].roles["mismatched"] for i in range(7)]
    together = make_units(records, [6, 2, 0, 5, 1, 3, 4], kto_needs, 0, 3)
    assert {u.key: u.roles["mismatched"] for u in together} == {
        record.key: slot for record, slot in zip(records, alone, strict=True)
    }
    assert all(slot[1] != records[i].completion or True for i, slot in enumerate(alone))
    later = [make_units(records, [i], kto_needs, 0, 4)[0].roles["mismatched"] for i in range(7)]
    assert later != alone


def test_mismatched_answers_need_a_second_prompt():
    records = [Binary(key=str(i), prompt=0, completion=(i,), label=True) for i in range(3)]
    with pytest.raises(DataError, match="two different prompts"):
        make_units(records, [0], OBJECTIVES["a global statistic"][0].needs, 0, 0)


def test_unit_weights_are_what_the_loss_is_divided_by():
    objective = Pairwise(SumLogRatio(), scale=0.3)
    one, two = pairs(2)
    both = measure(objective, [one, two], None)[0].loss
    first = measure(objective, [one], None)[0].loss
    second = measure(objective, [two], None)[0].loss
    expected = (one.weight * first + two.weight * second) / (one.weight + two.weight)
    assert both == pytest.approx(expected, rel=1e-12)


def test_weights_that_depend_on_log_probabilities_are_refused():
    class Cheating:
        needs = needs("chosen")

        def __call__(self, scores: Scores, state: State) -> Loss:
            view = scores["chosen"]
            return Loss((scores.per_unit(-view.sum(), weight=view.sum().exp().detach()),))

    with pytest.raises(NumericsError, match="depend on log-probabilities"):
        measure(Cheating(), pairs(4), 1)


def test_a_number_that_is_not_finite_names_its_example():
    model = policy()
    with torch.no_grad():
        model.trainable()[next(iter(model.trainable()))][2] = float("nan")
    records = [Pair(key=f"k{i}", prompt=i, chosen=(1,), rejected=(2,)) for i in range(4)]
    objective = Pairwise(SumLogRatio())
    batch = assemble(make_units(records, range(4), objective.needs, 0), model.encode)
    engine = Engine(Cast(model, {"ref": policy(1).freeze()}, {}))
    with pytest.raises(NumericsError, match="example k2"):
        engine.backward(Update(objective), batch, {})


def test_an_unknown_need_is_an_error_with_the_nearest_name():
    cast = Cast(policy(), {}, {})
    with pytest.raises(NeedsError, match="Did you mean entropy"):
        cast.match(needs("own", signals=["entropi"]))
    with pytest.raises(NeedsError, match="does not offer"):
        cast.match(needs("own", signals=["sample"]))
    assert Needs() == needs()


def test_a_role_the_feedback_lacks_is_named():
    with pytest.raises(NeedsError, match="role 'rejected'.*demonstrations"):
        make_units(
            [Demonstration(key="a", prompt=0, completion=(1,))],
            [0],
            Pairwise(SumLogRatio()).needs,
            0,
        )


def tokens_of(lengths, contexts, budget):
    """Micro-batches of units with one row each: context c has 10 + c tokens."""
    rows = [
        Row((c, *range(9 + c)), torch.arange(n), torch.ones(n, dtype=torch.bool))
        for n, c in zip(lengths, contexts, strict=True)
    ]
    batch = Batch(Rows.collate(rows), {"own": torch.arange(len(rows))}, torch.ones(len(rows)))
    parts = [part.tolist() for part in cut(batch, budget)]
    costs = [
        sum(lengths[u] for u in part) + sum(10 + c for c in {contexts[u] for u in part})
        for part in parts
    ]
    return parts, costs


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), min_size=1, max_size=14),
    st.integers(1, 200),
)
def test_micro_batches_hold_each_unit_once_and_only_a_unit_alone_exceeds_the_budget(units, budget):
    lengths, contexts = [n for n, _ in units], [c for _, c in units]
    parts, costs = tokens_of(lengths, contexts, budget)
    assert sorted(u for part in parts for u in part) == list(range(len(units)))
    for part, cost in zip(parts, costs, strict=True):
        assert cost <= max(budget, max(n + 10 + c for n, c in units)) or len(part) == 1


def test_a_shared_context_counts_once_and_keeps_its_units_together():
    parts, costs = tokens_of([5, 9, 5, 9], [0, 1, 0, 1], 30)
    assert sorted(sorted(part) for part in parts) == [[0, 2], [1, 3]]
    assert sorted(costs) == [20, 29]


def test_micro_batches_are_of_like_size():
    _, costs = tokens_of([20] * 9, range(9), 170)
    assert len(costs) == 2
    assert max(costs) - min(costs) <= 34
