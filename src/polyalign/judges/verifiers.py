"""Verifiers: instructions whose following a program can check.

What is to be checked is data: ``{"kind": "exact_words", "n": 5}``. :func:`verify` says 1.0 or
0.0, strictly and for nothing but the wording it names: a verifier never asks whether an answer
is sensible. :class:`Verifier` makes a judge of it.

An empty answer follows no instruction. Words are what stands between white space and holds a
letter or digit, so "well-known" is one word and a dash alone is none; a phrase is found whole
("art" is not in "party") and in any case; quotation marks may be straight or curly.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polyalign.errors import DataError, OptionError, nearest

if TYPE_CHECKING:
    from polyalign.protocols import Verdict

Check = Callable[..., bool]
Spec = Mapping[str, Any]

VERIFIERS: dict[str, Check] = {}
"""Kind of instruction -> check of (text, …); the further parameters are the spec's entries."""


def verifier(check: Check) -> Check:
    """Register a check under its own name."""
    VERIFIERS[check.__name__] = check
    return check


def verify(spec: Spec, text: str) -> float:
    """1.0 if ``text`` follows the instruction of ``spec``, else 0.0.

    Raises OptionError for a spec of an unknown kind or with wrong entries.

    >>> verify({"kind": "exact_words", "n": 3}, "Green tea, please.")
    1.0
    >>> verify({"kind": "all_of", "of": [{"kind": "lowercase"}, {"kind": "question"}]}, "Why?")
    0.0
    """
    check, entries = _check_of(spec)
    return float(bool(text.strip()) and bool(check(text.strip(), **entries)))


def check_spec(spec: Spec) -> None:
    """Raise OptionError unless :func:`verify` understands ``spec``."""
    _, entries = _check_of(spec)
    for inner in entries.get("of", ()):
        check_spec(inner)


def _check_of(spec: Spec) -> tuple[Check, dict[str, Any]]:
    if not isinstance(spec, Mapping) or "kind" not in spec:
        raise OptionError(f"A verifier's spec has no kind: {spec!r}.", 'Write {"kind": …}.')
    kind = str(spec["kind"])
    if kind not in VERIFIERS:
        raise OptionError(f"There is no verifier {kind}.", nearest(kind, VERIFIERS))
    check = VERIFIERS[kind]
    entries = {name: value for name, value in spec.items() if name != "kind"}
    try:
        inspect.signature(check).bind("", **entries)
    except TypeError as error:
        takes = [name for name in inspect.signature(check).parameters if name != "text"]
        raise OptionError(
            f"The verifier {kind} does not take these entries ({error}).",
            f"It takes: {', '.join(takes) or 'none'}.",
        ) from error
    return check, entries


@dataclass(frozen=True)
class Verifier:
    """A judge that checks each answer against the spec in its prompt's row.

    ``field`` is the entry of ``meta`` that holds the spec; ``spec``, where given, is for all
    prompts. An answer that did not end by itself (``meta["finished"]`` is false) scores 0.
    """

    spec: Spec | None = None
    field: str = "spec"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], meta: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """A Verdict with ``score`` [N] of zeros and ones; see :meth:`scores`."""
        import torch

        from polyalign.protocols import Verdict

        scores = self.scores(prompts, completions, meta)
        return Verdict(score=torch.tensor(scores, dtype=torch.float64))

    def scores(
        self, prompts: Sequence[Any], completions: Sequence[Any], meta: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """One number in {0, 1} for each completion; raises DataError where a row has no spec."""
        from polyalign.feedback.payloads import text_of

        return [
            verify(self._spec(row, i), text_of(completion)) * bool(row.get("finished", True))
            for i, (completion, row) in enumerate(zip(completions, meta))
        ]

    def _spec(self, row: Mapping[str, Any], i: int) -> Spec:
        spec = self.spec if self.spec is not None else row.get(self.field)
        # Columns of CSV and Parquet files hold the spec as JSON text.
        if isinstance(spec, str):
            try:
                spec = json.loads(spec)
            except ValueError:
                spec = None
        if not isinstance(spec, Mapping):
            raise DataError(
                f"Prompt {i + 1} has no verifier in its column '{self.field}'.",
                'Give each prompt one, such as {"kind": "exact_words", "n": 5}.',
            )
        return spec


# Counting


def words(text: str) -> list[str]:
    """Pieces between white space that hold a letter or digit.

    >>> words("A well-known – and short – list.")
    ['A', 'well-known', 'and', 'short', 'list.']
    """
    return [piece for piece in text.split() if any(c.isalnum() for c in piece)]


def sentences(text: str) -> list[str]:
    """Pieces that end with . ! or ? before white space or the end; an unended rest counts too.

    >>> sentences("It costs 3.50 today! Really? Yes")
    ['It costs 3.50 today!', 'Really?', 'Yes']
    """
    return [piece for piece in re.split(r"(?<=[.!?])[\"'”’)]*\s+", text.strip()) if words(piece)]


def lines(text: str) -> list[str]:
    """Lines that are not blank, without the spaces around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def has_phrase(text: str, phrase: str) -> bool:
    """Whether ``phrase`` stands in ``text`` whole, in any case."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


@verifier
def exact_words(text: str, n: int) -> bool:
    """Exactly ``n`` words."""
    return len(words(text)) == n


@verifier
def at_most_words(text: str, n: int) -> bool:
    """At least one and at most ``n`` words."""
    return 1 <= len(words(text)) <= n


@verifier
def at_least_words(text: str, n: int) -> bool:
    """At least ``n`` words."""
    return len(words(text)) >= n


@verifier
def exact_sentences(text: str, n: int) -> bool:
    """Exactly ``n`` sentences, each ended; abbreviations with a full stop count as ends."""
    return len(sentences(text)) == n and _ended(text)


@verifier
def one_sentence(text: str) -> bool:
    """One ended sentence on one line."""
    return len(lines(text)) == 1 and exact_sentences(text, 1)


def _ended(text: str) -> bool:
    return re.search(r"[.!?][\"'”’)]*$", text) is not None


# Form

BULLET = re.compile(r"[-*•]\s+\S")
NUMBERED = re.compile(r"(\d+)[.)]\s+\S")


@verifier
def bullets(text: str, n: int) -> bool:
    """Exactly ``n`` lines that begin with a bullet (-, * or •) and no other line."""
    found = lines(text)
    return len(found) == n and all(BULLET.match(line) for line in found)


@verifier
def numbered(text: str, n: int) -> bool:
    """Lines numbered 1 to ``n`` in order, and no other line."""
    found = [NUMBERED.match(line) for line in lines(text)]
    return [int(match[1]) if match else 0 for match in found] == list(range(1, n + 1))


@verifier
def comma_list(text: str, n: int, at_most: int = 3) -> bool:
    """``n`` different items of at most ``at_most`` words, separated by commas, on one line."""
    items = [re.sub(r"^and\s+", "", item.strip(" .").lower()) for item in text.split(",")]
    short = all(1 <= len(words(item)) <= at_most for item in items)
    return len(lines(text)) == 1 and len(items) == n and len(set(items)) == n and short


@verifier
def json_keys(text: str, keys: Sequence[str]) -> bool:
    """A JSON object and nothing else, with exactly these keys and no empty value."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    if not isinstance(found, dict) or set(found) != set(keys):
        return False
    return all(value not in ("", None, [], {}) for value in found.values())


@verifier
def quoted(text: str) -> bool:
    """One pair of double quotation marks around the whole answer, and none inside."""
    return re.fullmatch(r'["“][^"“”]+["”]', text) is not None and bool(words(text))


@verifier
def bracketed(text: str) -> bool:
    """One pair of square brackets around the whole answer."""
    return re.fullmatch(r"\[[^\[\]]+\]", text) is not None


@verifier
def one_line(text: str) -> bool:
    """No line break."""
    return len(text.splitlines()) == 1


# Case


@verifier
def lowercase(text: str) -> bool:
    """Letters, none of them a capital."""
    return any(c.islower() for c in text) and not any(c.isupper() for c in text)


@verifier
def uppercase(text: str) -> bool:
    """Letters, all of them capitals."""
    return any(c.isupper() for c in text) and not any(c.islower() for c in text)


# Wording


@verifier
def begins_with(text: str, phrase: str) -> bool:
    """The first words are ``phrase``; a mark of quotation before it is passed over."""
    found = text.lstrip("\"'“‘*")
    return re.match(rf"{re.escape(phrase)}(?!\w)", found, re.IGNORECASE) is not None


@verifier
def ends_with(text: str, phrase: str) -> bool:
    """The last words are ``phrase``; punctuation after it is passed over."""
    found = text.rstrip(" .!?,;:\"'”’)*")
    return (
        re.search(rf"(?<!\w){re.escape(phrase.rstrip('.!?'))}$", found, re.IGNORECASE) is not None
    )


@verifier
def begins_with_letter(text: str, letter: str) -> bool:
    """The first letter is ``letter``, in any case."""
    first = next((c for c in text if c.isalpha()), "")
    return first.lower() == letter.lower()


@verifier
def ends_with_mark(text: str, mark: str) -> bool:
    """The last character is ``mark``."""
    return text.endswith(mark)


@verifier
def question(text: str) -> bool:
    """One question: the text is a single sentence that ends with a question mark."""
    return text.endswith("?") and len(sentences(text)) == 1


@verifier
def include(text: str, phrases: Sequence[str]) -> bool:
    """Every phrase stands in the text."""
    return all(has_phrase(text, phrase) for phrase in phrases)


@verifier
def include_times(text: str, phrase: str, n: int) -> bool:
    """``phrase`` stands in the text at least ``n`` times."""
    return len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE)) >= n


@verifier
def avoid(text: str, phrases: Sequence[str]) -> bool:
    """No phrase stands in the text."""
    return not any(has_phrase(text, phrase) for phrase in phrases)


@verifier
def avoid_characters(text: str, characters: str) -> bool:
    """None of these characters stands in the text, in either case."""
    return not set(characters.lower()) & set(text.lower())


@verifier
def repeat(text: str, sentence: str) -> bool:
    """Exactly this sentence; only the white space may differ."""
    return text.split() == sentence.split()


@verifier
def one_of(text: str, options: Sequence[str]) -> bool:
    """One of the options and nothing else, in any case, with or without a full stop."""
    return text.rstrip(".!").lower() in {option.lower() for option in options}


# Values

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@verifier
def number(text: str, value: float | None = None) -> bool:
    """A number and nothing else (a full stop may follow); that number, if ``value`` is given."""
    body = text.rstrip(".")
    if not NUMBER.fullmatch(body):
        return False
    return value is None or _value(body) == value


@verifier
def final_number(text: str, value: float) -> bool:
    """The last number in the text (after ####, where there is that mark) equals ``value``."""
    found = NUMBER.findall(text.rsplit("####", 1)[-1])
    return bool(found) and abs(_value(found[-1]) - value) <= 1e-9 * max(1.0, abs(value))


def _value(written: str) -> float:
    return float(written.replace(",", ""))


@verifier
def contains(text: str, part: str) -> bool:
    """``part`` stands in the text, letter for letter."""
    return part in text


@verifier
def regex(text: str, pattern: str) -> bool:
    """The whole text fits the regular expression."""
    try:
        return re.fullmatch(pattern, text, re.DOTALL) is not None
    except re.error as error:
        raise OptionError(
            f"The verifier's pattern {pattern!r} is no regular expression ({error}).",
            "Mend the pattern.",
        ) from error


@verifier
def all_of(text: str, of: Sequence[Spec]) -> bool:
    """Every one of these specs is followed."""
    return bool(of) and all(verify(spec, text) == 1.0 for spec in of)
