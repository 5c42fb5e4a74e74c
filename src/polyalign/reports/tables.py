"""Tables for the screen, each also as plain data for ``--json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polyalign.reports import words
from polyalign.reports.html import overview
from polyalign.reports.results import results
from polyalign.reports.rundata import RunData, display

if TYPE_CHECKING:
    from rich.table import Table as RichTable

HEADS = ("run", "method", "steps", "time", "last loss", "last accuracy", "ranking accuracy", "KL",
         "success")  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table: headings, rows of text, and the plain data behind it."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Any = None
    caption: str = ""
    left: Sequence[int] = field(default=(0,))

    def rich(self) -> RichTable:
        """For the screen; columns not in ``left`` stand at the right."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=self.title or None,
            caption=self.caption or None,
            title_justify="left",
            caption_justify="left",
        )
        for i, head in enumerate(self.heads):
            table.add_column(head, justify="left" if i in self.left else "right")
        for row in self.rows:
            # Text, not markup: what comes from files may hold square brackets.
            table.add_row(*(Text(cell) for cell in row))
        return table

    def to_json(self) -> Any:
        """The data behind the table; without any, the rows by heading."""
        if self.data is not None:
            return self.data
        return [dict(zip(self.heads, row)) for row in self.rows]


def show(
    table: Table | Sequence[Table], as_json: bool, echo: Callable[[Any], None] | None = None
) -> None:
    """Print tables, or their data as JSON; ``echo`` defaults to the screen."""
    tables = [table] if isinstance(table, Table) else list(table)
    if as_json:
        data = [t.to_json() for t in tables]
        print(json.dumps(data[0] if len(data) == 1 else data, indent=2, ensure_ascii=False))
        return
    if echo is None:
        from rich.console import Console

        echo = Console().print
    for each in tables:
        echo(each.rich())


def evaluation_table(found: Mapping[str, Any]) -> Table:
    """What :func:`~polyalign.evaluation.api.evaluate` returned: before, after, change."""
    from pathlib import Path

    lines = results(RunData(Path("."), str(found.get("subject", "")), evaluation=dict(found)))
    one: Mapping[str, Any] = next(iter((found.get("with") or {}).values()), {})
    about = {**one, **found}
    against = about.get("reference")
    title = f"{display(about.get('subject', 'model'))}"
    if against:
        title += f" against {display(against)}"
    data = about.get("data") or {}
    caption = "Brackets hold 95 % intervals, resampling prompts."
    if written := (about.get("condition") or {}).get("text"):
        caption = f"Asked with: {written.strip()} {caption}"
    if data.get("rejected"):
        caption += f" {words.count(int(data['rejected']), 'malformed row')} left out."
    for part, name in (("ranking", "pair"), ("perplexity", "answer")):
        if emptied := (found.get(part) or {}).get("emptied"):
            caption += f" {words.count(int(emptied), name)} left out, emptied by the length limit."
    return Table(
        title,
        ("measure", "before", "after", "change", "measured on"),
        [(x.measure, x.before, x.after, x.change, x.n) for x in lines],
        dict(found),
        caption,
    )


def runs_table(runs: Sequence[RunData]) -> Table:
    """Runs side by side."""
    return Table("", HEADS, overview(runs), left=(0, 1))
