import json
import random

import pytest

from polyalign.errors import RunError
from polyalign.loops.session import Session
from polyalign.studies import compare_part
from polyalign.studies.compare import compare
from polyalign.studies.compare_part import Keeper, Part
from polyalign.studies.compare_train import Meter
from tests.studies.kit import small, untimed


class Killed(BaseException):
    """The process ends here, without a chance to tidy up."""


def killing(monkeypatch, at: set[int]) -> None:
    """Some boundaries are saved, and at these (counted over all runs) the process ends."""
    monkeypatch.setattr(compare_part, "EVERY", 0.0)
    luck = random.Random(0)
    monkeypatch.setattr(Keeper, "due", lambda self: luck.random() < 0.3)
    seen = [0]
    plain = Meter.boundary

    def boundary(self, session):
        plain(self, session)
        seen[0] += 1
        if seen[0] in at:
            raise Killed

    monkeypatch.setattr(Meter, "boundary", boundary)


def until_done(methods, given) -> tuple[dict, int]:
    """Begin a comparison again and again until it comes to its end; how often it was stopped."""
    for stops in range(100):
        try:
            return compare(methods, **given), stops
        except Killed:
            assert not (given["output"] / "comparison.json").exists()
    raise AssertionError("it never ends")


@pytest.mark.parametrize("method", ["dpo", "sdpo"])
def test_cells_that_are_killed_at_random_moments_end_as_if_they_were_not(
    tmp_path, monkeypatch, method
):
    given = {"world": "sequences", "budget": "8k", "batch": 120}
    whole = compare([method], output=tmp_path / "whole", **given)
    luck = random.Random(1)
    killing(monkeypatch, set(luck.sample(range(1, 40), 5)))
    killed, stops = until_done([method], given | {"output": tmp_path / "killed"})
    assert stops >= 2
    assert untimed(killed["rows"]) == untimed(whole["rows"])
    assert killed["words"] == whole["words"]
    assert not list((tmp_path / "killed" / "cells").glob("*.part"))


def test_a_language_model_goes_on_inside_a_cell_and_inside_a_search(
    tmp_path, tiny_llama, monkeypatch
):
    given = small(tmp_path, tiny_llama, judge=None, budget="6k", search=["lr=0.001,0.01"])
    whole = compare(["dpo"], **given | {"output": tmp_path / "whole"})
    killing(monkeypatch, {2, 9, 17})
    killed, stops = until_done(["dpo"], given | {"output": tmp_path / "killed"})
    assert stops == 3
    assert untimed(killed["rows"]) == untimed(whole["rows"])


def test_a_cell_that_is_stopped_while_it_is_measured_is_not_trained_again(
    tmp_path, tiny_llama, monkeypatch
):
    from polyalign.studies import compare_cell

    given = small(tmp_path, tiny_llama, judge=None, budget="1k")
    monkeypatch.setattr(compare_part, "EVERY", 0.0)
    plain, steps = compare_cell.measure, []
    trained = Session.train

    def stop(bench, policy, *, base=False):
        if not base:
            raise Killed
        return plain(bench, policy, base=base)

    def counted(self, *arguments):
        steps.append(1)
        return trained(self, *arguments)

    monkeypatch.setattr(compare_cell, "measure", stop)
    monkeypatch.setattr(Session, "train", counted)
    with pytest.raises(Killed):
        compare(["dpo"], **given)
    before = len(steps)
    assert before > 0
    with pytest.raises(Killed):
        compare(["dpo"], **given)
    assert len(steps) == before


class Told:
    """As much of a session as is saved."""

    def __init__(self, step: int) -> None:
        self.position = {"step": step}

    def state(self):
        return {"policy": {}, "position": dict(self.position)}


def saved(folder, step: int, **new) -> Keeper:
    keeper = Keeper(folder)
    keeper.new = new
    keeper.save(Told(step), {"spent": {}})
    return keeper


def test_what_was_kept_after_the_checkpoint_is_made_again(tmp_path):
    saved(tmp_path / "a", 3, first=[1, 2])
    saved(tmp_path / "b", 5, second=[3])
    # The process ended between writing what was kept and the state that goes with it.
    (tmp_path / "b" / "kept" / "00000005").rename(tmp_path / "a" / "kept" / "00000005")
    tree, kept = Keeper(tmp_path / "a").newest() or ({}, {})
    assert tree["session"]["position"] == {"step": 3}
    assert kept == {"first": [1, 2]}
    assert not (tmp_path / "a" / "kept" / "00000005").exists()


def test_a_damaged_checkpoint_counts_as_none(tmp_path):
    saved(tmp_path, 3, first=[1, 2])
    for file in (tmp_path / "state").rglob("state.json"):
        file.write_text(file.read_text().replace('"step":3', '"step":4'))
    assert Keeper(tmp_path).newest() is None
    assert Keeper(tmp_path).newest() is None


def test_what_is_made_once_is_read_back(tmp_path):
    part = Part(tmp_path)
    assert part.once("found", lambda: {"a": (1, 2)}) == {"a": [1, 2]}
    assert part.once("found", lambda: {"a": 3}) == {"a": [1, 2]}
    (tmp_path / "found.json").write_text("{ torn")
    assert part.once("found", lambda: {"a": 3}) == {"a": 3}
    assert json.loads((tmp_path / "found.json").read_text()) == {"a": 3}


def test_two_processes_do_not_work_on_one_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_part, "PATIENCE", 0.1)
    first, second = Part(tmp_path), Part(tmp_path)
    with first.held(), pytest.raises(RunError, match="Another process"), second.held():
        pass
