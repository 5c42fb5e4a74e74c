"""``compare``: methods from one start, on one data order, at one budget of computed tokens.

Each finished cell (a row at a seed) is a small JSON under the hash of what it depends on, so an
interrupted comparison goes on where it stopped. Cells run in turn in this process, or in parallel
on a Ray cluster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from polyalign.engine.storage import make_folder, write_json_atomic, write_text_atomic
from polyalign.errors import OptionError, RunError
from polyalign.reports import compare_page
from polyalign.runs.folder import Silent, Watcher
from polyalign.studies.compare_part import Part
from polyalign.studies.compare_result import summarise
from polyalign.studies.compare_setup import (
    Job,
    Setup,
    check_primary,
    jobs_of,
    judge_fingerprint,
    parse_budget,
    parse_search,
    rows_of,
)

PASSES = 2.0
"""The default budget pays for so many tokens as the training data have, twice: one pass of policy
and reference.
"""


def compare(
    methods: Sequence[str],
    *,
    model: str = "",
    data: str | Sequence[str] = (),
    output: str | Path,
    eval_data: str | Sequence[str] = (),
    world: str = "",
    budget: str | int | None = None,
    seeds: int = 1,
    judge: str | None = None,
    primary: str | None = None,
    texts: bool = True,
    search: Sequence[str] = (),
    ray: str | None = None,
    watcher: Watcher | None = None,
    title: str | None = None,
    dry_run: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Compare methods and write ``comparison.json`` and ``report.html`` into ``output``.

    ``methods``: ids, aliases, FILE.py:function, each with ``:name=value,…``; the rows base, SFT on
    chosen, best of n of the base, shuffled labels and the first method again are always there.
    ``options``: fields of :class:`Setup` and options of ``train``. With ``dry_run`` everything is
    checked, nothing is computed or written, and what would be is returned (:func:`outlook`).
    Raises :class:`PolyalignError` for what the user can mend, before anything is trained.
    """
    watcher = watcher or Silent()
    own = {name: options.pop(name) for name in list(options) if name in _OWN}
    if seeds < 1:
        raise OptionError(f"seeds={seeds} trains nothing.", "Give at least 1.")
    setup = Setup(
        rows=rows_of(methods),
        seeds=tuple(range(seeds)),
        budget=parse_budget(budget) if budget is not None else 0,
        primary=primary or "",
        model=model,
        data=_several(data),
        eval_data=_several(eval_data),
        world=world,
        judge=judge,
        texts=texts,
        search=parse_search(search),
        train=options,
        **own,
    )
    setup = declare(setup, watcher)
    folder = Path(output)
    if dry_run:
        return outlook(setup, folder)
    make_folder(folder / "cells")
    write_json_atomic(folder / "setup.json", setup.to_json())
    cells = computed(setup, folder, watcher, ray)
    result = result_of(setup, cells, title)
    write_json_atomic(folder / "comparison.json", result)
    write_text_atomic(folder / "report.html", compare_page.render(result))
    watcher.note(f"Report: {folder / 'report.html'}")
    return result


_OWN = ("limit", "test", "share", "prompts", "answers", "best_of", "temperature", "max_new_tokens")
"""Options of ``compare`` that are fields of the setup."""


def _several(data: str | Sequence[str]) -> tuple[str, ...]:
    return (data,) if isinstance(data, str) and data else tuple(data)


def declare(setup: Setup, watcher: Watcher) -> Setup:
    """The setup with everything decided that a user may leave open; checks what can be checked."""
    if setup.world:
        from polyalign.studies.compare_world import declare_world

        return declare_world(setup)
    for name, mend in (("model", "Add --model smollm2."), ("data", "Add --data FILE.")):
        if not getattr(setup, name):
            raise OptionError(f"A comparison needs {name}.", mend)
    bench = bench_of(setup, watcher)
    primary = check_primary(setup.primary or None, bench.has())
    for row in setup.rows:
        if row.method:
            bench.records_for(row)
            bench.config(row, 0)
    budget = setup.budget or int(PASSES * bench.tokens())
    prints = bench.fingerprints() | {"judge": judge_fingerprint(setup.judge)}
    return replace(setup, primary=primary, budget=budget, fingerprints=prints)


def outlook(setup: Setup, folder: Path) -> dict[str, Any]:
    """What a declared comparison will compute: its cells, those that are there already, tokens."""
    cells = [
        {"row": job.row.label, "seed": job.seed, "trains": bool(job.row.method),
         "done": stored(folder, job) is not None}
        for job in jobs_of(setup)
    ]  # fmt: skip
    left = sum(bool(cell["trains"]) and not cell["done"] for cell in cells)
    return {"primary": setup.primary, "budget": setup.budget, "cells": cells,
            "tokens": left * setup.budget}  # fmt: skip


def bench_of(setup: Setup, watcher: Watcher | None = None) -> Any:
    """The bench of a setup; one is kept in this process."""
    wanted = replace(setup, rows=setup.rows[:2], fingerprints={}, primary="", budget=0)
    bench = _bench(json.dumps(wanted.to_json()))
    if watcher is not None:
        bench.progress = watcher.progress
    return bench


@lru_cache(maxsize=1)
def _bench(text: str) -> Any:
    from polyalign.studies.compare_bench import Bench

    return Bench(Setup.from_json(json.loads(text)))


def perform(job: Job, watcher: Watcher | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Compute one cell in this process; what it keeps while it is unfinished lies in ``folder``."""
    with Part(folder).held() as part:
        if job.setup.world:
            from polyalign.studies.compare_world import run_world_cell

            return run_world_cell(job, part)
        from polyalign.studies.compare_cell import run_cell

        return run_cell(job, bench_of(job.setup, watcher), part)


def computed(
    setup: Setup, folder: Path, watcher: Watcher, ray: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """All cells by row label: those of earlier runs are read, the others computed and kept."""
    jobs = jobs_of(setup)
    missing = [job for job in jobs if stored(folder, job) is None]
    if len(missing) < len(jobs):
        watcher.note(f"{len(jobs) - len(missing)} of {len(jobs)} cells are there already.")
    if ray and missing:
        from polyalign.studies.compare_ray import on_ray

        run = on_ray(missing, ray, folder, watcher)
    else:
        run = in_turn(missing, folder, watcher)
    for number, (job, cell) in enumerate(run, 1):
        write_json_atomic(folder / "cells" / f"{job.key}.json", {**cell, "key": job.key})
        Part(part_of(folder, job)).remove()
        watcher.note(f"{number} of {len(missing)}: {job.row.label}, seed {job.seed}, is done.")
    cells: dict[str, list[dict[str, Any]]] = {row.label: [] for row in setup.rows}
    for job in jobs:
        found = stored(folder, job)
        if found is None:
            raise RunError(f"The cell {job.key} of {job.row.label} cannot be read back.")
        cells[job.row.label].append({**found, "row": job.row.label})
    return cells


def part_of(folder: Path, job: Job) -> Path:
    """Where an unfinished cell keeps what it has."""
    return folder / "cells" / f"{job.key}.part"


def stored(folder: Path, job: Job) -> dict[str, Any] | None:
    """A finished cell of an earlier run, or None; a damaged file counts as none."""
    path = folder / "cells" / f"{job.key}.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return dict(found) if isinstance(found, dict) and found.get("key") == job.key else None


def in_turn(
    jobs: Sequence[Job], folder: Path, watcher: Watcher
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Cells one after the other, in this process."""
    for number, job in enumerate(jobs, 1):
        watcher.note(f"{number} of {len(jobs)}: {job.row.label}, seed {job.seed}")
        yield job, perform(job, watcher, part_of(folder, job))


def result_of(
    setup: Setup, cells: Mapping[str, Sequence[Mapping[str, Any]]], title: str | None = None
) -> dict[str, Any]:
    """The result with what it was made from: all that the report shows."""
    result = summarise(setup, cells)
    data = "/".join(Path(setup.data[0]).parts[-2:]) if setup.data else setup.world
    made = next(iter(cells.values()))[0].get("made") or {}
    plan = {
        name: value
        for name, value in setup.to_json().items()
        if name not in ("rows", "fingerprints", "texts")
    }
    for name in ("data", "eval_data"):
        plan[name] = ["/".join(Path(text).parts[-2:]) for text in plan[name]]
    return result | {
        "title": title or f"Methods compared on {data}",
        "setup": plan,
        "fingerprints": dict(setup.fingerprints),
        "made": made,
        "texts": setup.texts,
    }
