"""Writing a condition into prompts: a wanted quality, a reward, a goal.

What is written is text, so it works for prompts that are text or conversations.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from polyalign.errors import DataError, OptionError, PolyalignWarning
from polyalign.feedback.payloads import is_conversation
from polyalign.feedback.records import Demonstration, Pair, Payload, Record

Place = Literal["system", "user", "end"]


def conditioned(prompt: Payload, text: str, place: Place = "system") -> Payload:
    r"""A prompt with ``text`` in its system message, before its first user turn, or at its end.

    Plain text has no turns: there "system" and "user" both write a paragraph before it.

    >>> conditioned("Say hi.", "Be kind.", "user")
    'Be kind.\n\nSay hi.'
    >>> conditioned("Say hi.", " <rm_score>: 1.50 ", "end")
    'Say hi. <rm_score>: 1.50 '
    """
    if isinstance(prompt, str):
        return prompt + text if place == "end" else f"{text}\n\n{prompt}"
    if not is_conversation(prompt):
        raise DataError(
            f"A condition can only be written into text, and a prompt is {prompt!r:.60}.",
            "Use prompts that are text or conversations.",
        )
    turns = [dict(turn) for turn in prompt]
    if place == "end":
        turns[-1]["content"] = f"{turns[-1].get('content', '')}{text}"
    elif place == "system" and turns[0].get("role") == "system":
        turns[0]["content"] = f"{turns[0].get('content', '')}\n\n{text}"
    elif place == "system":
        turns.insert(0, {"role": "system", "content": text})
    else:
        first = next((t for t in turns if t.get("role") == "user"), turns[0])
        first["content"] = f"{text}\n\n{first.get('content', '')}"
    return tuple(turns)


@dataclass(frozen=True)
class Condition:
    """How a policy that was trained on conditioned prompts is asked: what is written, and where.

    ``text`` is what is written around ``{}``, the value with ``decimals`` (None: as short as it
    goes). ``value`` is asked for unless another is said, ``least`` and ``most`` bound it: values
    beyond are refused on a ``scale``, and warned of where they are only what training has seen.
    """

    text: str
    value: float
    least: float
    most: float
    place: Place = "system"
    decimals: int | None = None
    scale: bool = False

    def told(self, value: float | None = None) -> str:
        """What is written into a prompt."""
        value = self.value if value is None else value
        if self.decimals is None:
            return self.text.replace("{}", f"{value:g}")
        # A value that rounds to zero from below must not read as another number than zero.
        shown = round(value, self.decimals) + 0.0
        return self.text.replace("{}", f"{shown:.{self.decimals}f}")

    def ask(self, prompt: Payload, value: float | None = None) -> Payload:
        """The prompt with a value, or the usual one, written into it."""
        return conditioned(prompt, self.told(value), self.place)

    def at(self, value: float) -> Condition:
        """The same with another usual value.

        Raises :class:`OptionError` for one off the scale; warns of one that training never saw.
        """
        if not self.least <= value <= self.most:
            if self.scale or not math.isfinite(value):
                raise OptionError(
                    f"The condition {value:g} lies outside the scale from {self.least:g} to "
                    f"{self.most:g}.",
                    "Ask for a value on the scale.",
                )
            warnings.warn(
                f"The condition {value:g} lies outside the values seen in training, "
                f"{self.least:g} to {self.most:g}.",
                PolyalignWarning,
                stacklevel=2,
            )
        return replace(self, value=value)

    def to_json(self) -> dict[str, Any]:
        """Plain data, to lie beside a model."""
        return asdict(self)

    @staticmethod
    def read(found: Mapping[str, Any]) -> Condition:
        """From plain data; raises :class:`DataError` where it is none."""
        try:
            return Condition(**found)
        except TypeError:
            raise DataError(
                "The model's condition is not readable.", "Restore its polyalign.json."
            ) from None


def both_goals(
    pair: Pair, scores: tuple[float, float], ask: Callable[[Payload, float], Payload]
) -> tuple[Pair, Pair]:
    """Two pairs of one: asked for the chosen answer's score it is preferred, asked for the rejected
    one's score that one is.

    ``ask`` writes a goal into a prompt. Source: Zhang et al. 2024, arXiv 2410.08067.
    """
    high, low = scores
    return (
        replace(pair, key=f"{pair.key}/goal-chosen", prompt=ask(pair.prompt, high)),
        replace(
            pair,
            key=f"{pair.key}/goal-rejected",
            prompt=ask(pair.prompt, low),
            chosen=pair.rejected,
            rejected=pair.chosen,
        ),
    )


@dataclass(frozen=True)
class Goals:
    """Each pair as two, asked for the score of either of its answers.

    The scores are the pairs' numbers ``score_chosen`` and ``score_rejected``, on the scale from
    ``low`` to ``high``. Pairs of equal scores say nothing about a goal and are left out, as are,
    with ``consistent``, those whose rejected answer has the higher score; a warning tells how many.
    Raises :class:`DataError` naming a pair without scores or with one outside the scale.
    """

    low: float = 1.0
    high: float = 10.0
    goal: float = 10.0
    place: Place = "system"
    consistent: bool = True

    held_out: ClassVar[bool] = True

    def condition(self, records: Sequence[Record] = ()) -> Condition:
        """How the trained policy is to be asked: for the best."""
        text = (
            f"Give an answer whose overall quality is {{}} on a scale from {self.low:g} to "
            f"{self.high:g}."
        )
        return Condition(text, self.goal, self.low, self.high, self.place, scale=True)

    def ask(self, prompt: Payload, goal: float) -> Payload:
        """The prompt with a goal written into it."""
        return self.condition().ask(prompt, goal)

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        made: list[Record] = []
        equal = contradicting = 0
        for record in records:
            assert isinstance(record, Pair)
            scores = self._scores(record)
            if scores[0] == scores[1]:
                equal += 1
            elif self.consistent and scores[0] < scores[1]:
                contradicting += 1
            else:
                made += both_goals(record, scores, self.ask)
        if equal or contradicting:
            warnings.warn(
                f"Of {len(records)} pairs {equal} have equal scores and {contradicting} a rejected "
                "answer with the higher score; they are left out.",
                PolyalignWarning,
                stacklevel=2,
            )
        return made

    def _scores(self, record: Pair) -> tuple[float, float]:
        names = ("score_chosen", "score_rejected")
        values = tuple(record.fields.get(name, math.nan) for name in names)
        for name, value in zip(names, values, strict=True):
            if not self.low <= value <= self.high:
                raise DataError(
                    f"Example {record.key}: '{name}' is {value:g}, which is no score from "
                    f"{self.low:g} to {self.high:g}."
                    if name in record.fields
                    else f"Example {record.key} has no '{name}', and goals are scores.",
                    "Bring score_chosen and score_rejected, or set low and high to their scale.",
                )
        return values[0], values[1]


@dataclass(frozen=True)
class RewardInPrompt:
    """Demonstrations whose prompts end with the reward that their answer got.

    The reward is the record's number ``reward``, printed with ``decimals``. A trained policy is
    asked for ``target``, or for the ``quantile`` of the rewards that it was trained on.
    Source: Hu et al. 2023, arXiv 2308.12050.
    """

    decimals: int = 2
    quantile: float = 0.95
    target: float | None = None

    held_out: ClassVar[bool] = True

    def condition(self, records: Sequence[Record]) -> Condition:
        """How the policy trained on these records is to be asked: for a high reward."""
        rewards = sorted(record.fields["reward"] for record in records)
        usual = quantile(rewards, self.quantile)
        whole = replace(self._written, value=usual, least=rewards[0], most=rewards[-1])
        return whole if self.target is None else whole.at(self.target)

    @property
    def _written(self) -> Condition:
        return Condition(
            " <rm_score>: {} ", 0.0, -math.inf, math.inf, "end", decimals=self.decimals
        )

    def ask(self, prompt: Payload, reward: float) -> Payload:
        """The prompt with a reward at its end."""
        return self._written.ask(prompt, reward)

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        return [
            replace(record, prompt=self.ask(record.prompt, record.fields["reward"]))
            for record in records
            if isinstance(record, Demonstration)
        ]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of ``ordered`` values that at least ``share`` of them do not exceed.

    >>> quantile([1.0, 2.0, 3.0, 4.0], 0.5), quantile([1.0, 2.0, 3.0, 4.0], 0.95)
    (2.0, 4.0)
    """
    return ordered[max(math.ceil(round(share * len(ordered), 9)) - 1, 0)]
