"""What the README shows runs as it stands, on a tiny model."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from tests.cli.kit import run

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def own(text: str) -> str:
    """The README's names replaced by the tiny model."""
    return text.replace("smollm2", "tiny")


@pytest.fixture
def here(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "tiny").symlink_to(tiny_llama)
    rows = "".join(
        f'{{"prompt": "What is {i}+1?", "chosen": "{i + 1}.", "rejected": "It is hard."}}\n'
        for i in range(40)
    )
    for name in ("my.jsonl", "my.train.jsonl", "my.test.jsonl"):
        (tmp_path / name).write_text(rows)
    return tmp_path


def test_the_commands_that_align_a_model_run(here: Path) -> None:
    commands = fenced("bash")[0].splitlines()
    assert len(commands) <= 10
    for command in commands:
        program, *argv = shlex.split(own(command), comments=True)
        assert program == "polyalign"
        answer = run(*argv)
        assert answer.status == 0, (command, answer)
    assert (here / "runs" / "dpo" / "report.html").is_file()


def test_the_commands_that_help_to_choose_are_real(here: Path) -> None:
    for command in fenced("bash")[1].splitlines():
        program, name, *_ = shlex.split(command, comments=True)
        assert program == "polyalign"
        assert run(name, "--help").status == 0, command


def test_the_lines_of_python_run(here: Path) -> None:
    (here / "lines.py").write_text(own(fenced("python")[0]))
    found = runpy.run_path("lines.py")
    assert found["run"].finished


def test_the_example_of_a_method_is_complete_and_learns(here: Path) -> None:
    example = fenced("python")[1]
    assert len(example.splitlines()) <= 25
    (here / "mine.py").write_text(example)
    command = fenced("bash")[2].splitlines()[0]
    program, *argv = shlex.split(own(command))
    answer = run(*argv, "--lr", "1e-3", "--epochs", "4", "--quiet")
    assert answer.status == 0, answer
    from polyalign.api import Run

    losses = [row["loss"] for row in Run("runs/mine").metrics if row["split"] == "train"]
    assert losses[-1] < losses[0]
