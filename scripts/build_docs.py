"""Write what is generated: the methods' index and a page for each method.

    python scripts/build_docs.py        # or: make docs

One fact has one text: the formula, the advice and the options stand in the declarations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyalign.cli.methods import LABELS, bounds, paragraphs, spelled
from polyalign.methods import usage
from polyalign.methods.taxonomy import CONCERNS, DIMENSIONS

ROOT = Path(__file__).resolve().parent.parent
METHODS = ROOT / "docs" / "methods"
FAMILIES = {
    "supervised": "Imitation",
    "direct_pairwise": "Pairs: reward, margin, link",
    "direct_pointwise": "Single answers against a zero point",
    "tokenwise": "Pairs, token by token",
    "transport": "Distributions of rewards",
    "path_consistency": "Value and policy together",
    "group_policy_gradient": "Sampling and judging: policy gradient",
    "iterated": "In stages",
    "reference_schedules": "References that move, stages over data and objectives",
    "measurements": "Measurements",
    "actor_critic": "Control",
}
"""Headings of the list, by the module that declares a family."""

SCHEDULES = "A number may be a schedule over the run, in quotes: `'beta=0.5->0.1'`."


def generated(entries: Mapping[str, Mapping[str, Any]]) -> dict[Path, str]:
    """Every generated page by its path."""
    pages = {METHODS / f"{id}.md": page(id, entry) for id, entry in entries.items()}
    return {METHODS / "README.md": listing(entries)} | pages


def listing(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The list of all methods, by family."""
    lines = [
        "# Methods",
        "",
        "Written by `make docs` from the declarations in `src/polyalign/methods/`. The same on the",
        "command line: `polyalign methods`, `polyalign methods show NAME`.",
    ]
    families = {entry["family"]: None for entry in entries.values()}
    order = [name for name in FAMILIES if name in families]
    for family in [*order, *sorted(set(families) - set(order))]:
        lines += ["", f"## {FAMILIES.get(family, family.replace('_', ' ').capitalize())}", ""]
        lines += [
            "| method | learns from | reference | what it does |",
            "| --- | --- | --- | --- |",
        ]
        for id, entry in entries.items():
            if entry["family"] == family:
                reference = "yes" if entry.get("needs", {}).get("references") else "no"
                title = table_safe(entry["title"])
                lines.append(f"| [{id}]({id}.md) | {entry['feedback']} | {reference} | {title} |")
    return "\n".join([*lines, *by_concern(entries)]) + "\n"


def by_concern(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The methods under each question of the taxonomy, which the command line groups by too."""
    lines = [
        "",
        "## By the question they answer",
        "",
        "The questions are those of the survey arXiv 2410.15595; a method may answer several.",
        "`polyalign methods --by DIMENSION` groups by any other dimension of the taxonomy:",
        f"{', '.join(DIMENSIONS)}.",
        "",
        "| question | methods |",
        "| --- | --- |",
    ]
    for name, meaning in CONCERNS.items():
        ids = [id for id, e in entries.items() if name in e.get("taxonomy", {}).get("concern", ())]
        if ids:
            links = ", ".join(f"[{id}]({id}.md)" for id in ids)
            lines.append(f"| {name}: {meaning} | {links} |")
    return lines


def page(id: str, entry: Mapping[str, Any]) -> str:
    """One method's page."""
    lines = [f"# {id}", "", entry["title"], ""]
    for part in paragraphs(entry["doc"].removeprefix(entry["title"]).strip()):
        label, colon, rest = part.partition(":")
        lines += [f"**{label}:** {rest.strip()}" if colon and label in LABELS else part, ""]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {name} | {table_safe(value)} |" for name, value in facts(entry)]
    lines += ["", "## Options", ""]
    if entry["hyper"]:
        lines += ["| option | default | type and bounds |", "| --- | --- | --- |"]
        lines += [
            f"| `{name}` | {table_safe(spelled(spec['default']))} | {table_safe(bounds(spec))} |"
            for name, spec in entry["hyper"].items()
        ]
    else:
        lines.append("None.")
    if entry.get("arrays"):
        lines += [
            "",
            "## Numbers",
            "",
            f'`polyalign.objective("{id}")` gives the loss and its gradients on arrays:',
            "",
            "| arrays | shape | what they are |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {' | '.join(map(table_safe, row))} |" for row in entry["arrays"]]
    first = next((f" {n}={spelled(s['default'])}" for n, s in entry["hyper"].items()), "")
    lines += [
        "",
        SCHEDULES,
        "",
        "## Use",
        "",
        f"    {usage(id, entry)}{first}",
        "",
    ]
    return "\n".join(lines)


def facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a method needs and where it comes from."""
    trains = entry["kind"] == "train"
    found = [("learns from" if trains else "reads", entry["feedback"])]
    if trains:
        found += _trained(entry)
    if entry["aliases"]:
        found.append(("also called", ", ".join(entry["aliases"])))
    if entry["tags"]:
        found.append(("tags", ", ".join(entry["tags"])))
    if entry["arxiv"]:
        found.append(("paper", f"[arXiv {entry['arxiv']}](https://arxiv.org/abs/{entry['arxiv']})"))
    return found


def _trained(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    needs = entry["needs"]
    found = [("reference models", ", ".join(needs["references"]) or "none")]
    if needs["modules"]:
        found.append(("trained beside the policy", ", ".join(needs["modules"])))
    if needs["couples"] != "unit":
        meaning = {
            "statistics": "a statistic of the whole step enters every example",
            "batch": "all examples of a step enter one value",
        }
        found.append(("examples of one step", meaning[needs["couples"]]))
    if entry["stages"] > 1:
        found.append(("stages", str(entry["stages"])))
    return found


def table_safe(text: str) -> str:
    """Text for a cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def main() -> None:
    """Write everything; pages of methods that are gone are removed."""
    from polyalign.methods import build_index

    build_index.INDEX.write_text(build_index.text(), encoding="utf-8")
    entries = {id: build_index.entry(d) for id, d in build_index.headers().items()}
    METHODS.mkdir(parents=True, exist_ok=True)
    pages = generated(entries)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    for path in set(METHODS.glob("*.md")) - set(pages):
        path.unlink()
    print(f"{len(pages)} pages in {METHODS.relative_to(ROOT)}, and the methods' index")


if __name__ == "__main__":
    main()
