"""Mistakes made for real: one sentence, the mend, no traceback; docs/mistakes.md says the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.kit import kitchen, prepare, run
from tests.cli.mistakes import MISTAKES, Mistake
from tests.cli.mistakes_page import PAGE, block, page


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("mistakes"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_a_mistake_is_answered_with_one_sentence_and_its_mend(
    mistake: Mistake, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kitchen(made, tmp_path / "here", monkeypatch) as here:
        answer = mistake.provoke(here)
        assert answer.status == mistake.status, answer
        assert "Traceback" not in answer.err + answer.out
        assert mistake.says in answer.err
        what, *mend = answer.err.strip().splitlines()
        assert what.endswith((".", "?"))
        assert len(mend) == 1, answer.err
        assert mend[0].startswith("→ ")
        told = block(mistake, answer)
    assert told in PAGE.read_text(encoding="utf-8"), (
        "docs/mistakes.md is not current; write it with: python -m tests.cli.mistakes_page\n" + told
    )


def test_the_page_holds_exactly_the_mistakes_of_the_table() -> None:
    held = PAGE.read_text(encoding="utf-8")
    bare = page({mistake.id: f"### {mistake.did}\n" for mistake in MISTAKES})
    assert re.findall(r"^#.*", held, re.M) == re.findall(r"^#.*", bare, re.M)
    assert len({mistake.did for mistake in MISTAKES}) == len(MISTAKES) >= 40


@pytest.mark.parametrize(
    "argv", [("tran",), ("train", "dpoo"), ("train", "dpo", "--config", "none.yaml")], ids=" ".join
)
def test_a_mistake_in_a_process_of_its_own_has_the_same_form(argv: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "polyalign", *argv]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 2


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    for argv in (["--debug", "train", "dpoo"], ["train", "dpoo", "--debug"]):
        answer = run(*argv)
        assert answer.status == 2
        assert "Traceback" in answer.err
        assert "There is no method 'dpoo'." in answer.err


def test_what_nobody_foresaw_is_told_as_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyalign.cli import methods

    def broken() -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(methods, "catalogue", broken)
    answer = run("methods")
    assert answer.status == 70
    assert "Traceback" not in answer.err
    assert "ZeroDivisionError" in answer.err
    assert "--debug" in answer.err


def test_ctrl_c_ends_with_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyalign.cli import methods

    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(methods, "catalogue", stopped)
    answer = run("methods")
    assert answer.status == 130
    assert "Traceback" not in answer.err
