"""What the command line prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polyalign.errors import PolyalignWarning

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 200
"""Columns of a table that goes into a file or a pipe, where nothing is wrapped for a screen."""


@dataclass
class Screen:
    """The global options of this invocation."""

    debug: bool = False
    quiet: bool = False


screen = Screen()


def first_process() -> bool:
    """Whether this process speaks: the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def out() -> Console:
    """Where results go."""
    return _console(sys.stdout)


def err() -> Console:
    """Where notes, progress and mistakes go."""
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    from rich.console import Console

    wide = not file.isatty() and "COLUMNS" not in os.environ
    return Console(file=file, width=WIDE if wide else None, highlight=False)


def note(text: str) -> None:
    """One line that is no result; silent under ``--quiet``."""
    if not screen.quiet:
        err().print(text, markup=False, style="dim", soft_wrap=True)


def say(text: str) -> None:
    """One line of a result."""
    out().print(text, markup=False, soft_wrap=True)


def mistake(what: str, mend: str = "") -> None:
    """What is wrong in red, and the mend below it."""
    console = err()
    console.print(what, markup=False, style="bold red", soft_wrap=True)
    if mend:
        console.print(f"→ {mend}", markup=False, soft_wrap=True)


def emit(data: Any) -> None:
    """Pure JSON on stdout: what is not a number there becomes null."""
    sys.stdout.write(json.dumps(plain(data), indent=2, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """Data as JSON can hold it."""
    match value:
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case str() | bool() | int() | None:
            return value
        case float():
            return value if value == value and abs(value) != float("inf") else None
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()
) -> None:
    """A table on stdout; the columns named in ``right`` hold figures."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        shown.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(figure(cell)) for cell in row))
    out().print(shown)


def figure(value: Any) -> str:
    """A cell: numbers with four significant digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def results_only() -> Iterator[None]:
    """Within, whatever a library prints goes to stderr, so stdout holds results alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Within, our warnings are one yellow line each; those of libraries are for ``--debug``."""

    def show(message: Any, category: Any, *rest: Any, **named: Any) -> None:
        if issubclass(category, PolyalignWarning):
            if not screen.quiet:
                line = f"Warning: {message}"
                err().print(line, markup=False, style="yellow", soft_wrap=True)
        elif screen.debug:
            old(message, category, *rest, **named)

    with warnings.catch_warnings():
        old = warnings.showwarning
        warnings.simplefilter("always", PolyalignWarning)
        warnings.showwarning = show
        yield


QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def silence_libraries() -> None:
    """Libraries keep their bars and advice to themselves, before or after they are loaded."""
    import logging

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("transformers", "datasets", "peft", "accelerate", "huggingface_hub", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("transformers.utils.logging", "datasets.utils.tqdm"):
        module = sys.modules.get(name)
        for switch in ("disable_progress_bar", "disable_progress_bars"):
            if module is not None and hasattr(module, switch):
                getattr(module, switch)()
