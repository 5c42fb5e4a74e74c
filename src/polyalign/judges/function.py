"""A judge that is the user's own Python function, read from a file that the user names.

Three shapes, told apart by the names of the parameters:

* one answer at a time, the plainest::

      def reward(prompt, completion):            # completion: the answer's text
          return 1.0 if "thank you" in completion.lower() else 0.0

* all at once, as TRL's reward functions::

      def reward(prompts, completions, **columns):    # lists; payloads as the file has them
          return [float(len(c)) for c in completions]

* two answers against each other::

      def prefer(prompt, first, second):         # probability in [0, 1] that first is better
          return 0.5

Any other parameter is filled from the prompt's own columns of that name (``meta`` gives all of
them); ``None`` for an answer means that the function does not judge it.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polyalign.errors import DataError, OptionError, nearest
from polyalign.feedback.payloads import is_conversation, text_of
from polyalign.protocols import Verdict

SHAPES = (
    "Write def reward(prompt, completion) -> float, def reward(prompts, completions) -> list, "
    "or def prefer(prompt, first, second) -> probability that first is better."
)


def load_function(spec: str) -> Callable[..., Any]:
    """The function ``FILE.py:NAME``; the file runs, so it must be the user's own.

    Raises :class:`OptionError` for a missing file or name, with the nearest function's name.
    """
    place, _, name = spec.rpartition(":")
    path = Path(place).expanduser()
    if not path.is_file():
        raise OptionError(f"The judge's file {place} does not exist.", "Give FILE.py:function.")
    module_spec = importlib.util.spec_from_file_location(f"polyalign_judge_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise OptionError(f"The judge's file {place} is not Python.", "Give FILE.py:function.")
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise OptionError(
            f"The judge's file {place} does not run: {_told(error, path)}.", "Mend the file."
        ) from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    function = getattr(module, name, None)
    if not callable(function):
        own = [
            n for n, x in vars(module).items() if inspect.isfunction(x) and not n.startswith("_")
        ]
        raise OptionError(f"{place} has no function '{name}'.", nearest(name, own))
    return function


class FunctionJudge:
    """A user's function as a Judge; see the module for the three shapes.

    ``pairwise`` is True for the third: its verdict is ``prefer`` [G, 2, 2] over neighbours.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", "function"))
        try:
            self.parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            raise OptionError(f"The judge {self.name} has no readable signature.", SHAPES) from None
        names = set(self.parameters)
        self.pairwise = {"first", "second"} <= names
        self.batched = "completions" in names
        if sum([self.pairwise, self.batched, "completion" in names]) != 1:
            given = ", ".join(self.parameters) or "none"
            raise OptionError(f"The judge {self.name} takes the parameters: {given}.", SHAPES)
        self.given = {"prompt", "first", "second", "completion", "prompts", "completions", "meta"}

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], meta: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        if self.pairwise:
            return self._prefer(prompts, completions, meta)
        if self.batched:
            columns = self._columns(meta)
            answer = self._call(
                0,
                prompts=[_plain(x) for x in prompts],
                completions=[_plain(x) for x in completions],
                meta=[dict(m) for m in meta],
                **columns,
            )
            if isinstance(answer, Verdict):
                return answer
            if hasattr(answer, "tolist"):
                answer = answer.tolist()
            if not isinstance(answer, Iterable) or isinstance(answer, (str, bytes, Mapping)):
                raise DataError(
                    f"The judge {self.name} returned {type(answer).__name__}, not a list.",
                    "Return one number for each completion.",
                )
            values = list(answer)
            if len(values) != len(completions):
                raise DataError(
                    f"The judge {self.name} returned {len(values)} scores for "
                    f"{len(completions)} completions.",
                    "Return one number for each completion.",
                )
        else:
            values = [
                self._call(
                    i,
                    prompt=_plain(prompt),
                    completion=text_of(completion),
                    meta=dict(row),
                    **self._own(row, i),
                )
                for i, (prompt, completion, row) in enumerate(zip(prompts, completions, meta))
            ]
        return _verdict([self._number(value, i) for i, value in enumerate(values)])

    def _prefer(
        self, prompts: Sequence[Any], completions: Sequence[Any], meta: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        if len(completions) % 2:
            raise DataError(f"The judge {self.name} compares two answers.", "Give it pairs.")
        groups = len(completions) // 2
        prefer = torch.full((groups, 2, 2), 0.5, dtype=torch.float64)
        abstained = torch.zeros(len(completions), dtype=torch.bool)
        for g in range(groups):
            i = 2 * g
            first, second = text_of(completions[i]), text_of(completions[i + 1])
            known = {"prompt": _plain(prompts[i]), "meta": dict(meta[i]), **self._own(meta[i], i)}
            asked = self._number(self._call(i, first=first, second=second, **known), i)
            swapped = self._number(self._call(i, first=second, second=first, **known), i)
            if asked is None or swapped is None:
                abstained[i : i + 2] = True
                continue
            for p in (asked, swapped):
                if not 0 <= p <= 1:
                    raise DataError(
                        f"The judge {self.name} returned {p:g} for a comparison.",
                        "Return the probability in [0, 1] that first is better.",
                    )
            # Asked in both orders: a judge that likes whatever comes first says 0.5 here.
            prefer[g, 0, 1] = (asked + 1 - swapped) / 2
            prefer[g, 1, 0] = 1 - prefer[g, 0, 1]
        return Verdict(prefer=prefer, abstained=abstained)

    def _call(self, i: int, **known: Any) -> Any:
        free = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())
        passed = {name: x for name, x in known.items() if name in self.parameters}
        if free:
            passed |= {name: x for name, x in known.items() if name not in self.given}
        try:
            return self.function(**passed)
        except Exception as error:
            where = Path(inspect.getsourcefile(self.function) or "")
            which = "" if self.batched else f" for completion {i + 1}"
            raise DataError(
                f"The judge {self.name} failed{which}: {_told(error, where)}.",
                "Mend the function, or return None for what it cannot judge.",
            ) from error

    def _own(self, meta: Mapping[str, Any], i: int) -> dict[str, Any]:
        """The prompt's columns that the function asks for by name (all, with ``**``)."""
        for name, parameter in self.parameters.items():
            required = parameter.default is parameter.empty and parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            )
            if required and name not in self.given and name not in meta:
                raise DataError(
                    f"The judge {self.name} needs the column '{name}', which prompt {i + 1} lacks.",
                    nearest(name, meta) if meta else "Its row has no columns beside the prompt.",
                )
        return {name: x for name, x in meta.items() if name not in self.given}

    def _columns(self, meta: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        every = [self._own(m, i) for i, m in enumerate(meta)]
        shared = set(every[0]).intersection(*every) if every else set()
        return {name: [m[name] for m in every] for name in sorted(shared)}

    def _number(self, value: Any, i: int) -> float | None:
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            shown = repr(value)
            raise DataError(
                f"The judge {self.name} returned {shown[:60]} for completion {i + 1}.",
                "Return a finite number, or None for what it cannot judge.",
            )
        return number


def _verdict(values: Sequence[float | None]) -> Verdict:
    return Verdict(
        score=torch.tensor([0.0 if v is None else v for v in values], dtype=torch.float64),
        abstained=torch.tensor([v is None for v in values], dtype=torch.bool),
    )


def _plain(payload: Any) -> Any:
    """Conversations as lists of dictionaries, as files have them."""
    return [dict(turn) for turn in payload] if is_conversation(payload) else payload


def _told(error: BaseException, path: Path) -> str:
    """An exception in one clause, with the last line of the user's file that it passed."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    where = f" (line {lines[-1]})" if lines else ""
    said = str(error).splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''}{where}".rstrip(".")
