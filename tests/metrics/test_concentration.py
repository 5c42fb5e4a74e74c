"""Mass and entropy of a law's likeliest choices, against numpy and the closed cases."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyalign.errors import OptionError
from polyalign.metrics.concentration import concentration
from polyalign.policies.language.signals import quantities


def law(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def by_hand(logits, k):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = np.sort(p / p.sum(-1, keepdims=True), -1)[..., ::-1][..., :k]
    mass, entropy = p.sum(-1), -(p * np.log(p)).sum(-1)
    q = p / mass[..., None]
    return mass, entropy, -(q * np.log(q)).sum(-1)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_mass_entropy_and_spread_are_the_cards(k):
    logits = law(5, 7, 12)
    found = concentration(logits.log_softmax(-1), k)
    for got, expected in zip(found, by_hand(logits.numpy(), k), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_a_uniform_law_has_its_closed_values_and_a_certain_one_no_entropy():
    v, k = 20, 5
    uniform = concentration(torch.zeros(v, dtype=torch.float64).log_softmax(-1), k)
    np.testing.assert_allclose(uniform, [k / v, k / v * np.log(v), np.log(k)], rtol=1e-12)
    certain = torch.full((v,), -torch.inf, dtype=torch.float64)
    certain[3] = 0.0
    np.testing.assert_allclose(concentration(certain, k), [1.0, 0.0, 0.0], atol=1e-15)


def test_all_choices_give_the_whole_entropy():
    table = law(4, 9).log_softmax(-1)
    found = concentration(table, 9)
    whole = -(table.exp() * table).sum(-1)
    np.testing.assert_allclose(found.mass, 1.0)
    np.testing.assert_allclose(found.entropy, whole)
    np.testing.assert_allclose(found.spread, whole)


@given(st.permutations(range(8)), st.floats(-50, 50))
def test_neither_the_order_of_the_vocabulary_nor_a_constant_matters(order, constant):
    logits = law(8)
    one = concentration(logits.log_softmax(-1), 3)
    other = concentration((logits[list(order)] + constant).log_softmax(-1), 3)
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_spreading_beyond_the_likeliest_lowers_mass_and_raw_entropy_together():
    def at(temperature):
        logits = torch.zeros(1000, dtype=torch.float64)
        logits[:5] = 8.0
        return concentration((logits / temperature).log_softmax(-1), 5)

    sharp, flat = at(1.0), at(2.0)
    assert flat.mass < sharp.mass
    assert flat.entropy < sharp.entropy
    assert flat.spread >= sharp.spread - 1e-12


@pytest.mark.parametrize("k", [0, 9])
def test_k_outside_the_vocabulary_is_refused(k):
    with pytest.raises(OptionError, match="Use k from 1 to 8"):
        concentration(law(8).log_softmax(-1), k)


def test_a_language_model_s_signals_are_these_numbers():
    logits = law(6, 11)
    want = frozenset({"top_mass@4", "top_entropy@4", "top_mass"})
    found = quantities(logits, torch.zeros(6, dtype=torch.long), want)
    mass, entropy, _ = by_hand(logits.numpy(), 4)
    np.testing.assert_allclose(found["top_mass@4"], mass)
    np.testing.assert_allclose(found["top_entropy@4"], entropy)
    np.testing.assert_allclose(found["top_mass"], by_hand(logits.numpy(), 10)[0])
