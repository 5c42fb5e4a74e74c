"""The examples of docs/extending.md do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.kit import PAIRS, Kitchen, kitchen, prepare

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def example(section: str) -> str:
    """The Python of a section."""
    part = PAGE.read_text(encoding="utf-8").split(f"## {section}")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", part, re.S | re.M)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("extending"), runs=())


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with kitchen(made, tmp_path / "here", monkeypatch) as found:
        yield found


def train(method: str, **options: Any) -> Any:
    import polyalign

    return polyalign.train(
        method,
        model="tiny",
        output="run",
        max_steps=1,
        samples=0,
        **{"data": "pairs.jsonl", **options},
    )


def test_the_judge_of_the_page_judges(here: Kitchen) -> None:
    here.text("reward.py", example("A judge"))
    from polyalign.judges.load import load_judge

    verdict = load_judge("reward.py:score")(["a", "b"], ["Please do.", "No."], [{}, {}])
    assert verdict.score is not None
    assert verdict.score.tolist() == [1.0, 0.0]


def test_the_data_step_of_the_page_chooses_what_is_trained_on(here: Kitchen) -> None:
    declared = """
import polyalign
from polyalign.feedback.records import Pair
from polyalign.objectives import MeanLogp, Pairwise

@polyalign.method(id="shorter-half", feedback=Pair)
def mine() -> Method:
    "The shorter half."
    return staged(Pairwise(MeanLogp()))
"""
    here.text("mine.py", example("A data step") + declared)
    longer = [{**row, "chosen": row["chosen"] * 9} for row in PAIRS]
    here.rows("pairs.jsonl", [*PAIRS, *longer])
    run = train("mine.py:mine", batch=64)
    from polyalign.engine.checkpoint import load, newest

    kept = newest(run.folder / "kept" / "stage-0-records")
    assert kept is not None
    records = load(kept)[0]["value"]
    assert len(records) == len(PAIRS)
    assert max(len(str(record["chosen"])) for record in records) < len(longer[0]["chosen"])


def test_a_logger_put_into_the_table_is_told_every_step(
    here: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyalign.runs import loggers

    told: list[int] = []

    class Mine:
        def __init__(self, folder: Path, config: Any) -> None: ...

        def log(self, numbers: dict[str, float], step: int) -> None:
            told.append(step)

        def close(self) -> None: ...

    monkeypatch.setitem(loggers.SINKS, "mine", Mine)
    train("dpo", loggers=["mine"])
    assert told == [1]


def test_the_measurement_of_the_page_measures(here: Kitchen) -> None:
    import polyalign

    here.text("mine.py", example("A measurement"))
    found = polyalign.evaluate(
        "tiny",
        "pairs.jsonl",
        method="mine.py:answer_length",
        hyper={"at_most": 3},
        samples=4,
        max_new_tokens=5,
    )["with"]["answer-length"]
    assert 1 <= found["mean"]["value"] <= 5
    assert [line["measure"] for line in found["figures"]] == ["Answer length", "Too long"]
    assert found["options"] == {"at_most": 3}
