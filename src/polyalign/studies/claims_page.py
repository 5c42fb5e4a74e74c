"""The page of the ledger: every held method, its claim, and what was measured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from polyalign.methods import catalogue
from polyalign.studies.claims import Entry, declared, entry_of

HEAD = """# Claims, measured at desk size

What the papers say of their methods, each turned into the smallest experiment that can tell, with
one figure, a direction and a threshold that were declared before the first run (the files in
[`claims/`](../claims)). The worlds are small and exact: a claim that holds there holds of the
objective with this feedback, and says little of large models; one that does not hold there may
still hold elsewhere. **A miss is a result.** Where a declaration was made anew after a
figure was seen, the table says what was tried before and what came of it.

This page is written by `polyalign claims page`; `polyalign claims run METHOD` measures again, and
a result whose code has changed is shown as *stale*.
"""


def render(folder: Path) -> str:
    """The page as Markdown: a summary, measured claims, the rest, and methods without a claim."""
    entries = [entry_of(claim, folder / "results") for claim in declared(folder)]
    count = Counter(entry.status for entry in entries)
    summary = ", ".join(f"{n} {status}" for status, n in sorted(count.items()))
    held = [id for id in catalogue() if not any(id in e.claim.methods for e in entries)]
    lines = [HEAD, f"{len(entries)} claims: {summary}.", ""]
    measured = [e for e in entries if not e.claim.unmeasurable]
    lines += [
        "## Measured",
        "",
        "| claim | of | result | figure (mean over seeds; lowest to highest) | threshold | time | "
        "command |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_line(e) for e in measured),
        "",
        "## Not measurable here",
        "",
        "| claim | of | why |",
        "| --- | --- | --- |",
        *(
            f"| {_text(e.claim.claim)} | {', '.join(e.claim.methods)} | "
            f"{_text(e.claim.unmeasurable)} |"
            for e in entries
            if e.claim.unmeasurable
        ),
        "",
    ]
    if held:
        lines += ["## Not declared yet", "", ", ".join(f"`{id}`" for id in sorted(held)) + ".", ""]
    return "\n".join(lines)


def _line(entry: Entry) -> str:
    claim = entry.claim
    told = "–"
    if entry.value is not None:
        told = f"{entry.value:.3g} ({min(entry.by_seed):.3g} to {max(entry.by_seed):.3g})"
    sign = {"above": "over", "below": "under"}[claim.direction]
    took = f"{entry.seconds:.0f} s" if entry.seconds is not None else "–"
    tried = f" *Tried: {_text(claim.tried)}*" if claim.tried else ""
    return (
        f"| {_text(claim.claim)} | {', '.join(claim.methods)} | {entry.status} | "
        f"{_text(claim.figure)}: **{told}**{tried} | {sign} {claim.threshold:g} | {took} | "
        f"`{claim.command}` |"
    )


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
