"""What a model folder must hold before anything loads it: configuration, weights, tokenizer.

Reads JSON files and safetensors headers only; loads neither torch nor transformers, and never
unpickles: a ``.bin`` file can run code when it is read.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyalign.errors import ModelError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
NOTE = "polyalign.json"
"""A file beside a cached model that says where it came from."""


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine: where it lies and where it came from."""

    name: str
    path: Path
    source: str
    origin: str = ""
    license: str = ""

    @property
    def parameters(self) -> int:
        """Number of stored weights."""
        return parameter_count(self.path)


def cache_folder() -> Path:
    """The user's model cache: ``$POLYALIGN_CACHE/models`` or ``~/.cache/polyalign/models``."""
    root = os.environ.get("POLYALIGN_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "polyalign") / "models"


def list_models() -> list[ModelFolder]:
    """The models in the user's cache, by name."""
    folders = sorted(cache_folder().glob("*/config.json"))
    return [noted(file.parent) for file in folders if not file.parent.name.startswith(".")]


def in_cache(name: str) -> ModelFolder | None:
    """The cached model of that name (or hub id), if it is there."""
    folder = cache_folder() / name.replace("/", "--")
    return noted(folder) if name and (folder / "config.json").is_file() else None


def noted(folder: Path) -> ModelFolder:
    """A cached model folder with what is written beside it about its origin."""
    note = read_json(folder / NOTE) if (folder / NOTE).is_file() else {}
    return ModelFolder(
        note.get("name", folder.name),
        folder,
        note.get("source", "local"),
        note.get("origin", ""),
        note.get("license", ""),
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; raises ModelError where it is damaged or no object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(
            f"{file} cannot be read as JSON ({error}).", "Copy or download the model again."
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds no JSON object.", "Copy or download the model again.")
    return found


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a `peft` adapter instead of a whole model."""
    return (folder / "adapter_config.json").is_file()


def adapter_base(folder: Path) -> str:
    """The base model that an adapter folder names."""
    base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"The adapter in {folder} does not say which model it adapts.",
            "Set base_model_name_or_path in its adapter_config.json.",
        )
    return str(base)


def check_folder(folder: Path) -> None:
    """Raise ModelError unless ``folder`` can be loaded safely as a model or an adapter."""
    if is_adapter(folder):
        adapter_base(folder)
        _check_weights(folder, "adapter_model")
        return
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json.", _inside(folder))
    config = read_json(folder / "config.json")
    if "model_type" not in config:
        raise ModelError(
            f"{folder}/config.json names no model_type.",
            "It must be the configuration that `transformers` saves with a model.",
        )
    _check_weights(folder, "model")
    if not has_tokenizer(folder):
        raise ModelError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}).",
            "Save it there with `AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER)`.",
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's vocabulary lies in the folder."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def needs_remote_code(folder: Path) -> bool:
    """Whether the model is defined by Python files of its own instead of by `transformers`."""
    config = folder / "config.json"
    return config.is_file() and "auto_map" in read_json(config)


def check_code(folder: Path, trust_remote_code: bool) -> None:
    """Raise ModelError where code that comes with the model would run without being asked for."""
    if needs_remote_code(folder) and not trust_remote_code:
        raise ModelError(
            f"The model in {folder} is defined by Python code that comes with it.",
            "Read that code, and pass trust_remote_code=True (--trust-remote-code) to run it.",
        )


def weight_files(folder: Path, stem: str = "model") -> list[Path]:
    """The safetensors files of a folder: one, or every shard that the index lists."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    single = folder / f"{stem}.safetensors"
    return [single] if single.is_file() else []


def parameter_count(folder: Path) -> int:
    """The number of stored weights, from the safetensors headers alone."""
    total = 0
    for file in weight_files(folder, "adapter_model" if is_adapter(folder) else "model"):
        for name, entry in _header(file).items():
            if name != "__metadata__":
                count = 1
                for size in entry["shape"]:
                    count *= size
                total += count
    return total


def _check_weights(folder: Path, stem: str) -> None:
    files = weight_files(folder, stem)
    if not files:
        stray = sorted(folder.glob("*.safetensors"))
        pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        if stray:
            raise ModelError(
                f"{folder} has {stray[0].name} but no {stem}.safetensors.",
                f"Name the weights {stem}.safetensors, as `save_pretrained` does.",
            )
        if pickled:
            raise ModelError(
                f"{folder} holds its weights only as pickled files ({pickled[0].name}), which "
                "can run code when they are read and are never opened here.",
                "If you trust them, load the model with `transformers` yourself and save it "
                "again with `save_pretrained`, which writes safetensors.",
            )
        raise ModelError(
            f"{folder} has no weights (no {stem}.safetensors).", "Copy or download the model again."
        )
    for file in files:
        if not file.is_file():
            raise ModelError(
                f"{folder} lacks {file.name}, which its index lists.", "Copy that shard too."
            )
        _header(file)


def _header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file; raises ModelError where it is damaged or cut short."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("the header is cut short")
            header: dict[str, Any] = json.loads(stream.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        ends = [entry["data_offsets"][1] for entry in tensors]
        expected = 8 + length + max(ends, default=0)
        if file.stat().st_size != expected:
            raise ValueError(f"{file.stat().st_size} bytes instead of {expected}")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(
            f"The weights file {file} is damaged ({error}).", "Copy or download the model again."
        ) from error
    return header


def _inside(folder: Path) -> str:
    """A mend for a folder that is no model: the folders in it that are."""
    inside = [
        child.name
        for child in sorted(folder.iterdir())
        if (child / "config.json").is_file() or is_adapter(child)
    ]
    if "final" in inside:
        return f"It looks like a run; its model is {folder / 'final'}."
    if inside:
        return f"Folders in it that are models: {', '.join(inside[:5])}."
    return "Give the folder that `save_pretrained` wrote."
