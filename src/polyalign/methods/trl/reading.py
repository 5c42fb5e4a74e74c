"""Reading TRL's configurations: files, command lines, mappings and configuration objects."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from polyalign.errors import OptionError
from polyalign.methods.trl.flags import OTHER_TRAINERS, TRAINERS

_SCRIPT = re.compile(rf"(?:.*[/.])?({'|'.join((*TRAINERS, *OTHER_TRAINERS))})(?:\.py)?")


def read(source: Any) -> tuple[dict[str, Any], list[str]]:
    """Flags, and what hints at the trainer: ``["command", name]``, or the file's name.

    Raises :class:`OptionError` when the source cannot be read as a configuration.
    """
    if isinstance(source, str) and re.search(r"(^|\s)--\w", source):
        return _command(source)
    if isinstance(source, (str, Path)):
        return _file(Path(source).expanduser())
    if dataclasses.is_dataclass(source) and not isinstance(source, type):
        # What stands at its default was not chosen, and would only make noise.
        return _changed(source), []
    if isinstance(source, Mapping):
        return {str(name): _plain(value) for name, value in source.items()}, []
    raise OptionError(
        f"A TRL configuration cannot be a {type(source).__name__}.",
        "Give a YAML or JSON file, a command line, or a mapping of flags.",
    )


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _changed(source: Any) -> dict[str, Any]:
    flags = {}
    for item in dataclasses.fields(source):
        value = _plain(getattr(source, item.name, None))
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if item.init and (default is dataclasses.MISSING or value != _plain(default)):
            flags[item.name] = value
    return flags


def _file(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise OptionError(f"There is no file {path}.", "Check the path.") from None
    except IsADirectoryError:
        raise OptionError(f"{path} is a folder.", "Give the YAML or JSON file in it.") from None
    except PermissionError:
        raise OptionError(f"{path} may not be read.", f"Allow it: chmod u+r {path}") from None
    except UnicodeDecodeError:
        raise OptionError(f"{path} is not text in UTF-8.", "Save it as UTF-8.") from None
    if path.suffix in (".sh", ".txt") or re.match(r"\s*(#!|trl\s|accelerate\s)", text):
        commands = [line for line in _logical(text) if re.search(r"(^|\s)--\w", line)]
        if len(commands) != 1:
            raise OptionError(
                f"{path} has {len(commands)} command lines with flags.",
                "Give a file with the one that trains, or the command itself in quotes.",
            )
        return _command(commands[0], path.parent)
    values = _parse(text, path)
    if not isinstance(values, dict):
        raise OptionError(
            f"{path} does not hold flags with values.", "Write one flag: value a line, as for TRL."
        )
    return {str(name): value for name, value in values.items()}, [path.stem]


def _parse(text: str, path: Path) -> Any:
    import yaml

    try:
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        mark = getattr(error, "problem_mark", None)
        line = getattr(error, "lineno", None) or (mark.line + 1 if mark else 1)
        raise OptionError(
            f"{path} is not valid {kind} (line {line}).", "Correct that line."
        ) from None


def _logical(text: str) -> list[str]:
    """Lines of a shell script with continuations joined and comments left out."""
    joined = re.sub(r"\\\r?\n", " ", text)
    return [line for line in joined.splitlines() if not line.lstrip().startswith("#")]


def _command(text: str, folder: Path | None = None) -> tuple[dict[str, Any], list[str]]:
    """Flags of a command line: ``trl dpo …``, ``accelerate launch … trl/scripts/dpo.py …``."""
    try:
        words = shlex.split(re.sub(r"\\\r?\n", " ", text))
    except ValueError as error:
        raise OptionError(
            f"The command line cannot be read: {error}.", "Close its quotes."
        ) from None
    hints: list[str] = []
    start = 0
    for place, word in enumerate(words):
        found = _SCRIPT.fullmatch(word)
        if found and (place == 0 or not words[place - 1].startswith("--")):
            # What stands before the script belongs to the launcher.
            hints, start = ["command", found[1]], place + 1
            break
    given = _flags(words[start:])
    config = given.pop("config", None)
    if config is None:
        return given, hints
    path = Path(str(config)).expanduser()
    if folder is not None and not path.is_absolute() and not path.exists():
        path = folder / path
    below, names = _file(path)
    return {**below, **given}, hints or names


def _flags(words: list[str]) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    name = ""
    values: list[str] = []

    def close() -> None:
        if not name:
            return
        if not values and name.startswith("no_") and name != "no_cuda":
            flags[name.removeprefix("no_")] = False
        elif not values:
            flags[name] = True
        else:
            flags[name] = _value(values[0]) if len(values) == 1 else [_value(v) for v in values]

    for word in words:
        if re.match(r"--?[A-Za-z_]", word):
            close()
            name, _, first = word.lstrip("-").partition("=")
            name, values = name.replace("-", "_"), [first] if first else []
        elif name:
            values.append(word)
        else:
            raise OptionError(
                f"'{word}' stands where a flag is expected.", "Write flags as --name value."
            )
    close()
    return flags


def _value(text: str) -> Any:
    """Nested values are JSON on TRL's command lines; the rest is read by what the flag needs."""
    if text[:1] in "[{" and text:
        try:
            return json.loads(text)
        except ValueError:
            return text
    return None if text in ("None", "null") else text
