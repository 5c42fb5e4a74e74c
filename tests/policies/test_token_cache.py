"""Tokenised feedback on disk is what encoding gives."""

from __future__ import annotations

import pytest

from polyalign.errors import RunError
from polyalign.policies.language.cache import TokenCache
from polyalign.policies.language.template import Template
from tests.policies import tiny

CHAT = ({"role": "user", "content": "hi"},)
TURNS = tuple(
    {"role": role, "content": text}
    for role, text in (("assistant", "yes"), ("user", "why"), ("assistant", "the cat"))
)
ITEMS = [
    ("the cat", " sat"),
    ("the cat", " ran after the dog"),
    ("a", ""),
    (CHAT, TURNS),
    ("the dog", None),
]


def same(one, other) -> bool:
    segments = (one.segment, other.segment)
    return (
        one.context == other.context
        and one.steps.equal(other.steps)
        and one.mask.equal(other.mask)
        and (segments == (None, None) or segments[0].equal(segments[1]))
    )


def test_rows_from_disk_are_the_encoded_rows(tmp_path):
    template = Template(tiny.tokenizer(), assistant="all")
    TokenCache.open(template, "feedback", lambda: iter(ITEMS), tmp_path)
    again = TokenCache.open(template, "feedback", lambda: pytest.fail("made twice"), tmp_path)
    assert len(again) == len(ITEMS)
    for prompt, completion in ITEMS:
        assert same(again.find(prompt, completion), template.encode(prompt, completion).row)
    assert again.find("the cat", "absent") is None
    assert again.find(list(CHAT), [dict(turn) for turn in TURNS]) is not None
    assert again.summary["rows"] == len(ITEMS)
    assert again.summary["emptied"] == 1


def test_another_template_or_other_feedback_is_another_cache(tmp_path):
    whole = TokenCache.open(Template(tiny.tokenizer()), "a", lambda: iter(ITEMS), tmp_path)
    cut = Template(tiny.tokenizer(), max_length=3)
    short = TokenCache.open(cut, "a", lambda: iter(ITEMS), tmp_path)
    other = TokenCache.open(Template(tiny.tokenizer()), "b", lambda: iter(ITEMS[:1]), tmp_path)
    assert len({whole.folder, short.folder, other.folder}) == 3
    assert len(short.find(*ITEMS[1]).steps) < len(whole.find(*ITEMS[1]).steps)


def test_a_cache_that_failed_half_way_leaves_nothing_behind(tmp_path):
    def broken():
        yield ITEMS[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left.*Free space"):
        TokenCache.open(Template(tiny.tokenizer()), "a", broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_feedback_makes_an_empty_cache(tmp_path):
    cache = TokenCache.open(Template(tiny.tokenizer()), "a", lambda: iter(()), tmp_path)
    assert len(cache) == 0
    assert cache.find("a", "b") is None


def test_a_policy_encodes_from_its_cache_first(tmp_path, monkeypatch):
    policy = tiny.policy()
    direct = policy.encode(*ITEMS[0])
    policy.tokens = TokenCache.open(policy.template, "a", lambda: iter(ITEMS), tmp_path)
    monkeypatch.setattr(type(policy.template), "encode", lambda *_: pytest.fail("tokenised again"))
    assert same(policy.encode(*ITEMS[0]), direct)
