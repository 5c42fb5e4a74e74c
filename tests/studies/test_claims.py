import ast
import json
from pathlib import Path

import pytest
import yaml

from polyalign.errors import OptionError
from polyalign.methods import catalogue
from polyalign.studies.claims import Claim, chosen, declared, entry_of, judged, run
from polyalign.studies.claims_expression import evaluated
from polyalign.studies.claims_feedback import records_of
from polyalign.studies.claims_measures import MEASURES
from polyalign.studies.claims_page import render
from polyalign.studies.claims_runs import outcome_of
from polyalign.studies.claims_worlds import world_of

FOLDER = Path(__file__).resolve().parents[2] / "claims"

SMALL = {
    "claim": "It learns.",
    "methods": ["dpo"],
    "figure": "gain of gold reward",
    "threshold": 0.1,
    "seeds": 2,
    "steps": 20,
    "world": {"kind": "bandit", "prompts": 2, "responses": 4},
    "feedback": {"kind": "pairs", "n": 100},
    "runs": {"a": {"method": "dpo", "hyper": {"beta": 0.5}}},
    "measure": "a.gain",
}


def declare(folder: Path, name: str = "small", **more) -> Claim:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(SMALL | more), "utf-8")
    return Claim.read(path)


def test_every_declared_claim_can_be_read_and_measured_or_says_why_not():
    claims = declared(FOLDER)
    assert len(claims) >= 40
    held = catalogue()
    for claim in claims:
        for method in claim.methods:
            assert method in held, claim.id
        if claim.unmeasurable:
            assert not claim.runs
            continue
        tree = ast.parse(claim.measure, mode="eval").body
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert isinstance(node.value, ast.Name)
                assert node.value.id in claim.runs, claim.id
                assert node.attr in MEASURES, claim.id
        for each in claim.runs.values():
            assert each["method"] in held, claim.id
        world = world_of(claim.world, 0)
        assert records_of(world, claim.feedback, 0), claim.id


def test_a_claim_is_run_once_and_kept(tmp_path):
    claim = declare(tmp_path / "claims")
    (first,) = run([claim], tmp_path / "results")
    assert first.status == "reproduced"
    assert len(first.by_seed) == 2
    before = (tmp_path / "results" / "small.json").read_text()
    (again,) = run([claim], tmp_path / "results")
    assert again.value == first.value
    assert (tmp_path / "results" / "small.json").read_text() == before


def test_a_result_of_other_code_or_another_declaration_is_stale(tmp_path):
    claim = declare(tmp_path / "claims")
    list(run([claim], tmp_path / "results"))
    file = tmp_path / "results" / "small.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"code": "another"}))
    assert entry_of(claim, tmp_path / "results").status == "stale"
    file.write_text(json.dumps(kept))
    changed = declare(tmp_path / "claims", steps=21)
    assert entry_of(changed, tmp_path / "results").status == "stale"
    # A threshold that moves after the figure is seen changes the verdict in the open.
    assert entry_of(declare(tmp_path / "claims", threshold=99), tmp_path / "results").status == (
        "not reproduced"
    )


def test_a_miss_is_a_result(tmp_path):
    claim = declare(tmp_path / "claims", direction="below", threshold=-1.0)
    (entry,) = run([claim], tmp_path / "results")
    assert entry.status == "not reproduced"
    assert "not reproduced" in render(tmp_path / "claims") or entry.value is not None


@pytest.mark.parametrize(
    ("direction", "value", "status"),
    [("above", 1.0, "not reproduced"), ("above", 1.1, "reproduced"),
     ("below", 0.9, "reproduced"), ("below", 1.0, "not reproduced")],
)  # fmt: skip
def test_a_threshold_must_be_passed_not_met(tmp_path, direction, value, status):
    assert judged(declare(tmp_path, direction=direction, threshold=1.0), value) == status


def test_the_reward_and_divergence_of_a_run_are_the_worlds_own(tmp_path):
    claim = declare(tmp_path)
    world = world_of(claim.world, 0)
    done = outcome_of(claim, world, records_of(world, claim.feedback, 0), claim.runs["a"], 0)
    point = world.world.point(done.run.policy)
    assert MEASURES["reward"](done) == pytest.approx(point.reward)
    assert MEASURES["kl"](done) == pytest.approx(point.kl)
    assert MEASURES["frontier"](done) >= point.reward - 1e-9
    assert MEASURES["wins"](done) > 0.5


def test_measures_are_arithmetic_and_nothing_else():
    known = {("a", "x"): 3.0, ("b", "x"): 2.0}
    assert evaluated(ast.parse("max(a.x, b.x) - -b.x * 2", mode="eval").body, known) == 7.0
    for text in ("__import__('os')", "a.x if b.x else 1", "open"):
        with pytest.raises(OptionError, match="not understood"):
            evaluated(ast.parse(text, mode="eval").body, known)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"treshold": 1}, "threshold"),
        ({"direction": "up"}, "above or below"),
        ({"world": {"kind": "bandid"}}, "bandit"),
        ({"measure": "a.rewards"}, "reward"),
        ({"measure": "b.gain"}, "names a run 'b'"),
        ({"feedback": {"kind": "pears"}}, "pairs"),
        ({"feedback": {"kind": "margined"}}, "Declare the world with a correlation"),
        ({"measure": "a.second"}, "Declare the world with a correlation"),
        ({"feedback": {"kind": "ordered", "n": 8}}, "Declare the world goals"),
        ({"measure": "a.good_rejected"}, "Declare the world goals"),
        ({"measure": "a.asked_reward"}, "Declare the world goals"),
    ],
)
def test_a_wrong_declaration_is_told_with_the_nearest_right_one(tmp_path, change, said):
    with pytest.raises(OptionError) as error:
        list(run([declare(tmp_path / "claims", **change)], tmp_path / "results"))
    assert said in f"{error.value} {error.value.mend}"


def test_claims_are_found_by_method_alias_or_name(tmp_path):
    claims = [declare(tmp_path, "one"), declare(tmp_path, "two", methods=["simpo"])]
    assert [c.id for c in chosen(claims, ["DPO"])] == ["one"]
    assert [c.id for c in chosen(claims, ["two"])] == ["two"]
    assert chosen(claims, []) == claims
    with pytest.raises(OptionError, match="There is no claim of"):
        chosen(claims, ["tow"])
    with pytest.raises(OptionError, match="No claim of 'kto'"):
        chosen(claims, ["kto"])


def test_the_page_names_every_held_method(tmp_path):
    page = render(FOLDER)
    for id in catalogue():
        assert id in page
