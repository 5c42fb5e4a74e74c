"""``fix``: the rows that are left when a check's findings are taken out, and those taken."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from polyalign.errors import OptionError, nearest
from polyalign.feedback.payloads import plain
from polyalign.feedback.records import Record
from polyalign.feedback.report import CheckReport
from polyalign.feedback.rowstore import Reject
from polyalign.feedback.table import FeedbackSet
from polyalign.feedback.writing import own_rows, write, write_rejects


@dataclass(frozen=True)
class Fixed:
    """The clean rows, and every row taken out with its reason."""

    clean: FeedbackSet
    rejects: list[Reject]

    def write(self, path: str | os.PathLike[str]) -> tuple[Path, Path | None]:
        """Write the clean rows in the input's own columns, and the rejects beside them.

        Rejects go to ``NAME.rejects.jsonl``; where there are none, no such file is written.
        """
        target = write(own_rows(self.clean), path)
        if not self.rejects:
            return target, None
        stem = target.name.split(".")[0] if target.is_file() else target.name
        return target, write_rejects(self.rejects, target.parent / f"{stem}.rejects.jsonl")


def fix(
    feedback: Iterable[Record], report: CheckReport, codes: Collection[str] | None = None
) -> Fixed:
    """Take out the rows of the findings that can be mended by leaving rows out.

    ``codes`` chooses findings by code; otherwise all whose ``removed`` is true. Of duplicates
    the first row stays; of contradictions none does. Raises :class:`OptionError` for a code
    that the report does not have.
    """
    base = FeedbackSet.of(feedback)
    known = {finding.code for finding in report.findings}
    for code in codes or ():
        if code not in known:
            raise OptionError(f"The report has no finding {code!r}.", nearest(code, known))
        found = report.finding(code)
        if found is not None and not found.rows and code != "malformed":
            raise OptionError(
                f"The finding {code} names no rows that could be left out.", "Choose another."
            )
    reasons: dict[int, tuple[str, str]] = {}
    for finding in report.findings:
        if finding.removed if codes is None else finding.code in codes:
            for row in finding.rows:
                reasons.setdefault(row, (finding.code, finding.message.rstrip(":")))
    rejects = list(base.rejects)
    for row in sorted(reasons):
        file, number = base.place(row)
        code, message = reasons[row]
        rejects.append(Reject(file, number, code, message, plain(base.raw(row)), base[row].key))
    clean = base.select(row for row in range(len(base)) if row not in reasons)
    return Fixed(clean, rejects)
