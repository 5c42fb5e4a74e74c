"""The laboratory: every known optimum is reached, and its table, sweeps and page say so."""

import json
import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from polyalign.cli.main import app
from polyalign.errors import OptionError
from polyalign.methods import catalogue
from polyalign.methods.optima import KNOWN
from polyalign.methods.optima.known import Known
from polyalign.reports.lab import markdown, page
from polyalign.studies.experiments import STATIONARY, experiments, lab, perform
from polyalign.studies.finish import newton
from polyalign.studies.lab import train
from polyalign.worlds.bandit import Bandit

EVERY = [(method, known) for method, entries in KNOWN.items() for known in entries]
CHECKED = 3e-8
"""Largest gradient entry at a closed form: what rounding and answers without mass leave."""


@pytest.mark.parametrize(("method", "known"), EVERY, ids=[f"{m}-{k.name}" for m, k in EVERY])
def test_the_end_is_what_theory_says(method: str, known: Known) -> None:
    result = perform(method, known)
    assert result.distance <= known.tolerance, (known.finds, result.distance)
    assert result.reached
    assert result.gradient is None or result.gradient < CHECKED
    assert result.steps >= 30


def test_what_is_known_is_known_of_held_methods() -> None:
    assert set(KNOWN) <= set(catalogue())


def test_every_method_that_trains_on_given_feedback_has_a_row_of_its_own() -> None:
    given = {
        id
        for id, entry in catalogue().items()
        if entry["kind"] == "train" and entry.get("feedback") not in (None, "prompts")
    }
    assert given <= set(KNOWN)
    assert {method for method, _ in experiments().values()} >= given


def test_a_wrong_closed_form_is_missed() -> None:
    known = KNOWN["dpo"][0]
    wrong = replace(known, law=lambda world, hyper: world.regularised(2 * hyper["beta"]))
    result = perform("dpo", wrong)
    assert not result.reached
    assert result.distance > 0.05
    assert result.gradient > 1e-3


def test_a_method_of_which_nothing_is_known_is_tried_where_its_gradient_must_vanish() -> None:
    ((_, known),) = experiments(["orpo"], world="bandit").values()
    assert known == replace(STATIONARY, world="bandit")
    assert perform("orpo", known).reached


def test_an_unknown_method_or_world_is_named_with_the_nearest() -> None:
    with pytest.raises(OptionError, match="Did you mean simpo"):
        lab(["simp"])
    with pytest.raises(OptionError, match="Did you mean bandit"):
        lab(["dpo"], world="bandits")


def test_a_world_without_a_methods_feedback_is_refused_or_told() -> None:
    with pytest.raises(OptionError, match="gives no feedback"):
        lab(["iopo"], world="bandit")
    refused: dict[str, str] = {}
    assert lab(["iopo"], world="bandit", refused=refused) == []
    assert "gives no feedback" in refused["iopo"]


def test_options_reach_method_and_closed_form() -> None:
    (weak,) = lab(["ipo"], hyper={"tau": "0.2"})
    (strong,) = lab(["ipo"], hyper={"tau": "5"})
    assert weak["reached"]
    assert strong["reached"]
    assert weak["kl"] > 10 * strong["kl"]


def test_where_a_closed_form_does_not_read_an_option_the_gradient_is_checked_instead() -> None:
    (row, *_) = lab(["dpo"], hyper={"loss": "cdpo", "label_smoothing": "0.1"})
    assert row["finds"] == STATIONARY.finds
    assert row["gradient"] is None
    assert row["reached"]


def test_where_few_steps_end_off_the_optimum_the_loops_go_again_with_more() -> None:
    known = next(one for one in KNOWN["f-dpo"] if one.name == "forward kl")
    far = perform("f-dpo", replace(known, hyper={**known.hyper, "beta": 0.25}))
    assert far.reached
    assert far.steps > known.steps


def test_a_sweep_walks_along_the_frontier_where_the_closed_form_lies_on_it() -> None:
    (row, *_) = lab(["dpo"], sweep=True)
    assert [p["strength"] for p in row["sweep"]] == [0.125, 0.25, 0.5, 1.0, 2.0]
    assert max(p["distance"] for p in row["sweep"]) < 1e-6
    best = [Bandit.make(responses=5).point(Bandit.make(responses=5).regularised(p["strength"]))
            for p in row["sweep"]]  # fmt: skip
    for point, expected in zip(row["sweep"], best, strict=True):
        assert (point["reward"], point["kl"]) == pytest.approx(expected, abs=1e-6)


def test_the_rows_are_plain_data_and_the_page_stands_alone() -> None:
    rows = lab(["dpo"], sweep=True)
    assert json.loads(json.dumps(rows))[0]["world"] == "bandit"
    text = page(rows)
    assert text.count("<svg") == 1
    assert not re.search(r"(src|href)=|<script|@import|url\(", text)
    assert markdown(rows).count("\n") == 2 + len(rows)


def test_the_command_prints_the_table_and_draws_the_page(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["lab", "ipo", "tau=1", "--json"])
    assert done.exit_code == 0
    (row,) = json.loads(done.stdout)
    assert row["hyper"]["tau"] == 1.0
    assert not (tmp_path / "lab.html").exists()
    done = CliRunner().invoke(app, ["lab", "ipo"])
    assert done.exit_code == 0
    assert (tmp_path / "lab.html").is_file()


def test_the_command_needs_methods_or_all() -> None:
    done = CliRunner().invoke(app, ["lab"])
    assert done.exit_code != 0


# Newton's last digits.


def quadratic(matrix, centre):
    return lambda x: matrix @ (x - centre)


def test_newton_ends_where_the_gradient_vanishes_and_leaves_flat_directions_alone() -> None:
    matrix = torch.tensor([[2.0, -2.0], [-2.0, 2.0]], dtype=torch.float64)
    start = torch.tensor([3.0, 1.0], dtype=torch.float64)
    end = newton(quadratic(matrix, torch.zeros(2, dtype=torch.float64)), start)
    assert float(end[0] - end[1]) == pytest.approx(0, abs=1e-12)
    assert float(end.sum()) == pytest.approx(float(start.sum()))


def test_newton_does_not_climb_to_a_maximum() -> None:
    start = torch.tensor([0.5], dtype=torch.float64)
    end = newton(lambda x: -x, start)
    assert torch.equal(end, start)


def test_the_finish_does_not_leave_the_optimum_that_the_loops_approach() -> None:
    world = Bandit.make(responses=4)
    run = train("dpo", world, world.pairs(), {"beta": 0.5}, steps=300)
    before = world.law(run.policy)
    run.finish()
    assert world.distance(run.policy, before) < 1e-5
    assert run.stationarity() < 1e-12
