"""From what a user writes after ``--judge`` to a Judge."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyalign.errors import OptionError
from polyalign.judges.function import FunctionJudge, load_function
from polyalign.protocols import Judge


def load_judge(spec: str | Path | Judge | Callable[..., Any]) -> Judge:
    """A Judge from ``FILE.py:function``, a reward-model folder, ``endpoint:MODEL@URL``,
    "verifier", a function or a Judge.

    "verifier" checks each answer against what its prompt's row says can be verified. Raises
    :class:`OptionError` or :class:`~polyalign.errors.ModelError` with what is wrong.
    """
    if not isinstance(spec, (str, Path)):
        if inspect.isfunction(spec) or inspect.isbuiltin(spec):
            return FunctionJudge(spec)
        if callable(spec):
            return spec
        raise OptionError(f"A judge cannot be a {type(spec).__name__}.", _ACCEPTED)
    text = str(spec)
    if text == "verifier":
        from polyalign.judges.verifiers import Verifier

        return Verifier()
    if text.startswith("endpoint:"):
        from polyalign.judges.endpoint import open_endpoint

        return open_endpoint(text)
    if ".py:" in text:
        return FunctionJudge(load_function(text), text)
    if text.endswith(".py"):
        raise OptionError(f"The judge {text} names no function.", f"Write {text}:reward.")
    if Path(text).expanduser().is_dir():
        from polyalign.judges.reward_model import RewardModel

        return RewardModel(text)
    raise OptionError(f"There is no judge '{text}'.", _ACCEPTED)


_ACCEPTED = (
    "A judge is verifier, FILE.py:function, endpoint:MODEL@URL, or the folder of a reward model "
    "(sequence classification, safetensors)."
)
