"""A run folder as data: whatever of it is there, for people to look at."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from polyalign.engine.storage import read_lines
from polyalign.errors import PolyalignError, RunError
from polyalign.evaluation.diagnosis import Advice, advise, series
from polyalign.runs.loggers import redact


@dataclass(frozen=True)
class RunData:
    """What a run folder holds; parts that are missing or cannot be read are empty.

    ``missing`` tells which could not be read and why. Nothing in it is a secret.
    """

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        """The method's id as the run spells it."""
        return str(self.plan.get("method") or self.config.get("method") or "unknown method")

    @property
    def model(self) -> str:
        """The model that training began with; a folder is called by its name."""
        return display(self.config.get("model") or self.final.get("base") or "unknown model")

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.final)

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return max((int(row.get("step", 0)) for row in self.history), default=0)

    @property
    def seconds(self) -> float | None:
        """Training time so far."""
        times = [float(row["time"]) for row in self.history if row.get("time") is not None]
        return max(times) if times else None

    @property
    def tokens(self) -> int | None:
        """Tokens trained on so far."""
        found = [int(row["tokens"]) for row in self.history if row.get("tokens") is not None]
        return max(found) if found else None

    @property
    def title(self) -> str | None:
        """The method's own first sentence, as the run wrote it down."""
        found = self.plan.get("title")
        return None if found is None else str(found)

    @property
    def arxiv(self) -> str | None:
        """The paper's identifier, as the run wrote it down."""
        found = self.plan.get("arxiv")
        return None if found is None else str(found)

    def last(self, name: str) -> float | None:
        """The last finite value of a metric."""
        found = series(self.history, name)
        return found[-1][1] if found else None

    def first(self, name: str) -> float | None:
        """The first finite value of a metric."""
        found = series(self.history, name)
        return found[0][1] if found else None


def read_run(path: str | Path) -> RunData:
    """Read a run folder; raises :class:`RunError` where there is none at all."""
    folder = Path(path).expanduser()
    parts = ("config.yaml", "plan.json", "metrics.jsonl")
    if not folder.is_dir() or not any((folder / part).exists() for part in parts):
        raise RunError(
            f"{folder} is not a run folder: it has none of {', '.join(parts)}.",
            "Give the folder that polyalign train --output made.",
        )
    missing: list[str] = []

    def data(name: str) -> dict[str, Any]:
        try:
            text = (folder / name).read_text("utf-8")
            found = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            missing.append(f"{name} cannot be read ({str(error).splitlines()[0]})")
            return {}
        return redact(found) if isinstance(found, dict) else {}

    def lines(name: str) -> list[dict[str, Any]]:
        try:
            return read_lines(folder / name)
        except PolyalignError as error:
            missing.append(error.what)
            return []

    history = [_tied(row) for row in lines("metrics.jsonl")]
    samples = lines("samples.jsonl")
    told = [
        Advice(str(row["code"]), str(row["text"]), int(row.get("step", 0)))
        for row in lines("advice.jsonl")
        if "code" in row and "text" in row
    ]
    # What was told during training may have passed; the whole history decides, and what only
    # the moment knew (numbers that broke down before a restart) stays.
    now = advise(history, samples)
    kept = [a for a in told if a.code == "divergence" and a.code not in {b.code for b in now}]
    return RunData(
        folder,
        folder.resolve().name,
        data("config.yaml"),
        data("plan.json"),
        history,
        samples,
        [*kept, *now],
        data("evaluation.json"),
        data("final/polyalign.json"),
        missing,
    )


def _tied(row: dict[str, Any]) -> dict[str, Any]:
    """Before the first step policy and reference agree and every pair is a tie, not a loss."""
    for prefix in ("", "eval_"):
        accuracy = f"{prefix}rewards/accuracies"
        chosen, rejected = row.get(f"{prefix}rewards/chosen"), row.get(f"{prefix}rewards/rejected")
        if row.get(accuracy) == 0 and chosen == 0 and rejected == 0:
            row = {**row, accuracy: 0.5}
    return row


def display(name: Any) -> str:
    """A model or data source as readers may see it: folders lose the path that leads to them.

    >>> display("/home/me/models/tiny"), display("org/model"), display("data/pairs.jsonl")
    ('tiny', 'org/model', 'data/pairs.jsonl')
    """
    text = str(name)
    if re.match(r"^(/|~|[A-Za-z]:[\\/]|\.\.)", text):
        return re.split(r"[\\/]", text.rstrip("\\/"))[-1]
    return text
