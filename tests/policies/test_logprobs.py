"""Quantities of single tokens, in chunks, against the formulas on all logits."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from polyalign.policies.language import logprobs
from polyalign.policies.language.logits import Head
from polyalign.policies.language.logprobs import TOKENS, buffers, token_quantities
from polyalign.policies.language.signals import AGAINST, LAW
from polyalign.types import Rows
from tests.policies import tiny

M, H, V = 7, 5, 11


def head(trains=False, softcap=None, scale=1.0, bias=False, tokens=V) -> Head:
    torch.manual_seed(0)
    weight = torch.randn(tokens, H, dtype=torch.float64, requires_grad=trains)
    shift = torch.randn(tokens, dtype=torch.float64, requires_grad=trains) if bias else None
    return Head(weight, shift, scale, softcap)


def expected(states, head, targets, other=None):
    """Every quantity from its definition."""
    p = head(states).softmax(-1)
    out = {
        "logp": p.log()[torch.arange(len(p)), targets],
        "entropy": -(p * p.log()).sum(-1),
        "log_collision": (p * p).sum(-1).log(),
        "max_prob": p.max(-1).values,
    }
    likeliest = p.sort(-1, descending=True).values[:, :10]
    out["top_mass"] = likeliest.sum(-1)
    out["top_entropy"] = -(likeliest * likeliest.log()).sum(-1)
    if other is not None:
        q = other[1](other[0]).softmax(-1)
        out["kl(policy|ref)"] = (p * (p / q).log()).sum(-1)
        out["kl(ref|policy)"] = (q * (q / p).log()).sum(-1)
        m = (p + q) / 2
        js = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
        out["js(policy|ref)"] = js
        out["log_overlap(policy|ref)"] = (p * q).sqrt().sum(-1).log()
        out["tv(policy|ref)"] = (p - q).abs().sum(-1) / 2
    return out


@pytest.mark.parametrize("shape", [{}, {"softcap": 2.0}, {"scale": 0.3}, {"bias": True}])
@pytest.mark.parametrize("trains", [False, True], ids=["constant head", "trained head"])
@pytest.mark.parametrize("want", [frozenset(), LAW | AGAINST], ids=["logp", "signals"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("wide", [TOKENS, 4], ids=["one chunk of tokens", "three chunks"])
def test_values_and_gradients_are_those_of_full_logits_at_every_chunk_size(
    shape, trains, want, chunk, wide, monkeypatch
):
    monkeypatch.setattr(logprobs, "TOKENS", wide)
    monkeypatch.setattr(logprobs, "LAWS_AT_ONCE", 2 * V)
    made = head(trains, **shape)
    torch.manual_seed(1)
    states = torch.randn(M, H, dtype=torch.float64, requires_grad=True)
    other = (torch.randn(M, H, dtype=torch.float64), head(**shape))
    targets = torch.randint(0, V, (M,))
    found = token_quantities(states, made, targets, want, other if want else None, chunk)
    hand = expected(states, made, targets, other)
    assert set(found) == {"logp"} | want
    up = {name: torch.randn(M, dtype=torch.float64) for name in found}
    leaves = [states, *([p for p in (made.weight, made.bias) if p is not None] if trains else [])]
    for name, value in found.items():
        torch.testing.assert_close(value, hand[name], rtol=0, atol=1e-12)
    ours = torch.autograd.grad(sum((up[n] * found[n]).sum() for n in found), leaves)
    theirs = torch.autograd.grad(sum((up[n] * hand[n]).sum() for n in found), leaves)
    for one, two in zip(ours, theirs):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_t40_chunk_size_changes_no_bit_pattern_that_matters_in_bfloat16(chunk, seed):
    torch.manual_seed(seed)
    states = torch.randn(40, 16).bfloat16().requires_grad_()
    weight = torch.randn(300, 16).bfloat16().requires_grad_()
    targets = torch.randint(0, 300, (40,))
    results = []
    for size in (chunk, 40):
        logp = token_quantities(states, Head(weight), targets, chunk=size)["logp"]
        assert logp.dtype == torch.float32
        results.append((logp, *torch.autograd.grad(logp.sum(), [states, weight])))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-5)
    for one, other in zip(results[0][1:], results[1][1:]):
        # Sums run in float32 and are rounded to bfloat16 once.
        torch.testing.assert_close(one.float(), other.float(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("want", [frozenset(), frozenset({"entropy", "kl(ref|policy)"})])
def test_memory_is_bounded_by_a_constant_whatever_the_vocabulary(want):
    """At 64 steps of 200,000 tokens all logits are 51 MB, and the signals would take many times it.

    Held at once, beside weights and states: what the planner counts, which stops growing.
    """
    tokens, steps = 200_000, 64
    made = Head(torch.randn(tokens, H))
    states = torch.randn(steps, H, requires_grad=True)
    other = (torch.randn(steps, H), made)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        found = token_quantities(states, made, torch.arange(steps), want, other if want else None)
        sum(value.sum() for value in found.values()).backward()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    peak = max(accumulate(held))
    assert len(held) > 10
    assert peak < buffers("cpu", tokens, bool(want)) + (1 << 20)
    assert buffers("cpu", 10 * tokens, False) == buffers("cpu", tokens, False) < 4 * steps * tokens


def test_a_law_alone_and_with_signals_has_the_same_log_probability(monkeypatch):
    monkeypatch.setattr(logprobs, "TOKENS", 4)
    torch.manual_seed(0)
    states, weight = torch.randn(M, H), torch.randn(V, H)
    targets = torch.randint(0, V, (M,))
    alone = token_quantities(states, Head(weight), targets)
    among = token_quantities(states, Head(weight), targets, frozenset({"entropy"}))
    torch.testing.assert_close(alone["logp"], among["logp"], rtol=0, atol=1e-6)
    assert torch.equal(
        alone["logp"],
        token_quantities(states.requires_grad_(), Head(weight), targets)["logp"].detach(),
    )


def test_no_steps_give_empty_quantities():
    states = torch.zeros(0, H, dtype=torch.float64, requires_grad=True)
    found = token_quantities(states, head(), torch.zeros(0, dtype=torch.long), frozenset(LAW))
    assert all(x.shape == (0,) for x in found.values())


def test_t25_reference_and_policy_are_compared_at_one_temperature(exact):
    """A policy's divergence from its own constant is exactly zero, both ways."""
    policy = tiny.policy()
    rows = Rows.collate([policy.encode("the cat", " sat"), policy.encode("a", " dog ran")])
    scores = policy.score(rows, AGAINST, against={"ref": policy.freeze()})
    for name in AGAINST:
        torch.testing.assert_close(
            scores.signals[name], torch.zeros(2, rows.mask.shape[1], dtype=torch.float64),
            rtol=0, atol=1e-12,
        )  # fmt: skip
        assert scores.signals[name].requires_grad


def test_signals_are_zero_where_masked_and_have_the_shape_of_the_rows(exact):
    policy = tiny.policy()
    rows = Rows.collate([policy.encode("the cat", ""), policy.encode("the cat", " sat on")])
    scores = policy.score(rows, LAW)
    for value in (scores.logp, *scores.signals.values()):
        assert value.shape == rows.mask.shape
        assert value[~rows.mask].eq(0).all()
        assert value[rows.mask].ne(0).all()
