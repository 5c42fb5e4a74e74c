"""The report: one HTML file that explains runs to somebody who has never seen the project.

Self-contained: no script, no network, well below a megabyte. Everything that comes from a run is
escaped; only our own drawings are not (they escape what they write).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

import polyalign
from polyalign.engine.storage import write_text_atomic
from polyalign.errors import OptionError
from polyalign.reports import pieces, words
from polyalign.reports.comparison import Comparison
from polyalign.reports.filled import filled
from polyalign.reports.glossary import GLOSSARY
from polyalign.reports.results import results
from polyalign.reports.rundata import RunData, read_run


def report(
    run_folders: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    comparison: Comparison | None = None,
    title: str | None = None,
) -> Path:
    """Write the report of one run or of several side by side, and return its path.

    ``out`` defaults to ``report.html`` in the (first) run's folder. ``comparison`` puts a table of
    rows and tests on top. Raises :class:`RunError` for a folder that is no run, and for what cannot
    be written; parts of a run that are missing are left out and named.
    """
    if not run_folders and comparison is None:
        raise OptionError("There is no run to report on.", "Give one or more run folders.")
    runs = [read_run(folder) for folder in run_folders]
    if out is None:
        if not runs:
            raise OptionError("A report without runs needs a path.", "Give out=report.html.")
        out = runs[0].path / "report.html"
    path = Path(out)
    if path.is_dir():
        path = path / "report.html"
    write_text_atomic(path, render(_named_apart(runs), comparison=comparison, title=title))
    return path


def render(
    runs: Sequence[RunData], *, comparison: Comparison | None = None, title: str | None = None
) -> str:
    """The page as text."""
    known, other = pieces.figures(runs)
    return filled(
        "report.html.j2",
        title=title
        or (f"Training report: {runs[0].name}" if len(runs) == 1 else "Comparison of runs"),
        runs=runs,
        many=len(runs) > 1,
        story=pieces.story,
        results=results,
        samples=pieces.samples,
        figures=known,
        others=other,
        accuracy=pieces.accuracy_picture(runs),
        margins=[(run.name, pieces.margins_picture(run)) for run in runs],
        calibration=[(run.name, pieces.calibration_picture(run)) for run in runs],
        overview=overview(runs),
        differing=differing(runs),
        comparison=comparison,
        as_yaml=as_yaml,
        versions=versions,
        glossary=GLOSSARY,
        words=words,
        version=polyalign.__version__,
    )


def overview(runs: Sequence[RunData]) -> list[list[str]]:
    """One line a run: what it is, how far it came, what it reached."""
    return [
        [
            run.name,
            run.method,
            f"{run.step}{'' if run.finished else ' [not finished]'}",
            words.duration(run.seconds),
            words.number(run.last("eval_loss") or run.last("loss")),
            words.percent(run.last("eval_rewards/accuracies") or run.last("rewards/accuracies")),
            words.estimate(
                ((run.evaluation.get("ranking") or {}).get("accuracy") or {}).get("implicit"), True
            ),
            words.estimate((run.evaluation.get("divergence") or {}).get("kl")),
            words.estimate((run.evaluation.get("judge") or {}).get("success"), True),
        ]
        for run in runs
    ]


def differing(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """The options in which the runs differ, with each run's value."""
    flat = [_flat(run.config) | _flat(run.plan) for run in runs]
    names = sorted({name for options in flat for name in options})
    skip = {"output", "notes", "seconds", "memory_bytes", "tokens", "model"}
    return [
        (name, [words.number(options.get(name)) for options in flat])
        for name in names
        if name not in skip and len({repr(options.get(name)) for options in flat}) > 1
    ]


def versions(run: RunData) -> dict[str, Any]:
    """What the run was made with."""
    names = ("torch", "python", "device", "dtype", "threads", "processes", "seed")
    return {name: run.plan[name] for name in names if run.plan.get(name) is not None}


def as_yaml(data: Any) -> str:
    """Data as YAML, in the order it has."""
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True)).strip()


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = str(value) if isinstance(value, list) else value
    return out


def _named_apart(runs: Sequence[RunData]) -> list[RunData]:
    """Runs whose folders have the same name are told apart by the folder above, then by number."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return list(runs)
    longer = [f"{run.path.resolve().parent.name}/{run.name}" for run in runs]
    if len(set(longer)) < len(longer):
        longer = [f"{name} ({i + 1})" for i, name in enumerate(longer)]
    return [replace(run, name=name) for run, name in zip(runs, longer)]
