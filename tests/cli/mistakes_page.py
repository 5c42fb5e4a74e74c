"""Write docs/mistakes.md from mistakes made for real: python -m tests.cli.mistakes_page."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.cli.kit import Answer, kitchen, prepare
from tests.cli.mistakes import MISTAKES, SECTIONS, Mistake

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mistakes.md"
INTRODUCTION = f"""# Mistakes, and what polyalign says

Every message says in one sentence what is wrong and where, and after the arrow what mends it. The
exit status is never zero, and there is no traceback unless you ask for one with `--debug`.

This page is written by the tests that make these {len(MISTAKES)} mistakes
(`python -m tests.cli.mistakes_page`); `tiny` is a small model, `pairs.jsonl`, `thumbs.jsonl`,
`scored.jsonl` and `prompts.jsonl` are small files of feedback.
"""


def block(mistake: Mistake, answer: Answer) -> str:
    """One mistake as it stands on the page."""
    quoted = "".join(f" '{word}'" for word in mistake.last)
    said = "\n".join(f"    {line}" for line in answer.err.strip().splitlines())
    return f"### {mistake.did}\n\n    $ polyalign {mistake.typed}{quoted}\n{said}\n"


def page(blocks: dict[str, str]) -> str:
    """The whole page; ``blocks`` by the mistakes' ids."""
    parts = [INTRODUCTION]
    for title, mistakes in SECTIONS.items():
        parts += [f"## {title}\n", *(blocks[mistake.id] for mistake in mistakes)]
    return "\n".join(parts)


def main() -> None:
    """Make every mistake and write the page."""
    with tempfile.TemporaryDirectory() as scratch:
        made = prepare(Path(scratch))
        blocks = {}
        for mistake in MISTAKES:
            with kitchen(made, made / "at" / mistake.id, pytest.MonkeyPatch()) as here:
                blocks[mistake.id] = block(mistake, mistake.provoke(here))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(blocks), encoding="utf-8")
    print(f"{len(MISTAKES)} mistakes in {PAGE}")


if __name__ == "__main__":
    main()
