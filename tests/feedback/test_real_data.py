"""Our figures on the real sets agree with what each set's README says."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyalign.errors import DataError
from polyalign.feedback import convert, pair, read, split, write
from scripts.data_check import FIGURES, table

ROOT = Path(__file__).resolve().parents[2]
SETS = sorted({figure.name for figure in FIGURES})


@pytest.mark.data
@pytest.mark.parametrize("name", SETS)
def test_figures_agree_with_the_readme(name: str, shared_data: Path) -> None:
    differing = {}
    for figure in FIGURES:
        if figure.name == name:
            ours = figure.compute(shared_data)
            if figure.spelled(ours) != figure.spelled(figure.said):
                differing[figure.part, figure.what] = (figure.said, ours)
    assert differing == {}


def test_the_page_shows_every_figure() -> None:
    page = (ROOT / "docs" / "data-check.md").read_text(encoding="utf-8")
    assert page == table(lambda figure: figure.said)


@pytest.mark.data
def test_every_real_set_is_read_without_a_reject_or_refused_in_words(shared_data: Path) -> None:
    # Baskets, choices, clicks and control episodes are no feedback on answers.
    others = {"choices", "control_rollouts", "implicit_feedback", "logged_bandit"}
    for folder in sorted(p for p in shared_data.iterdir() if (p / "test.jsonl.gz").exists()):
        path = folder / "test.jsonl.gz"
        if folder.name in others:
            with pytest.raises(DataError, match="no columns that can be read"):
                read(path)
            continue
        feedback = read(path)
        assert feedback.rejects == [], folder.name
        assert len({record.key for record in feedback}) == len(feedback), folder.name


@pytest.mark.data
def test_transcripts_are_read_as_the_conversations_they_were(shared_data: Path) -> None:
    feedback = read(shared_data / "hh_harmless", split="test")
    names = {"user": "Human", "assistant": "Assistant"}

    def spoken(turns: tuple[dict[str, str], ...]) -> str:
        return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)

    rows = [
        {"chosen": spoken(r.prompt + r.chosen), "rejected": spoken(r.prompt + r.rejected)}
        for r in feedback
    ]
    found = read(rows)
    assert found.format == "HH transcripts, implicit prompt"
    for before, after in zip(feedback, found, strict=True):
        assert [t["content"].strip() for t in before.prompt + before.chosen + before.rejected] == [
            t["content"] for t in after.prompt + after.chosen + after.rejected
        ]


@pytest.mark.data
def test_real_votes_scores_and_pairs_go_through_the_whole_room(
    shared_data: Path, tmp_path: Path
) -> None:
    pairs = convert(read(shared_data / "pandalm", split="test"), "pairs")
    train, test = split(pairs, test=0.3)
    assert list(read(write(train, tmp_path / "train.parquet"))) == list(train)
    assert len(train) + len(test) == len(pairs)
    right = pair(read(shared_data / "gsm8k_solutions", split="test"), "correct-incorrect")
    assert all(p.fields["margin"] == 1.0 for p in right)
