"""A group of commands that says what was meant when it does not know a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from polyalign.errors import OptionError, nearest

MEANT = {
    "check": "data check",
    "convert": "data convert",
    "split": "data split",
    "pair": "data pair",
    "stats": "data stats",
    "merge": "model merge",
    "get": "model get",
    "list": "methods",
    "ls": "methods",
    "show": "methods show",
    "env": "doctor",
    "eval": "evaluate",
    "generate": "sample",
    "chat": "sample",
    "resume": "train --resume",
    "validate": "train METHOD --dry-run",
}
"""Commands that people know from elsewhere, or look for one level too high."""

ORDER = ("doctor", "model", "data", "methods", "recommend", "train", "compare", "import-config",
         "evaluate", "sample", "report", "lab", "claims", "completion")  # fmt: skip


class Commands(TyperGroup):
    """Commands in the order in which a newcomer needs them; an unknown one gets the nearest."""

    def list_commands(self, ctx: Any) -> list[str]:
        place = {name: at for at, name in enumerate(ORDER)}
        return sorted(self.commands, key=lambda name: place.get(name, len(place)))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown(args[0], ctx.command_path, self.commands)
        return super().resolve_command(ctx, args)


def unknown(name: str, path: str, commands: Sequence[str] | Any) -> OptionError:
    """The error for a command that is not there; a method's name asks to be trained."""
    what = f"There is no command '{path} {name}'."
    if " " not in path:
        from polyalign.methods import catalogue, fold, usage

        if name in MEANT:
            return OptionError(what, f"Use: {path} {MEANT[name]}")
        for id, entry in catalogue().items():
            if fold(name) in {fold(id), *map(fold, entry.get("aliases", ()))}:
                return OptionError(what, f"{id} is a method: {usage(id, entry)}")
    return OptionError(what, nearest(name, commands))


def group(help: str, *examples: str, name: str | None = None, bare: bool = False) -> typer.Typer:
    """A group of commands with examples in its help; a ``bare`` one works without a command."""
    return typer.Typer(
        name=name,
        help=help,
        cls=Commands,
        epilog=epilog(*examples),
        no_args_is_help=not bare,
        add_completion=False,
        rich_markup_mode="rich",
    )


def epilog(*examples: str) -> str | None:
    """Examples below a command's help, one a line."""
    if not examples:
        return None
    lines = [f"[dim]$[/dim] {escape(example)}" for example in examples]
    return "\n".join(["[bold]Examples[/bold]", *lines])
