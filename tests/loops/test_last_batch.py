"""T26: the smaller batch at the end of a pass is a step like any other."""

from __future__ import annotations

import math

import pytest
import torch

from polyalign.feedback.records import Binary
from polyalign.loops.run import run
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.methods import get
from tests.engine.test_step import binary, pairs, policy

PAIRS = ("dpo", "ipo", "slic", "simpo", "orpo", "aot")


def ended(id: str, records, batch: int, **settings) -> Session:
    made = get(id)()
    running = Session(
        lambda progress: made,
        policy(),
        records,
        Settings(batch=batch, lr=0.05, warmup=0.0, **settings),
        hooks=Quiet(),
    )
    run(running)
    return running


@pytest.mark.filterwarnings("ignore::polyalign.errors.PolyalignWarning")
@pytest.mark.parametrize("id", [*PAIRS, "kto"])
def test_t26_an_odd_number_of_examples_trains_to_the_last_one(id):
    records = binary(9) if id == "kto" else pairs(9)
    running = ended(id, records, 4, epochs=2)
    rows = running.hooks.rows
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(x) for row in rows for x in row.values() if isinstance(x, float))
    for value in running.policy.tensors().values():
        assert value.isfinite().all()


@pytest.mark.filterwarnings("ignore::polyalign.errors.PolyalignWarning")
def test_t26_the_divergence_of_a_policy_from_itself_is_zero_in_the_first_step():
    """Over all examples of the step, whatever their partners are."""
    for count in (2, 3, 9):
        first = ended("kto", binary(count), count).hooks.rows[0]
        assert first["kl"] == 0.0
        assert first["loss"] == pytest.approx(0.5, abs=1e-12)


def test_t26_the_mismatched_answer_is_of_another_prompt():
    from polyalign.feedback.units import make_units

    records = [
        Binary(key=f"k{i}", prompt=i % 2, completion=(i % 4,), label=bool(i % 2)) for i in range(8)
    ]
    (update,) = get("kto")().stages[0].updates
    seen = set()
    for epoch in range(4):
        for i, unit in enumerate(make_units(records, range(8), update.objective.needs, 0, epoch)):
            prompt, answer = unit.roles["mismatched"]
            assert prompt == records[i].prompt
            # Answers 0 and 2 were given to prompt 0, answers 1 and 3 to prompt 1.
            assert answer[0] % 2 != prompt
            seen.add((i, answer))
    assert len(seen) > 8


def test_t45_one_example_alone_has_no_spread_to_divide_by():
    from polyalign.credit import GroupCredit

    fields = GroupCredit()(
        torch.tensor([[3.0], [5.0]]),
        lengths=torch.ones(2, 1, dtype=torch.long),
        finished=torch.ones(2, 1, dtype=torch.bool),
    )
    assert fields["advantage"].tolist() == [[0.0], [0.0]]
