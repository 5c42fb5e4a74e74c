"""From payloads to token ids and back: plain text and conversations.

Masks are made from positions of the text, never from token ids: a pad token that equals the end
token, or a special token inside a message, changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from polyalign.errors import DataError, ModelError
from polyalign.types import Row

Ids = list[int]
_PROBE = "polyalign probe"


@dataclass(frozen=True)
class Encoded:
    """A row and what happened to it on the way.

    ``cut_context`` and ``cut_steps`` count the tokens that the length limits took; ``emptied`` is
    True when none of the policy's own steps is left; ``faults`` name what the tokenizer or the
    template did not do as expected.
    """

    row: Row
    cut_context: int = 0
    cut_steps: int = 0
    faults: tuple[str, ...] = ()

    @property
    def emptied(self) -> bool:
        return not bool(self.row.mask.any())


@dataclass
class Template:
    """How a tokenizer turns prompts and completions into rows.

    ``max_length`` bounds context and steps together, ``max_prompt_length`` the context alone: a
    context loses its beginning (never its BOS), a completion its end. ``assistant`` says which
    turns of a conversational completion are trained.
    """

    tokenizer: Any
    max_length: int | None = None
    max_prompt_length: int | None = None
    assistant: Literal["last", "all"] = "last"
    end_ids: frozenset[int] = frozenset()

    def ids(self, text: str) -> Ids:
        """Token ids of a text, without anything added to it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def wants_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(self.tokenizer("a")["input_ids"])[:1] == [bos]

    @cached_property
    def eos(self) -> int | None:
        found: int | None = self.tokenizer.eos_token_id
        return found

    @cached_property
    def turn_end(self) -> int | None:
        """The token with which the chat template ends an assistant's turn, else EOS."""
        if self.tokenizer.chat_template:
            turns = [_turn("user", "x"), _turn("assistant", _PROBE)]
            tail = self.render(turns, False).partition(_PROBE)[2]
            special = set(self.tokenizer.all_special_ids) | {
                i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special
            }
            for token in self.ids(tail):
                if token in special:
                    return token
        return self.eos

    @cached_property
    def stops(self) -> frozenset[int]:
        """Ids that end a sampled completion."""
        own = {self.eos} if self.eos is not None else set()
        if self.turn_end is not None:
            own.add(self.turn_end)
        return self.end_ids | own

    @property
    def fingerprint(self) -> str:
        """Changes when anything changes that decides the ids of a payload."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = (
            backend.to_str() if backend else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        )
        parts = [
            vocabulary,
            str(self.tokenizer.chat_template),
            str(sorted(self.tokenizer.special_tokens_map.items())),
            str((self.wants_bos, self.max_length, self.max_prompt_length, self.assistant)),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def render(self, messages: Sequence[Mapping[str, Any]], generate: bool) -> str:
        """The text of a conversation; ``generate`` opens the assistant's next turn."""
        if not self.tokenizer.chat_template:
            raise ModelError(
                "The feedback is conversational but the tokenizer has no chat template.",
                "Use an instruct model, set the tokenizer's chat_template, or give plain text.",
            )
        import jinja2

        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generate
            )
        except (jinja2.TemplateError, KeyError, TypeError) as error:
            roles = ", ".join(str(turn.get("role")) for turn in messages)
            raise DataError(
                f"The chat template refuses a conversation with the roles {roles}: {error}.",
                "Change the order of the turns, or use another template.",
            ) from None
        return text

    def context(self, prompt: Any, room: int = 0) -> tuple[int, ...]:
        """The context's ids, cut to the limits less ``room`` steps, but never empty."""
        return self._limit(self._context(prompt), room)[0]

    def _context(self, prompt: Any) -> Ids:
        if is_conversation(prompt):
            return self._opened(self.ids(self.render(messages(prompt), True)), chat=True)
        return self._opened(self.ids(_text(prompt)), chat=False)

    def _opened(self, ids: Ids, chat: bool) -> Ids:
        """BOS exactly once, where the tokenizer or the template wants it; never empty."""
        bos = self.tokenizer.bos_token_id
        if bos is not None:
            while ids[:2] == [bos, bos]:
                ids = ids[1:]
            if self.wants_bos and not chat and ids[:1] != [bos]:
                ids = [bos, *ids]
        if not ids:
            # The first step needs a state to be predicted from.
            start = bos if bos is not None else self.eos
            if start is None:
                raise DataError(
                    "A prompt is empty and the tokenizer has neither BOS nor EOS to begin with.",
                    "Give the prompt some text.",
                )
            ids = [start]
        return ids

    def _limit(self, ids: Ids, room: int = 0) -> tuple[tuple[int, ...], int]:
        whole = None if self.max_length is None else self.max_length - room
        limits = [n for n in (self.max_prompt_length, whole) if n is not None]
        limit = max(min(limits), 1) if limits else len(ids)
        if len(ids) <= limit:
            return tuple(ids), 0
        if ids[0] == self.tokenizer.bos_token_id and self.wants_bos and limit > 1:
            kept = [ids[0], *ids[len(ids) - limit + 1 :]]
        else:
            kept = ids[len(ids) - limit :]
        return tuple(kept), len(ids) - limit

    def encode(self, prompt: Any, completion: Any) -> Encoded:
        """The row of a prompt and a completion (None: a row without steps).

        Raises :class:`DataError` when a template renders a conversation's beginning differently
        once it goes on, and :class:`ModelError` when there is no template.
        """
        if completion is None:
            context, cut = self._limit(self._context(prompt))
            return Encoded(_row(context, [], [], []), cut)
        if is_conversation(prompt) or is_conversation(completion):
            ids, steps, mask, turn, faults = self._chat(messages(prompt), replies(completion))
        else:
            ids, steps, faults = self._plain(_text(prompt), _text(completion))
            mask, turn = [True] * len(steps), [0] * len(steps)
        context, cut = self._limit(ids)
        room = len(steps) if self.max_length is None else max(self.max_length - len(context), 0)
        row = _row(context, steps[:room], mask[:room], turn[:room])
        return Encoded(row, cut, max(len(steps) - room, 0), faults)

    def _plain(self, prompt: str, completion: str) -> tuple[Ids, Ids, tuple[str, ...]]:
        (head, steps), faults = self._pieces(prompt + completion, [len(prompt)])
        return self._opened(head, chat=False), self._ended(steps, self.eos), faults

    def _chat(
        self, prompt: list[Mapping[str, Any]], reply: list[Mapping[str, Any]]
    ) -> tuple[Ids, Ids, list[bool], list[int], tuple[str, ...]]:
        own = [i for i, turn in enumerate(reply) if turn.get("role") == "assistant"]
        if not own:
            raise DataError(
                "A conversational completion has no turn of the assistant.",
                "Give the answer the role 'assistant'.",
            )
        trained = own if self.assistant == "all" else own[-1:]
        reply = reply[: own[-1] + 1]
        text = self.render([*prompt, *reply], False)
        begin, opened = self._opening(text, prompt)
        cuts, faults = [begin], opened
        for i in trained:
            if i > 0:
                begin, opened = self._opening(text, [*prompt, *reply[:i]])
                faults += opened
            if i == own[-1]:
                end = len(text)
            else:
                until = self.render([*prompt, *reply[: i + 1]], False)
                end = len(until) if text.startswith(until) else -1
            if not cuts[-1] <= begin <= end:
                raise DataError(
                    "The chat template renders the beginning of a conversation differently once "
                    "the conversation goes on, so its turns cannot be told apart.",
                    "Put all turns but the assistant's last into the prompt.",
                )
            cuts += [begin, end]
        pieces, apart = self._pieces(text, cuts[:-1])
        steps: Ids = []
        mask: list[bool] = []
        turns: list[int] = []
        # pieces: the context, then (what lies between, a trained turn) again and again.
        for n, (between, turn) in enumerate(zip(pieces[1::2], pieces[2::2])):
            kept, rest = self._until_end(turn)
            last = n == len(trained) - 1
            kept = self._ended(kept, self.turn_end)
            tail = [] if last else rest
            steps += between + kept + tail
            mask += [False] * len(between) + [True] * len(kept) + [False] * len(tail)
            turns += [n] * (len(between) + len(kept) + len(tail))
        return self._opened(pieces[0], chat=True), steps, mask, turns, faults + apart

    def _opening(self, text: str, before: list[Mapping[str, Any]]) -> tuple[int, tuple[str, ...]]:
        """Where in ``text`` the assistant's turn after ``before`` begins."""
        opening = self.render(before, True)
        if text.startswith(opening):
            return len(opening), ()
        # Some templates open a turn with more than they keep of it (a thinking block): go back to
        # what the opening has in common with any finished turn.
        probe = self.render([*before, _turn("assistant", _PROBE)], False)
        common = 0
        for a, b in zip(opening, probe):
            if a != b:
                break
            common += 1
        if text.startswith(opening[:common]) and common > len(self.render(before, False)):
            return common, ("the template's generation prompt is not a prefix of the answer",)
        raise DataError(
            "The chat template's text of the prompt is not a prefix of prompt and answer.",
            "Use a template whose generation prompt begins every answer.",
        )

    def _pieces(self, text: str, cuts: Sequence[int]) -> tuple[list[Ids], tuple[str, ...]]:
        """The text's ids, cut where the characters ``cuts`` are.

        Tokenised as a whole where the tokens allow it; apart, with a fault, where a token
        reaches over a cut.
        """
        whole = self.ids(text)
        at = [0]
        for cut in cuts:
            head = self.ids(text[:cut])
            if whole[: len(head)] != head:
                bounds = [0, *cuts, len(text)]
                apart = [self.ids(text[a:b]) if b > a else [] for a, b in zip(bounds, bounds[1:])]
                return apart, ("a token reaches over the boundary of prompt and completion",)
            at.append(len(head))
        at.append(len(whole))
        return [whole[a:b] for a, b in zip(at, at[1:])], ()

    def _until_end(self, turn: Ids) -> tuple[Ids, Ids]:
        """A turn up to its end token, and what the template writes after it."""
        end = self.turn_end
        for i in range(len(turn) - 1, -1, -1):
            if turn[i] == end:
                return turn[: i + 1], turn[i + 1 :]
        return turn, []

    @staticmethod
    def _ended(ids: Ids, end: int | None) -> Ids:
        """With exactly one end token at the end."""
        if end is None:
            return ids
        while ids and ids[-1] == end:
            ids = ids[:-1]
        return [*ids, end]

    def payload(self, prompt: Any, ids: Sequence[int]) -> Any:
        """Sampled ids as a completion of the prompt's sort."""
        kept = list(ids)
        while kept and kept[-1] in self.stops:
            kept.pop()
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return (_turn("assistant", text),) if is_conversation(prompt) else text


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _row(context: tuple[int, ...], steps: Ids, mask: list[bool], turn: list[int]) -> Row:
    several = bool(turn) and turn[-1] > 0
    return Row(
        context,
        torch.tensor(steps, dtype=torch.long),
        torch.tensor(mask, dtype=torch.bool),
        torch.tensor(turn, dtype=torch.long) if several else None,
    )


def _text(payload: Any) -> str:
    if not isinstance(payload, str):
        raise DataError(
            f"A language model reads text or messages, not {type(payload).__name__}.",
            "Give prompts and completions as strings or as lists of role and content.",
        )
    return payload


def is_conversation(payload: Any) -> bool:
    """Whether a payload is a sequence of messages rather than text."""
    return isinstance(payload, (tuple, list))


def messages(payload: Any) -> list[Mapping[str, Any]]:
    """A prompt as messages; plain text is one turn of the user."""
    return [_turn("user", payload)] if isinstance(payload, str) else [_plain(m) for m in payload]


def replies(payload: Any) -> list[Mapping[str, Any]]:
    """A completion as messages; plain text is one turn of the assistant."""
    if isinstance(payload, str):
        return [_turn("assistant", payload)]
    return [_plain(m) for m in payload]


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose content is text; parts of text are joined, images are refused."""
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return message
    for part in content:
        if part.get("type", "text") != "text":
            raise DataError(
                f"A message contains a part of type '{part.get('type')}'.",
                "polyalign trains on text only; remove such rows.",
            )
    return {**message, "content": "".join(part["text"] for part in content)}
