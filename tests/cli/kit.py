"""A folder with a tiny model and small feedback, and a command line to mistype in it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

Row = Mapping[str, Any]


class Answer(NamedTuple):
    """What the command line answered."""

    status: int
    out: str
    err: str


def run(*argv: str) -> Answer:
    """The command line in this process; paths of the current folder are written without it."""
    from polyalign.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    return Answer(status, anywhere(out.getvalue()), anywhere(err.getvalue()))


def anywhere(text: str) -> str:
    """A text that does not tell in which folder it arose."""
    here = os.path.realpath(os.curdir)
    return text.replace(f"{here}/", "").replace(here, ".")


PAIRS = [
    {"prompt": f"What is {i}+1?", "chosen": f"It is {i + 1}.", "rejected": f"Ask {i} others."}
    for i in range(8)
]
THUMBS = [
    {"prompt": f"What is {i}+1?", "completion": f"It is {i + 1}.", "label": i % 2 == 0}
    for i in range(8)
]
SCORED = [
    {"prompt": f"Count to {i}.", "completions": ["1, 2", "one"], "scores": [1.0, 0.5]}
    for i in range(8)
]
PROMPTS = [{"prompt": f"What is {i}+1?"} for i in range(4)]
CHATS = [
    {
        "prompt": [{"role": "user", "content": f"What is {i}+1?"}],
        "chosen": [{"role": "assistant", "content": f"It is {i + 1}."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    for i in range(4)
]


@dataclass
class Kitchen:
    """Where a mistake is made: the current folder, and what a case may change."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    made: Path
    extra: dict[str, Any] = field(default_factory=dict)

    def text(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def rows(self, name: str, rows: Sequence[Row]) -> Path:
        return self.text(name, "".join(json.dumps(row) + "\n" for row in rows))

    def model(self, name: str = "tiny", without: Sequence[str] = ()) -> Path:
        """A copy of the tiny model that lacks some files."""
        path = self.folder / name
        shutil.copytree(self.made / "tiny", path, dirs_exist_ok=True)
        for file in without:
            (path / file).unlink()
        return path

    def run(self, name: str) -> None:
        """A copy of a run that was made once: ``finished``, ``stopped`` or ``adapter``."""
        shutil.copytree(self.made / name, self.folder / name)


Setup = Callable[[Kitchen], None]


RUNS = ("finished", "adapter", "stopped")


def prepare(made: Path, runs: Sequence[str] = RUNS) -> Path:
    """What the cases share, made once: the tiny model and short runs of it."""
    from tests.conftest import make_tiny_llama

    make_tiny_llama(made / "tiny")
    with kitchen(made, made / "first", pytest.MonkeyPatch()) as here:
        train = ("--quiet", "train", "dpo", "-m", "tiny", "-d", "pairs.jsonl", "--samples", "0")
        more = ("--batch", "4", "--threads", "1", "--max-length", "64", "--lr", "1e-3")
        own = {"adapter": ("--no-full", "--lora-r", "2"), "stopped": ("--save-every", "1")}
        for name in runs:
            answer = run(*train, *more, *own.get(name, ()), "-o", name)
            assert answer.status == 0, answer
            if name == "stopped":
                shutil.rmtree(here.folder / name / "final")
            shutil.copytree(here.folder / name, made / name)
    return made


@contextmanager
def kitchen(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kitchen]:
    """Within, the current folder holds the tiny model and feedback of four kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    here = Kitchen(folder, monkeypatch, made)
    with monkeypatch.context() as patch:
        here.monkeypatch = patch
        patch.chdir(folder)
        patch.setenv("POLYALIGN_CACHE", str(made / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("COLUMNS", raising=False)
        here.model()
        here.rows("pairs.jsonl", PAIRS)
        here.rows("thumbs.jsonl", THUMBS)
        here.rows("scored.jsonl", SCORED)
        here.rows("prompts.jsonl", PROMPTS)
        yield here
