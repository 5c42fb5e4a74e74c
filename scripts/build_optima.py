"""Write docs/optima.md: every method with a known optimum, and how far from it the method ends.

    python scripts/build_optima.py        # about a minute

The table is the laboratory's (``polyalign lab --all --markdown``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from polyalign.reports.lab import markdown
from polyalign.studies.experiments import lab

PAGE = Path(__file__).resolve().parent.parent / "docs" / "optima.md"
HEAD = """# Optima

What theory says that each method finds, and how far from it the method ends. Written by
`python scripts/build_optima.py`; the table alone is `polyalign lab --all --markdown`, one method
`polyalign lab METHOD`, which also draws its reward-KL curve.

Each method runs with its own declaration, units, engine and loops on the *population* of a small
world's feedback: every possible record once, weighted by its probability, in float64, so nothing is
left to sampling. The loops descend with full batches; where the objective stands still, Newton's
method on the engine's gradient goes on to the last digits.

- **bandit**: two prompts (unless the row needs another number), a softmax over a few responses, a
  random reference, gold rewards and Bradley-Terry labels. **sequences**: every sequence of a small
  vocabulary, here of one and two tokens, so that what methods do with lengths is exact.
  **loglinear**: instructions and responses by features. **lqr**: linear control.
- *distance*: the largest total variation over prompts between the end and the closed form; where
  there is none, the figure that the row describes. *within*: what the tests allow.
- *gradient there*: the largest entry of the population gradient with the policy set to the closed
  form, which involves no optimizer at all.
- The closed forms stand with their derivations in `src/polyalign/worlds/closed_forms.py`, and
  which one a method has in `src/polyalign/methods/optima/`. n is an answer's number of tokens, c
  and lambda what makes the law sum to one, D a difference of log pi/ref, s = sig(beta log pi/ref).
- A method without a row in the tables there is tried where its gradient must vanish; rows without a
  closed form say what is checked instead.

"""
NOT_TRIED = "\n## Not tried\n\n"


def page(rows: list[dict[str, object]], refused: dict[str, str]) -> str:
    """The whole page."""
    rest = "".join(f"- {name}: {why}\n" for name, why in refused.items())
    return HEAD + markdown(rows) + (NOT_TRIED + rest if rest else "")


def main() -> None:
    """Run everything and write the page; a row that misses what it should reach is an error."""
    refused: dict[str, str] = {}
    rows = lab(progress=tell, refused=refused)
    PAGE.write_text(page(rows, refused), encoding="utf-8")
    missed = [row["name"] for row in rows if not row["reached"]]
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


def tell(name: str, done: int, total: int) -> None:
    """One line on stderr that is written over."""
    print(f"\r{done}/{total} {name:40s}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
