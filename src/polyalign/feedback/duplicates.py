"""Duplicates: rows that say the same, exactly or nearly.

Near duplicates are found by one-permutation MinHash (Li, Owen and Zhang 2012, empty bins filled
as in Shrivastava and Li 2014) over three-word shingles with banding, and then verified: the exact
Jaccard similarity of the shingles must reach the threshold for the prompt and for each answer.
So a long prompt, or one long answer, that different rows share makes no duplicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from polyalign.feedback.payloads import digest, text_of
from polyalign.feedback.records import Pair, Quadruple, Record
from polyalign.feedback.statistics import answers_of

WORDS = 3
BANDS, DEPTH = 20, 4
"""20 bands of 4 hashes: two texts of similarity 0.8 meet with probability 0.9999."""

THRESHOLD = 0.8
CROWD = 40
"""In a larger bucket every row is compared with the first so many only, to stay fast."""


def content_identity(record: Record) -> str:
    """A hash of what a record says; equal for exact duplicates."""
    from polyalign.feedback.writing import content_row

    return digest(content_row(record))


def exact_duplicates(records: Iterable[Record]) -> list[list[int]]:
    """Groups of rows (by index, at least two each) that say exactly the same."""
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(content_identity(record), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


BASE = 0x100000001B3
MIX = 0x9E3779B97F4A7C15


class Shingles:
    """Texts as sets of hashed three-word windows, without a loop over words.

    A word is a run of letters and digits; white space, punctuation and case do not count. The
    hash of bytes s to e of a text is sum_i byte[i] * BASE^(i - s) modulo 2^64: a difference of
    running sums times a power of the inverse of BASE.
    """

    def __init__(self) -> None:
        import numpy as np

        letters = [chr(i).isalnum() or i >= 128 for i in range(256)]
        self.letter = np.array(letters)
        self.powers = self.inverses = np.ones(1, dtype=np.uint64)

    def _grow(self, n: int) -> None:
        import numpy as np

        if len(self.powers) < n:
            size = max(n, 2 * len(self.powers))
            factors = np.full(size, BASE, dtype=np.uint64)
            backs = np.full(size, pow(BASE, -1, 2**64), dtype=np.uint64)
            factors[0] = backs[0] = 1
            self.powers, self.inverses = np.cumprod(factors), np.cumprod(backs)

    def of(self, text: str) -> Any:
        """Sorted distinct 64-bit hashes ``[S]``, S >= 1."""
        import numpy as np

        data = np.frombuffer(text.lower().encode("utf-8", "surrogatepass"), dtype=np.uint8)
        if not len(data):
            return np.zeros(1, dtype=np.uint64)
        self._grow(len(data) + 1)
        edges = np.flatnonzero(np.diff(np.r_[False, self.letter[data], False]))
        if not len(edges):
            edges = np.array([0, len(data)])
        starts, ends = edges[0::2], edges[1::2]
        sums = np.zeros(len(data) + 1, dtype=np.uint64)
        np.cumsum((data + np.uint64(1)) * self.powers[: len(data)], out=sums[1:])
        words = (sums[ends] - sums[starts]) * self.inverses[starts]
        width = min(WORDS, len(words))
        n = len(words) - width + 1
        hashed = np.zeros(n, dtype=np.uint64)
        for offset in range(width):
            # Mixed after every word, so that all bits count and the order of words matters.
            hashed = (hashed ^ words[offset : offset + n]) * np.uint64(MIX)
            hashed ^= hashed >> np.uint64(29)
        hashed.sort()
        return hashed[np.r_[True, hashed[1:] != hashed[:-1]]]


def similarity(a: Any, b: Any) -> float:
    """The Jaccard similarity of two sorted sets of hashes."""
    import numpy as np

    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _texts(record: Any) -> list[str]:
    """The words of the prompt(s) and of each answer; answers without an order are sorted."""
    prompts = record.prompts if hasattr(record, "prompts") else (record.prompt,)
    answers = [text_of(answer) for answer in answers_of(record)]
    if not isinstance(record, (Pair, Quadruple)):
        answers.sort()
    return ["\n".join(text_of(prompt) for prompt in prompts), *answers]


def _bands(hashes: Any) -> list[bytes]:
    """The keys of the buckets into which sorted hashes fall.

    The range of the hashes is cut into BANDS * DEPTH bins; the smallest hash of each bin is one
    MinHash value, and an empty bin borrows from the next one that is not.
    """
    import numpy as np

    n = BANDS * DEPTH
    edges = (np.arange(n, dtype=np.float64) * (2.0**64 / n)).astype(np.uint64)
    first = np.searchsorted(hashes, edges)
    ends = np.append(first[1:], len(hashes))
    full = np.flatnonzero(ends > first)
    bins = np.arange(n)
    # The next full bin at or after each bin, around the corner; how far it is marks the loan.
    place = np.searchsorted(full, bins)
    lender = full[place % len(full)]
    far = (lender - bins) % n
    minima = hashes[first[lender]] + far.astype(np.uint64) * np.uint64(MIX)
    return [minima[i * DEPTH : (i + 1) * DEPTH].tobytes() for i in range(BANDS)]


def near_duplicates(
    records: Sequence[Record], threshold: float = THRESHOLD
) -> list[tuple[int, int, float]]:
    """Pairs of rows (i < j) nearly the same but not exactly, with their similarity."""
    shingles = Shingles()
    buckets: dict[tuple[int, bytes], list[int]] = {}
    identities: list[str] = []
    for index, record in enumerate(records):
        identities.append(content_identity(record))
        whole = shingles.of("\n".join(_texts(record)))
        for band, key in enumerate(_bands(whole)):
            buckets.setdefault((band, key), []).append(index)
    candidates: set[tuple[int, int]] = set()
    for members in buckets.values():
        crowd = members[:CROWD]
        candidates.update(combinations(crowd, 2))
        candidates.update((first, late) for late in members[CROWD:] for first in crowd[:1])
    return _verified(records, sorted(candidates), identities, shingles, threshold)


def _verified(
    records: Sequence[Record],
    candidates: list[tuple[int, int]],
    identities: list[str],
    shingles: Shingles,
    threshold: float,
) -> list[tuple[int, int, float]]:
    """Candidates whose prompts and answers are each similar enough, one by one."""
    held: dict[int, list[Any]] = {}

    def sets(index: int) -> list[Any]:
        if index not in held:
            if len(held) > 20_000:
                held.clear()
            held[index] = [shingles.of(text) for text in _texts(records[index])]
        return held[index]

    found = []
    for i, j in candidates:
        if identities[i] == identities[j]:
            continue
        ours, theirs = sets(i), sets(j)
        if len(ours) != len(theirs):
            continue
        alike = 1.0
        # Answers first: rows on one prompt are common, and differ in their answers.
        for a, b in zip(reversed(ours), reversed(theirs), strict=True):
            alike = min(alike, similarity(a, b))
            if alike < threshold:
                break
        else:
            found.append((i, j, alike))
    return found
