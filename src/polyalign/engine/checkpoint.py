"""Checkpoints: the whole state of a run in one folder, written atomically and verified on reading.

``step-00000010/state.safetensors`` holds the tensors, ``state.json`` the rest of the tree with a
sha256 of both. A checkpoint is written beside its name, synced, and renamed last: a folder that
has its name is complete. Folders whose name starts with a dot are what a crash left:

- ``.writing-step-…`` was never finished;
- ``.removing-step-…`` was being removed;
- ``.replaced-step-…`` gave its name to a later writing of the same step; it still counts as a
  checkpoint while that name is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polyalign.engine import storage
from polyalign.engine.tree import Encoder, decode
from polyalign.errors import OptionError, PolyalignWarning, RunError

FORMAT, VERSION = "polyalign-checkpoint", 1
TENSORS, STATE = "state.safetensors", "state.json"

_OTHER = "Continue from another checkpoint (--resume takes the newest good one)."
_NAME = re.compile(r"(\.replaced-)?step-(\d+)")


def save(folder: Path, tree: Mapping[str, Any], *, step: int, keep: int = 2) -> Path:
    """Write ``folder/step-00000010`` and return its path once it is safe on the disk.

    ``tree`` nests dictionaries, lists and tuples around tensors, numbers, strings and None.
    Afterwards at most ``keep`` checkpoints are left: this one and the ones before it. Those of
    later steps belong to a course that was abandoned, and go. Raises RunError when the system
    refuses; the checkpoints that were there are then intact.
    """
    if keep < 1:
        raise OptionError(f"keep={keep} would leave no checkpoint.", "Give at least 1.")
    if step < 0:
        raise OptionError(f"A checkpoint cannot be of step {step}.", "Steps count from 0.")
    folder = Path(folder)
    encoder = Encoder()
    structure = encoder.structure(tree)
    name = f"step-{step:08d}"
    target = folder / name
    temporary, replaced = folder / f".writing-{name}", folder / f".replaced-{name}"
    try:
        storage.make_folder(folder)
        _sweep(folder)
        _write(temporary, encoder, structure, step)
        if target.exists():
            storage.fs.rename(target, replaced)
        storage.fs.rename(temporary, target)
        storage.fs.sync_folder(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            storage.remove_tree(temporary)
        with contextlib.suppress(OSError):
            if replaced.exists() and not target.exists():
                storage.fs.rename(replaced, target)
        if isinstance(error, OSError):
            raise storage.explain(error, f"write the checkpoint of step {step}", target) from error
        raise
    _remove_surplus(folder, target, keep)
    return target


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[2]) if match else -1


def _write(temporary: Path, encoder: Encoder, structure: Any, step: int) -> None:
    storage.fs.mkdir(temporary)
    size, digest = storage.write_file(temporary / TENSORS, encoder.pieces())
    document = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "tensors": {"bytes": size, "sha256": digest},
        "tree": structure,
    }
    storage.write_file(temporary / STATE, [_seal(document)])
    storage.fs.sync_folder(temporary)


def _seal(document: Mapping[str, Any]) -> bytes:
    """The file's bytes: the document after a sha256 of itself, in one canonical spelling."""
    body = json.dumps(document, separators=(",", ":"))
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{{"sha256":"{digest}",{body[1:]}\n'.encode()


def _sweep(folder: Path) -> None:
    """Clear what crashed writings left, before this one needs the space."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".writing-step-", ".removing-step-")):
            storage.remove_tree(path)
        elif path.name.startswith(".replaced-step-"):
            original = folder / path.name.removeprefix(".replaced-")
            if original.exists():
                _discard(path)
            else:
                storage.fs.rename(path, original)
                storage.fs.sync_folder(folder)


def _discard(path: Path) -> None:
    """Remove a checkpoint; from the first moment on it is none, never half of one."""
    going = path.with_name(".removing-" + path.name.removeprefix(".replaced-"))
    storage.remove_tree(going)
    storage.fs.rename(path, going)
    storage.fs.sync_folder(path.parent)
    storage.remove_tree(going)


def _remove_surplus(folder: Path, newest: Path, keep: int) -> None:
    """Remove all but the ``keep`` last; what cannot be removed is only a warning by now."""
    try:
        earlier = [path for path in _candidates(folder) if _step(path) < _step(newest)]
        stay = {newest, *earlier[: keep - 1]}
        for path in sorted(folder.iterdir()):
            if _step(path) >= 0 and path not in stay:
                _discard(path)
    except OSError as error:
        refused = storage.explain(error, "remove a checkpoint that is no longer needed", folder)
        warnings.warn(str(refused), PolyalignWarning, stacklevel=3)


def _candidates(folder: Path) -> list[Path]:
    """Folders that may be checkpoints, newest first."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):  # "." sorts first: a replaced one gives way
        if _step(path) >= 0:
            found[_step(path)] = path
    return [found[step] for step in sorted(found, reverse=True)]


def load(path: Path) -> tuple[dict[str, Any], int]:
    """The tree (tensors on the CPU) and the step of one checkpoint, after verifying it.

    Raises RunError when it is missing, damaged, unreadable or of an unknown format.
    """
    path = Path(path)
    document = _verified(path)
    try:
        with _tensors(path) as tensor:
            tree = decode(document["tree"], tensor)
        return tree, int(document["step"])
    except OSError as error:
        raise storage.explain(error, f"read the checkpoint {path.name}", path) from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(
            f"The checkpoint {path} does not have the content that its {STATE} announces.", _OTHER
        ) from error


@contextlib.contextmanager
def _tensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / TENSORS, framework="pt", device="cpu") as file:
            # A copy: tensors must outlive the file, which a later save removes.
            yield lambda name: file.get_tensor(name).clone()
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; None when there is none at all.

    A bad one is passed over with a PolyalignWarning that says what is wrong with it. Raises
    RunError when there are checkpoints and all are bad.
    """
    folder = Path(folder)
    try:
        candidates = _candidates(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage.explain(error, "look for checkpoints", folder) from error
    wrong: list[RunError] = []
    for path in candidates:
        try:
            _verified(path)
        except RunError as error:
            wrong.append(error)
            continue
        for bad in wrong:
            text = f"{bad.what} It is passed over; the next good one is {path.name}."
            warnings.warn(text, PolyalignWarning, stacklevel=2)
        return path
    if not wrong:
        return None
    count = "The only checkpoint" if len(wrong) == 1 else f"All {len(wrong)} checkpoints"
    raise RunError(
        f"{count} in {folder} cannot be used: " + " ".join(error.what for error in wrong),
        "Mend what is named, restore the folder from a backup, or train anew into another "
        "--output.",
    )


def _verified(path: Path) -> dict[str, Any]:
    """The document of a checkpoint whose bytes are those that were written, or a RunError."""
    if not path.is_dir():
        raise RunError(f"There is no checkpoint {path}.", "Check the path.")
    document = _document(path)
    announced = document["tensors"]
    size, digest = 0, hashlib.sha256()
    for piece in _read(path, TENSORS):
        size += len(piece)
        digest.update(piece)
    if size != announced["bytes"]:
        raise RunError(
            f"In the checkpoint {path}, {TENSORS} has {size} bytes instead of "
            f"{announced['bytes']}.",
            _OTHER,
        )
    if digest.hexdigest() != announced["sha256"]:
        raise _damaged(path, TENSORS)
    return document


def _document(path: Path) -> dict[str, Any]:
    data = b"".join(_read(path, STATE))
    try:
        document = json.loads(data)
        kind, version = document["format"], document["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        what = "is empty" if not data else "is not the JSON of a checkpoint"
        raise RunError(f"In the checkpoint {path}, {STATE} {what}.", _OTHER) from error
    if (kind, version) != (FORMAT, VERSION):
        raise RunError(
            f"The checkpoint {path} is of format {kind} {version}, and this polyalign reads "
            f"{FORMAT} {VERSION}.",
            "Use the version of polyalign that wrote it (see versions in the run's plan.json).",
        )
    document.pop("sha256", None)
    if _seal(document) != data:
        raise _damaged(path, STATE)
    return dict(document)


def _damaged(path: Path, name: str) -> RunError:
    return RunError(
        f"In the checkpoint {path}, {name} is damaged: its bytes are not those that were written.",
        _OTHER,
    )


def _read(path: Path, name: str) -> Iterator[bytes]:
    try:
        yield from storage.fs.read(path / name)
    except FileNotFoundError as error:
        raise RunError(f"The checkpoint {path} has no {name}.", _OTHER) from error
    except OSError as error:
        raise storage.explain(error, f"read the checkpoint {path.name}", path / name) from error
