"""A judge behind an OpenAI-compatible endpoint: which of two answers is better.

Every pair is asked in both orders and averaged, since models like what comes first (or last); how
often the two orders disagree is told. What cannot be asked or read is abstained on and counted,
never a number made up. The key comes from the environment and is never written anywhere.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch

from polyalign.errors import DataError, OptionError
from polyalign.feedback.payloads import text_of
from polyalign.protocols import Verdict

KEYS = ("POLYALIGN_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key, the first that is set."""

INSTRUCTIONS = (
    "You compare two answers to a request. Judge which one helps better: correct, complete, "
    "clear, and no longer than it needs to be. The order in which they are shown means nothing. "
    "Reply with one word: A, B, or TIE."
)

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP states after which the same question may be asked again."""


@dataclass
class Account:
    """What was asked and what it cost; ``cost`` in the prices' currency, None without prices."""

    requests: int = 0
    retries: int = 0
    unreadable: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    pairs: int = 0
    disagreed: int = 0
    cost: float | None = None


class EndpointJudge:
    """Compares neighbours [G, 2, 2] by asking ``model`` at ``url`` (…/v1) in both orders.

    ``prices``: per million prompt and answer tokens. ``tries`` per question with waits of
    ``wait`` seconds, doubled each time (or what the server asks for). Raises :class:`OptionError`
    where the server refuses the key or the model, :class:`DataError` where it answers less than
    half of the questions.
    """

    pairwise = True

    def __init__(
        self,
        model: str,
        url: str,
        *,
        tries: int = 5,
        wait: float = 1.0,
        timeout: float = 60.0,
        workers: int = 8,
        most_tokens: int = 16,
        prices: tuple[float, float] | None = None,
        instructions: str = INSTRUCTIONS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model = model
        self.url = url.rstrip("/")
        self.tries, self.wait, self.timeout, self.workers = tries, wait, timeout, workers
        self.most_tokens = most_tokens
        self.prices = prices
        self.instructions = instructions
        self.sleep = sleep
        self.account = Account()
        self.name = f"{model} (endpoint)"
        self._known: dict[tuple[str, str, str], float | None] = {}
        self._lock = Lock()

    @property
    def tokens_used(self) -> int:
        """Tokens that the endpoint has counted so far."""
        return self.account.prompt_tokens + self.account.answer_tokens

    @property
    def disagreement(self) -> float:
        """Share of pairs whose two orders named different answers; 0 before any was asked."""
        return self.account.disagreed / self.account.pairs if self.account.pairs else 0.0

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], meta: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        if len(completions) % 2:
            raise DataError(f"The judge {self.name} compares two answers.", "Give it pairs.")
        questions = []
        for i in range(0, len(completions), 2):
            asked = text_of(prompts[i])
            first, second = text_of(completions[i]), text_of(completions[i + 1])
            questions += [(asked, first, second), (asked, second, first)]
        new = list(dict.fromkeys(q for q in questions if q not in self._known))
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            for question, answer in zip(new, pool.map(self._ask, new), strict=True):
                self._known[question] = answer
        silent = sum(self._known[q] is None for q in new)
        if new and silent > len(new) / 2:
            raise DataError(
                f"The judge {self.name} gave no readable answer to {silent} of {len(new)} "
                "questions.",
                "Look at the endpoint, or use a model that replies A, B or TIE.",
            )
        groups = len(completions) // 2
        prefer = torch.full((groups, 2, 2), 0.5, dtype=torch.float64)
        abstained = torch.zeros(len(completions), dtype=torch.bool)
        fresh = set(new)
        for g in range(groups):
            one, other = self._known[questions[2 * g]], self._known[questions[2 * g + 1]]
            if one is None or other is None:
                abstained[2 * g : 2 * g + 2] = True
                continue
            if questions[2 * g] in fresh:
                # Counted once, also where the same pair comes again the other way round.
                fresh -= {questions[2 * g], questions[2 * g + 1]}
                self.account.pairs += 1
                self.account.disagreed += one + other != 1
            prefer[g, 0, 1] = (one + 1 - other) / 2
            prefer[g, 1, 0] = 1 - prefer[g, 0, 1]
        return Verdict(prefer=prefer, abstained=abstained)

    def _ask(self, question: tuple[str, str, str]) -> float | None:
        """1.0 where the first shown answer is better, 0.0 the second, 0.5 a tie; None: unread."""
        asked, first, second = question
        if first == second:
            return 0.5
        shown = f"Request:\n{asked}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\nA, B or TIE?"
        for attempt in range(self.tries):
            try:
                reply = self._post(shown)
            except _TryLater as later:
                with self._lock:
                    self.account.retries += attempt + 1 < self.tries
                if attempt + 1 < self.tries:
                    self.sleep(later.seconds or self.wait * 2**attempt)
                continue
            found = verdict_in(reply)
            if found is not None:
                return found
            with self._lock:
                self.account.unreadable += 1
        with self._lock:
            self.account.failed += 1
        return None

    def _post(self, content: str) -> str:
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": self.instructions},
                {"role": "user", "content": content},
            ],
            "temperature": 0,
            "max_tokens": self.most_tokens,
        }
        headers = {"Content-Type": "application/json"}
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers
        )
        with self._lock:
            self.account.requests += 1
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                found = json.loads(response.read())
        except urllib.error.HTTPError as error:
            if error.code in AGAIN:
                raise _TryLater(_seconds(error.headers.get("Retry-After"))) from None
            raise OptionError(
                f"The judge {self.name} was refused (HTTP {error.code}).",
                f"Check the model's name, the address, and the key in {KEYS[0]}.",
            ) from None
        except (urllib.error.URLError, TimeoutError, OSError, ValueError):
            raise _TryLater(None) from None
        usage = found.get("usage") or {}
        with self._lock:
            self.account.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.account.answer_tokens += int(usage.get("completion_tokens") or 0)
            if self.prices is not None:
                self.account.cost = (
                    self.prices[0] * self.account.prompt_tokens
                    + self.prices[1] * self.account.answer_tokens
                ) / 1e6
        try:
            return str(found["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            return ""


class _TryLater(Exception):
    def __init__(self, seconds: float | None) -> None:
        super().__init__()
        self.seconds = seconds


def _seconds(header: str | None) -> float | None:
    try:
        return min(max(float(header or ""), 0.0), 60.0)
    except ValueError:
        return None


def verdict_in(reply: str) -> float | None:
    """What a reply says: 1.0 for A, 0.0 for B, 0.5 for a tie; None where it says no one thing.

    >>> verdict_in("A"), verdict_in("**B**."), verdict_in("It is a TIE"), verdict_in("A or B")
    (1.0, 0.0, 0.5, None)
    """
    words = set(re.findall(r"(?<![A-Za-z])(A|B|TIE|Tie|tie)(?![A-Za-z])", reply))
    found = {word.upper() for word in words}
    return {"A": 1.0, "B": 0.0, "TIE": 0.5}[found.pop()] if len(found) == 1 else None


def open_endpoint(spec: str) -> EndpointJudge:
    """The judge of ``endpoint:MODEL@URL``. Raises :class:`OptionError` for any other text."""
    model, at, url = spec.removeprefix("endpoint:").rpartition("@")
    if not at or not model or not url.startswith(("http://", "https://")):
        raise OptionError(
            "An endpoint judge is written endpoint:MODEL@URL.",
            "For example endpoint:my-model@http://localhost:8000/v1",
        )
    return EndpointJudge(model, url)
