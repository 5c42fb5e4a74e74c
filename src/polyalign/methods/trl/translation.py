"""A translation in progress: flags on one side, options and notes on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyalign.errors import OptionError

OFF: tuple[Any, ...] = (
    None,
    False,
    "",
    [],
    {},
    "no",
    "none",
    "None",
    "null",
    "off",
    "false",
    "False",
)
"""Values by which a flag says that it is not used."""


@dataclass(frozen=True)
class Note:
    """What became of one flag.

    ``became``: the option it set, as ``name=value``; None when it has no counterpart. ``differs``:
    one sentence on what is not the same here; None when nothing is. ``default``: the flag was not
    given, and TRL's default was carried over.
    """

    flag: str
    became: str | None
    differs: str | None
    default: bool = False


class Translation:
    """Reads flags by type, collects ``options``, the method's ``hyper`` and ``notes``."""

    def __init__(self, flags: Mapping[str, Any], trainer: str) -> None:
        self.flags = dict(flags)
        self.trainer = trainer
        self.options: dict[str, Any] = {}
        self.hyper: dict[str, Any] = {}
        self.notes: list[Note] = []

    def spelling(self, *names: str) -> str:
        """The first of several spellings that was given, else the first; later ones are noted."""
        found = [name for name in names if name in self.flags] or [names[0]]
        for other in found[1:]:
            self.note(other, None, f"{found[0]} goes before it.")
        return found[0]

    def off(self, flag: str) -> bool:
        """Whether a flag is absent or says that it is not used."""
        value = self.flags.get(flag)
        return any(value is off or (type(value) is type(off) and value == off) for off in OFF)

    def text(self, flag: str, default: str | None = None) -> str | None:
        value = self.flags.get(flag, default)
        if value is None or str(value).lower() in ("none", "null"):
            return None
        if isinstance(value, (list, dict)):
            raise self._wrong(flag, "one text")
        return str(value)

    def texts(self, flag: str) -> list[str]:
        value = self.flags.get(flag)
        if value is None:
            return []
        return [str(item) for item in value] if isinstance(value, (list, tuple)) else [str(value)]

    def number(self, flag: str, default: float | None = None) -> float | None:
        value = self.flags.get(flag, default)
        if value is None or str(value).lower() in ("none", "null"):
            return None
        # YAML reads 5e-7 as text; TRL's parser turns it into a number, and so do we.
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                pass
        raise self._wrong(flag, "a number")

    def count(self, flag: str, default: int | None = None) -> int | None:
        value = self.number(flag, default)
        if value is not None and value != int(value):
            raise self._wrong(flag, "a whole number")
        return None if value is None else int(value)

    def boolean(self, flag: str, default: bool = False) -> bool:
        value = self.flags.get(flag, default)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        lowered = str(value).lower()
        if lowered in ("true", "yes", "1", "on"):
            return True
        if lowered in ("false", "no", "0", "off"):
            return False
        raise self._wrong(flag, "true or false")

    def _wrong(self, flag: str, wanted: str) -> OptionError:
        return OptionError(
            f"{flag}={self.flags.get(flag)!r} is not {wanted}.", "Correct it in the configuration."
        )

    def note(self, flag: str, became: str | None = None, differs: str | None = None) -> None:
        self.notes.append(Note(flag, became, differs, default=flag not in self.flags))

    def option(self, flag: str, name: str, value: Any, differs: str | None = None) -> None:
        """An option of ``polyalign train``; ``lora.r`` stands for a nested one."""
        place, _, inner = name.rpartition(".")
        target = self.options.setdefault(place, {}) if place else self.options
        target[inner] = value
        self.note(flag, f"{name}={spell(value)}", differs)

    def parameter(self, flag: str, name: str, value: Any, differs: str | None = None) -> None:
        """A hyper-parameter of the method."""
        self.hyper[name] = value
        self.note(flag, f"{name}={spell(value)}", differs)

    def unused(self, flag: str, differs: str) -> None:
        """A given flag that has no counterpart; nothing differs when it is off anyway."""
        if flag in self.flags:
            self.note(flag, None, None if self.off(flag) else differs)

    def other_method(self, flag: str, what: str, method: str, neutral: tuple[Any, ...]) -> None:
        """Stop where a flag turns the method into another one; note it where it does not."""
        if flag not in self.flags:
            return
        if not self.off(flag) and self.flags[flag] not in neutral:
            raise OptionError(
                f"{flag}={spell(self.flags[flag])} makes it another method: {what}.",
                without(method, flag),
            )
        self.note(flag)


def without(method: str, flag: str) -> str:
    """The mend for a flag that makes another method: that method if there is one, or without it."""
    from polyalign.methods import catalogue

    rest = f"Remove {flag} to import the rest."
    if method in catalogue():
        return f"Use: polyalign train {method} (see polyalign methods show {method}). {rest}"
    return f"This version has no such method. {rest}"


def spell(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ",".join(spell(item) for item in value)
    return str(value)
