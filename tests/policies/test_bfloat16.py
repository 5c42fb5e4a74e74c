"""Which numbers are held and computed in which dtype when a policy computes in bfloat16."""

from __future__ import annotations

import pytest
import torch

from polyalign.optimizers.build import build
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Sampling
from polyalign.types import Row, Rows

BF16, F32 = torch.bfloat16, torch.float32


def rows(seed: int = 0) -> Rows:
    """Two answers to one prompt and one to another."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (40,), generator=made).tolist()
    cut = (((*ids[:9],), ids[9:15]), ((*ids[:9],), ids[15:24]), ((*ids[24:30],), ids[30:40]))
    made_rows = [Row(c, torch.tensor(s), torch.ones(len(s), dtype=torch.bool)) for c, s in cut]
    return Rows.collate(made_rows)


@pytest.fixture
def adapted(tiny_llama) -> LanguagePolicy:
    return LanguagePolicy.from_pretrained(tiny_llama, lora=LoraSpec(r=4), dtype="bfloat16")


def test_a_base_in_bfloat16_has_adapters_gradients_and_moments_in_float32(adapted):
    own = {id(p) for p in adapted.trainable().values()}
    assert {p.dtype for p in adapted.model.parameters() if id(p) not in own} == {BF16}
    assert {p.dtype for p in adapted.trainable().values()} == {F32}
    assert adapted.trunk.autocast is None  # nothing is cast behind anybody's back
    optimizer = build("adamw", adapted.trainable(), lr=1e-2)
    scored = adapted.score(rows(), frozenset({"entropy"}))
    assert scored.logp.dtype == scored.signals["entropy"].dtype == F32
    scored.logp.sum().backward()
    optimizer.step()
    assert {p.grad.dtype for p in adapted.trainable().values()} == {F32}
    moments = [m for state in optimizer.state.values() for n, m in state.items() if n != "step"]
    assert moments
    assert {m.dtype for m in moments} == {F32}


def test_all_weights_are_held_in_float32_and_used_in_bfloat16(tiny_llama):
    policy = LanguagePolicy.from_pretrained(tiny_llama, dtype="bfloat16")
    assert {p.dtype for p in policy.trainable().values()} == {F32}
    assert policy.trunk.dtype == BF16
    states, _ = policy.states(rows())
    assert states.requires_grad
    scored = policy.score(rows())
    assert scored.logp.dtype == F32
    scored.logp.sum().backward()
    assert {p.grad.dtype for p in policy.trainable().values()} == {F32}


@pytest.mark.parametrize("lora", [LoraSpec(r=4), None])
def test_its_log_probabilities_are_those_of_float32_up_to_rounding(tiny_llama, lora):
    narrow, wide = (
        LanguagePolicy.from_pretrained(tiny_llama, lora=lora, dtype=dtype)
        for dtype in ("bfloat16", "float32")
    )
    with torch.no_grad():
        one, other = narrow.score(rows()).logp, wide.score(rows()).logp
    assert float((one - other).abs().max()) < 0.05
    with torch.no_grad():
        assert torch.equal(narrow.freeze().score(rows()).logp, one)


def test_samples_come_with_the_law_that_drew_them_in_float32(adapted):
    how = Sampling(max_steps=5)
    drawn = adapted.sample(["Say something", "And now"], 2, how, [1, 2, 3, 4])
    assert drawn.old.dtype == F32
    again = adapted.score(Rows.collate(drawn.rows)).logp.detach()
    mask = Rows.collate(drawn.rows).mask
    assert float((again - drawn.old)[mask].abs().max()) < 0.05
