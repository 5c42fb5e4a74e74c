"""The commands: what they print, that JSON is pure, that help has examples, what is completed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from polyalign.cli.main import app
from polyalign.cli.options import flags, values_of
from polyalign.cli.progress import Progress, arrived, span, waiting
from polyalign.cli.screen import screen
from polyalign.runs.config import Lora, TrainConfig
from tests.cli.kit import Kitchen, kitchen, prepare, run

TRAIN = ("train", "dpo", "-m", "tiny", "-d", "pairs.jsonl", "--samples", "0", "--max-length", "64")


def every_command(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    command = command or get_command(app)
    below = getattr(command, "commands", None)
    if path:
        yield path
    for name, child in (below or {}).items():
        yield from every_command(child, (*path, name))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("commands"), runs=("finished", "adapter"))


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kitchen]:
    with kitchen(made, tmp_path / "here", monkeypatch) as found:
        yield found


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_has_help_with_examples(path: tuple[str, ...]) -> None:
    answer = run(*path, "--help")
    assert answer.status == 0
    assert "Examples" in answer.out
    assert f"$ polyalign {path[0]}" in answer.out or path == ("completion",)


TABLES = [
    ("doctor",),
    ("methods",),
    ("methods", "show", "simpo"),
    ("model", "list"),
    ("model", "get", "tiny"),
    ("model", "merge", "adapter", "--output", "merged"),
    ("data", "check", "pairs.jsonl"),
    ("data", "stats", "scored.jsonl", "--model", "tiny"),
    ("data", "convert", "pairs.jsonl", "--to", "binary", "--output", "b.csv"),
    ("data", "split", "pairs.jsonl", "--test", "0.5"),
    ("data", "pair", "scored.jsonl", "--output", "p.jsonl"),
    (*TRAIN, "-o", "run", "--dry-run"),
    (*TRAIN, "-o", "run", "--max-steps", "1"),
    ("evaluate", "finished", "--data", "pairs.jsonl", "--samples", "2", "--max-new-tokens", "4"),
    ("sample", "finished", "Hello", "--max-new-tokens", "4"),
    ("report", "finished"),
    ("lab", "dpo"),
    ("import-config", "trl dpo --beta 0.2"),
]


@pytest.mark.parametrize("argv", TABLES, ids=lambda argv: " ".join(argv[:2]))
def test_a_table_is_also_pure_json(argv: tuple[str, ...], here: Kitchen) -> None:
    for name in ("finished", "adapter"):
        if name in argv:
            here.run(name)
    answer = run(*argv, "--json")
    assert answer.status == 0, answer
    json.loads(answer.out)


def test_each_option_of_a_run_is_a_flag() -> None:
    names = {flag.name for flag in flags()}
    assert names == (set(TrainConfig.model_fields) - {"method", "hyper", "lora"}) | {
        f"lora_{name}" for name in Lora.model_fields
    }


def test_flags_become_the_schema_s_values() -> None:
    given = {"betas": "0.8, 0.9", "columns": ["prompt=q"], "lora_r": "4", "lr": None, "full": False}
    assert values_of(given) == {
        "betas": ["0.8", "0.9"],
        "columns": {"prompt": "q"},
        "lora": {"r": "4"},
        "full": False,
    }


def plan(*argv: str) -> dict[str, Any]:
    answer = run("--quiet", *argv, "--dry-run", "--json")
    assert answer.status == 0, answer
    found: dict[str, Any] = json.loads(answer.out)
    return found


def test_flags_and_options_go_before_the_file(here: Kitchen) -> None:
    here.text(
        "run.yaml",
        "method: dpo\nmodel: tiny\ndata: pairs.jsonl\noutput: run\nlr: 0.5\nbatch: 2\n"
        "hyper: {beta: 0.3, loss: cdpo, label_smoothing: 0.1}\n",
    )
    found = plan("train", "--config", "run.yaml", "beta=0.7", "--lr", "0.25")
    assert found["config"]["lr"] == 0.25
    assert found["config"]["batch"] == 2
    assert found["plan"]["hyper"] == {"beta": 0.7, "loss": "cdpo", "label_smoothing": 0.1}


def test_another_method_leaves_the_file_s_hyper_parameters_behind(here: Kitchen) -> None:
    here.text(
        "run.yaml",
        "method: dpo\nmodel: tiny\ndata: pairs.jsonl\noutput: run\nhyper: {loss: cdpo}\n",
    )
    assert plan("train", "simpo", "--config", "run.yaml")["plan"]["hyper"]["beta"] == 2.5


def test_a_dry_run_leaves_nothing_behind(here: Kitchen) -> None:
    plan(*TRAIN, "-o", "run")
    assert not (here.folder / "run").exists()


def test_a_resumed_run_that_is_finished_says_so(here: Kitchen) -> None:
    here.run("finished")
    answer = run("train", "--resume", "finished")
    assert answer.status == 0
    assert "finished already" in answer.err


def test_quiet_training_prints_its_result_only(here: Kitchen) -> None:
    answer = run("--quiet", *TRAIN, "-o", "run", "--max-steps", "1")
    assert answer.err == ""
    assert "run/final" in answer.out


def test_check_ends_with_status_1_on_errors_and_mends_them_on_request(here: Kitchen) -> None:
    rows = [*map(json.loads, Path("pairs.jsonl").read_text().splitlines()), {"prompt": "Why?"}]
    here.rows("flawed.jsonl", rows)
    assert run("data", "check", "flawed.jsonl").status == 1
    answer = run("data", "check", "flawed.jsonl", "--fix", "clean.jsonl", "--json")
    assert answer.status == 0
    assert json.loads(answer.out)["fixed"]["removed"] == 1
    assert run("data", "check", "clean.jsonl").status == 0


def test_sample_reads_prompts_from_its_input(
    here: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\n\nTwo?\n"))
    answer = run("sample", "tiny", "--max-new-tokens", "3", "--json")
    assert [row["prompt"] for row in json.loads(answer.out)] == ["One?", "Two?"]


def completed(*words: str) -> str:
    environment = {
        **os.environ,
        "_POLYALIGN_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("polyalign", *words)),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-m", "polyalign"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300
    ).stdout


def test_the_shell_completes_commands_and_methods() -> None:
    assert completed("tr").split() == ["train"]
    assert completed("train", "sim").split() == ["simpo"]


def test_the_completion_script_calls_polyalign() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_POLYALIGN_COMPLETE" in run("completion", shell).out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watched(file: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(screen, "quiet", False)
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress("getting ready") as watcher:
        watcher.progress("reading", 1, 4)
        watcher.note("A note.")
        for step in (1, 2, 3):
            row = {"step": step, "split": "train", "loss": 1.0 / step, "rewards/margins": 0.25}
            watcher.step(row, 3)
        watcher.step({"step": 3, "split": "eval", "eval_loss": 0.125}, 3)
    return file.getvalue()


def test_progress_is_plain_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = watched(io.StringIO(), monkeypatch).splitlines()
    assert lines[0] == "A note."
    assert lines[1].startswith("step 1/3  loss 1  margin 0.25")
    assert "eval loss 0.125" in lines[-1]
    assert not any("\x1b" in line for line in lines)


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = watched(Terminal(), monkeypatch)
    assert "A note." in shown
    assert "training" in shown
    assert "3/3" in shown
    assert "margin 0.25" in shown


def test_what_arrives_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path))
    folder = tmp_path / "models" / ".name-x" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "models" / "other").mkdir()
    assert arrived(".name-*") == 5


def test_a_wait_is_a_clock_on_a_terminal_and_a_note_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(screen, "quiet", False)
    monkeypatch.setenv("TERM", "xterm")
    for file in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", file)
        with waiting("bringing it", ".none-*") as tell:
            tell("unpacking it")
        assert "unpacking it" in file.getvalue()
        assert ("0:00:00" in file.getvalue()) == file.isatty()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (90, "1 min 30 s"), (7260, "2 h 1 min")]
)
def test_a_span_is_read_at_a_glance(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_the_time_left_belongs_to_the_run_that_goes_on(monkeypatch):
    from polyalign.cli import progress

    clock = {"now": 0.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock["now"])
    watcher = progress.Progress()
    for step, now in ((1, 0.0), (2, 10.0), (1, 5000.0), (2, 5010.0)):
        clock["now"] = now
        watcher.step({"step": step, "loss": 1.0}, 4)
    assert watcher._left(2, 4) == "  left 20 s"
