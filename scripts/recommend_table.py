"""Write docs/recommend.md: what ``polyalign recommend`` says of each set in ../shared/data.

    python scripts/recommend_table.py [DATA]

Only figures and names are written, never a text of the data.
"""

from __future__ import annotations

import sys
from pathlib import Path

from polyalign.errors import PolyalignError
from polyalign.studies.recommend import recommend

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1200

HEAD = """# Which method for which feedback

`polyalign recommend --data FILE [--model M] [--budget N]` looks at feedback (its kind, length bias,
wrong labels as far as votes or contradictions tell, list sizes, balance), matches it with the
declarations of the methods, and says which fit, why, and what that cannot know. Nothing is trained,
and nobody is named a winner: it ends with the `polyalign compare` that would tell.

What it says of the sets of real feedback that we test with (the first 1,200 rows of each; sets that
are no feedback on answers of a policy, such as logged clicks, are refused by the reader, as the
table says). Points come from declarations and figures, not from results.

| set | kind | seen | first advice, with its reason | lacks something | what it cannot know |
| --- | --- | --- | --- | --- | --- |
"""


def line(name: str, path: Path) -> str:
    """One set's row."""
    try:
        found = recommend(str(path), limit=LIMIT)
    except PolyalignError as error:
        return f"| {name} | – | not read: {_cell(error.what)} | – | – | – |"
    advice = "; ".join(
        f"**{a['id']}** ({', '.join(a['reasons'])})" for a in found["recommended"][:3]
    )
    lacking = ", ".join(f"{a['id']} ({' and '.join(a['needs'])})" for a in found["missing"][:2])
    unknown = [u.split(":")[0] for u in found["unknown"][1:]]
    return (
        f"| {name} | {found['facts']['kind']} | {_cell(' '.join(found['seen'][:4]))} | "
        f"{_cell(advice) or 'none fits as it is'} | {_cell(lacking) or '–'} | "
        f"{_cell('; '.join(unknown))} |"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace(str(ROOT.parent), "..")


def main() -> int:
    """Write the page."""
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data"
    files = sorted(data.glob("*/train.jsonl.gz"))
    if not files:
        print(f"{data} holds no data sets.", file=sys.stderr)
        return 1
    lines = []
    for path in files:
        print(path.parent.name, file=sys.stderr)
        lines.append(line(path.parent.name, path))
    (ROOT / "docs" / "recommend.md").write_text(HEAD + "\n".join(lines) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
