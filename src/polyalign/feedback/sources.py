"""Sources: what a path, a folder, a hub name or a list of dicts stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyalign.errors import DataError, nearest
from polyalign.feedback.payloads import type_name
from polyalign.feedback.readers import ENDINGS, Part, Rows, damaged, ending, open_file

Source = str | os.PathLike[str] | Sequence[Any]
"""A path, several paths, a hub name, or a list of dicts."""


def open_source(source: Source, split: str | None = None) -> list[Part]:
    """The parts of a source; raises :class:`DataError` where there is nothing to read."""
    if isinstance(source, (str, os.PathLike)):
        return _open_one(source, split)
    items = list(source)
    if not items:
        raise DataError("There is no feedback: the list is empty.", "Give at least one row.")
    if all(isinstance(item, Mapping) for item in items):
        return [Part("the list", "", lambda: iter(enumerate(items, 1)))]
    parts: list[Part] = []
    for item in items:
        if not isinstance(item, (str, os.PathLike)):
            raise DataError(
                f"Cannot read feedback from {type_name(item)}.",
                "Give a path, several paths, a hub name or a list of dicts.",
            )
        parts += _open_one(item, split)
    return parts


def _open_one(source: str | os.PathLike[str], split: str | None) -> list[Part]:
    path = Path(source).expanduser()
    if path.is_dir():
        return open_folder(path, split)
    if path.exists():
        if split is not None:
            raise DataError(
                f"{path} is one file, it has no part called {split!r}.", "Leave the split out."
            )
        return [open_file(path)]
    if looks_like_hub_name(str(source)):
        return [open_hub(str(source), split)]
    raise _missing(path)


def _missing(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError(
            f"There is no file {path}: its folder {folder} does not exist.", "Check the path."
        )
    names = [
        p.name
        for p in folder.iterdir()
        if not p.name.startswith(".") and (p.is_dir() or ending(p) in ENDINGS)
    ]
    return DataError(f"There is no file {path}.", nearest(path.name, names))


def looks_like_hub_name(name: str) -> bool:
    """``owner/name`` or ``name``: no ending of a data file, not absolute, not relative."""
    parts = name.split("/")
    return (
        len(parts) <= 2
        and all(part and not part.startswith((".", "~")) for part in parts)
        and ending(Path(name)) not in ENDINGS
        and "\\" not in name
        and not any(c.isspace() for c in name)
        and not (len(parts) == 2 and Path(parts[0]).is_dir())
    )


# Folders and the hub.


def open_folder(path: Path, split: str | None) -> list[Part]:
    """A folder written by ``datasets``, or one that holds data files.

    Files or parts called train are taken where no split is asked for.
    """
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return [_open_saved(path, split)]
    files = sorted(p for p in path.iterdir() if p.is_file() and ending(p) in ENDINGS)
    if not files:
        raise DataError(
            f"The folder {path} holds no data files.",
            f"Give a folder with files that end in {', '.join(ENDINGS)}.",
        )
    wanted = split or "train"
    chosen = [p for p in files if split_of(p) == wanted]
    if split is not None and not chosen:
        raise DataError(
            f"The folder {path} has no part called {split!r}.",
            nearest(split, {split_of(p) for p in files}),
        )
    return [open_file(p) for p in chosen or files]


def split_of(path: Path) -> str:
    """The part that a file's name says it is.

    >>> split_of(Path("train-00000-of-00002.parquet")), split_of(Path("test.jsonl.gz"))
    ('train', 'test')
    """
    return path.name.split(".")[0].split("-00")[0]


def _open_saved(path: Path, split: str | None) -> Part:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets raises many kinds
        raise damaged(path, "a datasets folder", error) from error
    return of_dataset(str(path), saved, split)


def of_dataset(name: str, loaded: Any, split: str | None) -> Part:
    """A part of a loaded ``Dataset`` or ``DatasetDict``."""
    if isinstance(loaded, Mapping):
        parts = list(loaded)
        wanted = split or ("train" if "train" in parts else parts[0] if len(parts) == 1 else None)
        if wanted not in parts:
            raise DataError(
                f"{name} has no part called {split!r}." if split else f"{name} has several parts.",
                nearest(split or "train", parts),
            )
        loaded = loaded[wanted]
        name = f"{name} ({wanted})"
    elif split is not None and str(loaded.split or split) != split:
        raise DataError(f"{name} is the part {loaded.split}, not {split}.", "Leave the split out.")

    def rows() -> Rows:
        number = 0
        for table in loaded.with_format("arrow").iter(batch_size=1000):
            for row in table.to_pylist():
                number += 1
                yield number, row

    return Part(name, f"{name}|{loaded._fingerprint}", rows)


def open_hub(name: str, split: str | None) -> Part:
    """A set on the hub, through ``datasets``."""
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # datasets and huggingface_hub raise many kinds
        reason = str(error).strip().splitlines()
        raise DataError(
            f"There is no file or folder {name}, and the hub gave no set of that name "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason given'}).",
            "Check the name and the connection, or give the path of a local file.",
        ) from error
    return of_dataset(name, loaded, split)
