"""The errors polyalign raises on purpose: one sentence what and where, and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PolyalignError(Exception):
    """A mistake that the user can mend.

    ``str(error)`` is one sentence that says what is wrong and where; ``mend`` is one
    sentence that says what to do about it. The command line prints both, without a
    traceback unless ``--debug`` is given, and exits with ``exit_code``.
    """

    exit_code = 2

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.what} {self.mend}".strip()


class OptionError(PolyalignError):
    """An option is unknown, of the wrong type or out of range."""


class DataError(PolyalignError):
    """Feedback cannot be read or does not fit what a method needs."""


class ModelError(PolyalignError):
    """A model, tokenizer or adapter cannot be loaded or does not fit."""


class NeedsError(PolyalignError):
    """A policy, its feedback or its references do not offer what an objective needs."""


class NumericsError(PolyalignError):
    """Log-probabilities or losses are not finite, or shapes disagree."""

    exit_code = 3


class RunError(PolyalignError):
    """A run folder, checkpoint or plan cannot be written, read or continued."""


class Interrupted(PolyalignError):
    """Training was stopped from outside after a checkpoint was written."""

    exit_code = 130


class Elsewhere(PolyalignError):
    """Another process of the same run could not go on; that one says why."""


class PolyalignWarning(UserWarning):
    """Something is risky but allowed; the run goes on."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A mend that names the valid name nearest to ``name``, or lists the valid ones.

    >>> nearest("bta", ["beta", "tau"])
    'Did you mean beta? (valid: beta, tau)'
    >>> nearest("zzz", ["beta", "tau"])
    'Valid: beta, tau.'
    """
    names = sorted(valid)
    listed = ", ".join(names) if len(names) <= 30 else ", ".join(names[:30]) + ", …"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:
        folded = {other.lower().replace("-", "_"): other for other in names}
        close = [
            folded[key]
            for key in difflib.get_close_matches(
                name.lower().replace("-", "_"), list(folded), n=1, cutoff=0.5
            )
        ]
    if close:
        return f"Did you mean {close[0]}? (valid: {listed})"
    return f"Valid: {listed}." if names else "There are none."
