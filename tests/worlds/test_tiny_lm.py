"""The tiny language: its law, its gold reward, its labels, and the model trained on it."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from polyalign.policies.language.folders import in_cache
from polyalign.protocols import Sampling
from polyalign.studies import tiny_lm
from polyalign.studies.tiny_lm import Recipe
from polyalign.worlds.tiny_lm import LEXICON, MOST, WORDS, TinyLm

SMALL = Recipe(hidden=16, layers=1, heads=2, feed_forward=16, demonstrations=64, steps=3, batch=8)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path))
    return tmp_path


def test_the_corpus_is_a_law_over_answers() -> None:
    world = TinyLm()
    one = sum(math.exp(world.log_probability("b:", f" {word}")) for word in WORDS)
    assert one == pytest.approx(1 / MOST)
    two = sum(
        math.exp(world.log_probability("b:", f" {a} {b}"))
        for a, b in itertools.product(WORDS, WORDS)
    )
    assert two == pytest.approx(1 / MOST)
    assert world.log_probability("b:", "bee") == -math.inf
    assert world.log_probability("b:", " bees") == -math.inf
    assert world.log_probability("b:", " bee" * (MOST + 1)) == -math.inf


def test_the_entropy_is_the_mean_surprise_of_drawn_answers() -> None:
    world = TinyLm()
    drawn = world.demonstrations(4000, seed=3)
    surprise = [-world.log_probability(d.prompt, d.completion) for d in drawn]
    assert sum(surprise) / len(surprise) == pytest.approx(world.entropy(), abs=0.3)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(" bee birch", 1.0), (" bee ant", 0.5), (" bee xyz", 0.0), (" xyz", -1.0), ("", -1.0)],
)
def test_the_gold_reward_counts_right_words_less_unknown_ones(answer, expected) -> None:
    assert TinyLm().reward("b:", answer) == expected
    verdict = TinyLm().judge(["b:"], [answer], [{}])
    assert verdict.score.tolist() == [expected]


def test_labels_follow_the_gold_reward_flips_their_rate_and_pay_their_length() -> None:
    def gaps(world, of):
        pairs = world.pairs(600, seed=1)
        return [of(p.prompt, p.chosen) - of(p.prompt, p.rejected) for p in pairs]

    def length(prompt, answer):
        return len(answer)

    clean, noisy, paid = TinyLm(), TinyLm(noise=0.4), TinyLm(length_pay=0.2)
    gold = [sum(gaps(w, clean.reward)) / 600 for w in (clean, noisy)]
    assert gold[0] > 3 * gold[1] > 0
    assert sum(gaps(paid, length)) / 600 > sum(gaps(clean, length)) / 600 + 2
    flipped = [p.meta["flipped"] for p in noisy.pairs(600, seed=1)]
    assert sum(flipped) / len(flipped) == pytest.approx(0.4, abs=0.06)


def test_every_kind_of_feedback_is_a_function_of_its_seed() -> None:
    world = TinyLm()
    for kind in (world.demonstrations, world.pairs, world.binary, world.lists):
        assert kind(40, seed=2) == kind(40, seed=2) != kind(40, seed=3)
    assert {p.prompt for p in world.asked()} == {f"{letter}:" for letter in LEXICON}


def test_every_byte_is_a_token_and_text_survives_the_round_trip() -> None:
    tokenizer = tiny_lm.byte_tokenizer()
    assert len(tokenizer) == 257
    for text in (" bee birch", "b:", "é – 木"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text


def test_the_model_is_trained_once_and_found_by_name(cache, monkeypatch) -> None:
    seen = []
    place = tiny_lm.folder(SMALL, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)
    assert in_cache(tiny_lm.NAME).path == place
    assert not [path for path in place.parent.iterdir() if path.name.startswith(".tiny-lm-")]
    monkeypatch.setattr(tiny_lm, "trained", lambda *given: pytest.fail("trained again"))
    assert tiny_lm.folder(SMALL) == place


def test_another_recipe_is_another_model(cache) -> None:
    place = tiny_lm.folder(SMALL)
    first = (place / "model.safetensors").read_bytes()
    tiny_lm.folder(replace(SMALL, seed=1))
    assert (place / "model.safetensors").read_bytes() != first


def test_a_few_steps_of_imitation_come_nearer_to_the_corpus() -> None:
    start = tiny_lm.untrained(SMALL)
    end = tiny_lm.trained(replace(SMALL, steps=30, lr=0.02))
    assert tiny_lm.excess(end, n=32) < 0.7 * tiny_lm.excess(start, n=32)


def test_divergence_from_itself_is_zero_and_samples_are_text() -> None:
    policy = tiny_lm.untrained(SMALL)
    assert tiny_lm.divergence(policy, policy, n=1) == pytest.approx(0.0, abs=1e-4)
    rollout = policy.sample(["b:"], 2, Sampling(max_steps=4), [0, 1])
    assert all(isinstance(text, str) for text in rollout.payloads)
    assert -1 <= tiny_lm.gold(policy, n=1) <= 1


@pytest.mark.soak
def test_trained_whole_it_speaks_the_language_and_a_preference_method_raises_its_gold_reward(
    cache,
) -> None:
    torch.set_num_threads(1)
    from polyalign.studies.experiments import lab

    policy = tiny_lm.load()
    assert tiny_lm.excess(policy) < 1.0
    (row,) = lab(["dpo"], world="tiny_lm")
    assert row["reached"]
    assert row["reward"] > tiny_lm.gold(policy) + 0.1
