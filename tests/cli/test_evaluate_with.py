"""``evaluate --with``: a measurement from the command line to the model card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.kit import Kitchen, kitchen, prepare, run

FEW = ("--samples", "4", "--max-new-tokens", "4")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("measured"), runs=("finished",))


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kitchen]:
    with kitchen(made, tmp_path / "here", monkeypatch) as found:
        found.run("finished")
        yield found


def card(here: Kitchen) -> str:
    return (here.folder / "finished" / "final" / "README.md").read_text("utf-8")


def saved(here: Kitchen) -> dict:
    return json.loads((here.folder / "finished" / "evaluation.json").read_text("utf-8"))


def test_the_model_card_states_what_evaluate_measured(here: Kitchen) -> None:
    assert "Nothing was measured" in card(here) or "on held-out data" in card(here)
    assert run("evaluate", "finished", "-d", "pairs.jsonl", "--samples", "0").status == 0
    assert "Ranking accuracy of the implicit reward" in card(here)
    assert "Ranking accuracy of the implicit reward" in (
        here.folder / "finished" / "report.html"
    ).read_text("utf-8")


def test_a_measurement_is_printed_saved_and_told_beside_what_was_there(here: Kitchen) -> None:
    assert run("evaluate", "finished", "-d", "pairs.jsonl", "--samples", "0").status == 0
    argv = ("evaluate", "finished", "-d", "pairs.jsonl", "--with", "likelihood-overopt", "k=3")
    answer = run(*argv, *FEW)
    assert answer.status == 0, answer
    assert "Mass of the 3 likeliest tokens" in answer.out
    assert (
        run("evaluate", "finished", "-d", "pairs.jsonl", "--with", "preference-rankings").status
        == 0
    )
    found = saved(here)
    assert "ranking" in found
    assert set(found["with"]) == {"likelihood-overopt", "preference-rankings"}
    assert found["with"]["likelihood-overopt"]["options"]["k"] == 3
    for text in ("Ranking accuracy of the implicit", "Mass of the 3", "Idealised ranking accuracy"):
        assert text in card(here)
    # A plain evaluation keeps the measurements.
    assert run("evaluate", "finished", "-d", "pairs.jsonl", "--samples", "0").status == 0
    assert set(saved(here)["with"]) == set(found["with"])


def test_several_runs_and_references_stand_side_by_side_as_json(here: Kitchen) -> None:
    argv = ("evaluate", "finished", "-d", "pairs.jsonl", "--with", "reference-policies", "--json")
    answer = run(*argv, "runs=finished", "references=tiny", *FEW)
    assert answer.status == 0, answer
    found = json.loads(answer.out)["with"]["reference-policies"]
    names = [row["reference"] for row in found["references"]]
    assert names[0] == "start"
    assert "without the prompt (likelihood)" in names
    assert names[-1] == "tiny"
    # The start is the tiny model itself, so both rows are the same but for their names.
    first, last = found["references"][0], found["references"][-1]
    assert first["loss"] == pytest.approx(last["loss"])
    assert last["distance_to_start"] == pytest.approx(0, abs=1e-9)
    assert [row["run"] for row in found["strengths"]] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--with", "dpo"), "does not measure: it trains a policy"),
        (("--with", "preference-rankins"), "Did you mean preference-rankings?"),
        (("k=3",), "'k' is no option of evaluate. → Options of a measurement need its name"),
        (("--with", "likelihood-overopt", "kk=3"), "Did you mean k?"),
        (("--with", "likelihood-overopt", "k=0"), "k='0' is not allowed"),
        (("--with", "likelihood-overopt", "--n", "3"), "--n has no effect beside --with"),
        (("--with", "likelihood-overopt", "positions=given", "k=9999"), "Use k from 1 to 259"),
        (("--with", "reference-policies", "references=nowhere"), "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_its_mend(
    argv: tuple[str, ...], said: str, here: Kitchen
) -> None:
    answer = run("evaluate", "finished", "-d", "pairs.jsonl", *argv, "--samples", "0")
    assert answer.status == 2, answer
    assert said in " ".join(answer.err.split())


def test_data_of_another_kind_and_missing_data_are_told(here: Kitchen) -> None:
    answer = run("evaluate", "finished", "-d", "prompts.jsonl", "--with", "preference-rankings")
    assert "reads pairs, and prompts.jsonl holds prompts" in answer.err
    assert "Add --data FILE" in run("evaluate", "finished").err


def test_python_takes_the_same_measurement(here: Kitchen) -> None:
    import polyalign as pa

    found = pa.evaluate(
        "finished", "pairs.jsonl", method="preference-rankings", hyper={"betas": 0.5}, save=False
    )
    assert found["with"]["preference-rankings"]["betas"] == [0.5]
    assert not (here.folder / "finished" / "evaluation.json").exists()


def test_training_with_held_out_pairs_watches_the_likeliest_tokens(here: Kitchen) -> None:
    argv = ("--quiet", "train", "dpo", "-m", "tiny", "-d", "pairs.jsonl", "--max-steps", "2")
    more = ("--eval-data", "pairs.jsonl", "--eval-every", "1", "--samples", "0", "-o", "watched")
    assert run(*argv, *more, "--max-length", "64").status == 0
    rows = [
        json.loads(line)
        for line in (here.folder / "watched" / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    held = [row for row in rows if row["split"] == "eval"]
    assert len(held) == 2
    assert all(0 < row["eval_top_mass"] <= 1 and row["eval_top_entropy"] > 0 for row in held)
    assert not any("top_mass" in row for row in rows if row["split"] == "train")
