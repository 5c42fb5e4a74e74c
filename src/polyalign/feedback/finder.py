"""Making findings about one set: keys and places of the examples are looked up here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from polyalign.feedback.report import EXAMPLES, Finding, Level
from polyalign.feedback.table import FeedbackSet


class Findings:
    """Makes findings about one set."""

    def __init__(self, feedback: FeedbackSet) -> None:
        self.feedback = feedback

    def example(self, row: int, **more: Any) -> dict[str, Any]:
        """A row as an example: its key and place."""
        file, number = self.feedback.place(row)
        return {"key": self.feedback[row].key, "file": file, "row": number, **more}

    def make(
        self,
        level: Level,
        code: str,
        message: str,
        rows: Sequence[int],
        *,
        removed: bool = False,
        details: Sequence[dict[str, Any]] = (),
        count: int | None = None,
        of: int | None = None,
        unit: str = "rows",
    ) -> Iterator[Finding]:
        """A finding, unless there is nothing to report."""
        if not rows and not count:
            return
        more = [*details[:EXAMPLES], *({} for _ in range(EXAMPLES))]
        examples = [self.example(r, **d) for r, d in zip(rows, more, strict=False)][:EXAMPLES]
        yield Finding(
            level,
            code,
            message,
            len(rows) if count is None else count,
            len(self.feedback) if of is None else of,
            tuple(examples),
            tuple(rows),
            removed,
            unit,
        )
