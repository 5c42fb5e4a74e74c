"""The model hub, asked with a time limit: a network that drops packets must not hang a command."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyalign.errors import ModelError

PATTERNS = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "spiece.model", "*.txt")
TIMEOUT = 8.0


class HubUnreachable(ModelError):
    """The hub did not answer, or was told not to be asked."""


def offline() -> bool:
    """Whether the user has forbidden the hub, with the variables that `transformers` reads."""
    return any(
        os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def cached_snapshot(repo: str) -> Path | None:
    """The newest snapshot of ``repo`` in the hub's own cache on this machine, without network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns=list(PATTERNS)))
    except (OSError, ValueError):
        return None


def download(
    repo: str,
    folder: Path,
    say: Callable[[str], None],
    timeout: float | None = None,
    *,
    python_files: bool = False,
) -> None:
    """Download the files of ``repo`` that a causal language model needs into ``folder``.

    Raises HubUnreachable when the hub does not answer within ``timeout`` seconds, and
    ModelError when it has no such model, asks for a login, or the model has no safetensors.
    """
    if offline():
        raise HubUnreachable(
            f"{repo} is not on this machine and HF_HUB_OFFLINE forbids asking the hub.",
            "Unset it, or give a model folder.",
        )
    from huggingface_hub import snapshot_download

    names = _files(repo, TIMEOUT if timeout is None else timeout)
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{repo} on the hub has no safetensors weights, and pickled weights are never opened.",
            "Choose a revision or a copy of the model with safetensors.",
        )
    say(f"downloading {repo} from the hub")
    patterns = [*PATTERNS, "*.py"] if python_files else list(PATTERNS)
    # Weights of other libraries in sub-folders (onnx/, original/) are not ours to load.
    try:
        snapshot_download(
            repo,
            local_dir=folder,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],
            endpoint=_endpoint(),
            etag_timeout=TIMEOUT,
        )
    except Exception as error:
        raise HubUnreachable(
            f"The download of {repo} broke off ({_brief(error)}).", "Try again; it continues."
        ) from error


def _files(repo: str, timeout: float) -> list[str]:
    """File names of a hub model, asked in a thread because name look-up has no time limit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    answer: dict[str, Any] = {}

    def ask() -> None:
        try:
            info = HfApi(endpoint=_endpoint()).model_info(repo, timeout=timeout)
            answer["files"] = [sibling.rfilename for sibling in info.siblings or []]
        except Exception as error:
            answer["error"] = error

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout + 1)
    error = answer.get("error")
    if isinstance(error, GatedRepoError):
        raise ModelError(
            f"{repo} asks for a login and its owner's permission.",
            "Accept its terms on the hub, run `hf auth login`, and try again.",
        )
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        raise ModelError(
            f"The hub has no model {repo}, or it is private.",
            "Check the spelling (owner/name); for a private one run `hf auth login`.",
        )
    if error is not None or "files" not in answer:
        reason = _brief(error) if error else f"no answer within {timeout:g} s"
        raise HubUnreachable(
            f"The model hub cannot be reached for {repo} ({reason}).",
            "Give a model folder, or `smollm2`, which also comes from the package index.",
        )
    files: list[str] = answer["files"]
    return files


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]
