"""What the numeric entry point accepts, and what it says to what it does not."""

import numpy as np
import pytest
import torch

import polyalign
from polyalign import objective
from polyalign.errors import NumericsError, OptionError, PolyalignWarning
from tests.methods.by_hand import close, pairs

A = pairs()
PLAIN = {k: v for k, v in A.items() if k[0] != "n"}


def test_lists_arrays_and_tensors_are_one():
    dpo = objective("dpo")
    lists = {k: v.tolist() for k, v in PLAIN.items()}
    tensors = {k: torch.tensor(v) for k, v in PLAIN.items()}
    assert dpo(PLAIN).value == dpo(lists).value == dpo(tensors).value == dpo(**PLAIN).value


def test_what_is_given_is_left_as_it_was():
    kept = {k: torch.tensor(v) for k, v in PLAIN.items()}
    objective("dpo")(kept)
    assert not any(v.requires_grad for v in kept.values())


def test_sums_and_steps_agree():
    draw = np.random.default_rng(0)
    mask = {"w": draw.random((4, 6)) < 0.7, "l": draw.random((4, 8)) < 0.7}
    steps, sums = {}, {}
    for s, m in mask.items():
        m[:, 0] = True
        logp, ref = -draw.uniform(0.1, 2, m.shape), -draw.uniform(0.1, 2, m.shape)
        steps |= {f"logp_{s}": logp, f"ref_{s}": ref, f"mask_{s}": m}
        sums |= {f"lp_{s}": (logp * m).sum(1), f"rf_{s}": (ref * m).sum(1), f"n_{s}": m.sum(1)}
    for id in ("dpo", "ipo", "simpo", "orpo", "slic", "aot"):
        one, other = objective(id)(steps), objective(id)(sums)
        close(one.value, other.value)
        close(one.per_unit, other.per_unit)
        # A step's gradient is the sum's: every step counts alike in these.
        close(one.gradients["logp_w"], other.gradients["lp_w"][:, None] * mask["w"])


def test_the_value_is_the_weighted_mean_of_the_units_shares():
    weight = np.array([1.0, 2.0, 0.5, 0.0, 3.0])
    for id in ("dpo", "orpo", "simpo"):
        result = objective(id)(A, weight=weight)
        close((result.per_unit * weight).sum() / weight.sum(), result.value)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"lp_w": None}, OptionError, "dpo needs the array 'lp_w'"),
        ({"rf_l": None}, OptionError, "dpo needs the array 'rf_l'"),
        ({"rf_x": [0.0] * 5}, OptionError, "no use for the array 'rf_x'. Did you mean rf_"),
        ({"rf_w": [0.0] * 4}, NumericsError, r"'rf_w' has shape \[4\], not \[5\]"),
        ({"lp_l": [[0.0]] * 5}, NumericsError, r"'lp_l' has shape \[5, 1\]"),
        ({"lp_w": [np.nan] + [0.0] * 4}, NumericsError, r"'lp_w' is not finite at \[0\]"),
        ({"rf_w": [0.0] * 4 + [-np.inf]}, NumericsError, r"'rf_w' is not finite at \[4\]"),
        ({"n_w": [1, 1, 0, 1, 1]}, NumericsError, "Example 2 has length 0 in 'n_w'"),
        ({"n_w": [1, 1, 1.5, 1, 1]}, NumericsError, "length 1.5"),
        ({"lp_w": ["a"] * 5}, NumericsError, "'lp_w' is not a rectangular array of numbers"),
        ({"lp_w": [[1, 2], [3]]}, NumericsError, "'lp_w' is not a rectangular array"),
        ({"weight": [-1.0] * 5}, NumericsError, "'weight' holds negative numbers"),
        ({"logp_w": [[0.0]] * 5}, OptionError, "got both lp_w and logp_w"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_with_its_mend(change, error, says):
    arrays = {k: v for k, v in {**A, **change}.items() if v is not None}
    with pytest.raises(error, match=says) as caught:
        objective("dpo")(arrays)
    assert caught.value.mend


def test_sides_of_different_sizes_are_refused():
    with pytest.raises(NumericsError, match="sides of different sizes"):
        objective("dpo")(dict(PLAIN, lp_l=PLAIN["lp_l"][:3], rf_l=PLAIN["rf_l"][:3]))


def test_a_method_that_averages_asks_for_lengths_and_one_that_sums_does_not():
    with pytest.raises(OptionError, match="simpo depends on the completions"):
        objective("simpo")(lp_w=[-1.0], lp_l=[-2.0])
    with pytest.raises(OptionError, match="ipo depends on the completions"):
        objective("ipo")(PLAIN)
    assert objective("ipo", length_average=False)(PLAIN).value > 0


def test_T14_an_empty_completion_is_refused_by_name():
    with pytest.raises(NumericsError, match="Example 1 has no step that counts in 'logp_w'"):
        objective("simpo")(logp_w=[[-1.0], [-1.0]], mask_w=[[1], [0]], logp_l=[[-1.0], [-1.0]])


def test_a_mask_of_other_numbers_is_refused():
    with pytest.raises(NumericsError, match="'mask_w' holds more than 0 and 1"):
        objective("simpo")(logp_w=[[-1.0]], mask_w=[[-100]], logp_l=[[-1.0]])


def test_identical_sides_are_warned_of():
    with pytest.warns(PolyalignWarning, match="identical in example 1"):
        objective("dpo")(lp_w=[-1.0, -2.0], lp_l=[-3.0, -2.0], rf_w=[-1.0] * 2, rf_l=[-1.0] * 2)


def test_tokens_outside_the_vocabulary_are_refused():
    law = {f"{name}_{s}": np.zeros((1, 2, 3)) for s in "wl" for name in ("logits", "ref_logits")}
    with pytest.raises(NumericsError, match="outside the vocabulary"):
        objective("dpo")(law, tokens_w=[[0, 3]], tokens_l=[[0, 0]])


def test_it_is_public_from_the_first_release():
    assert polyalign.objective is objective
    with pytest.raises(OptionError, match="There is no method 'dpoo'. Did you mean dpo?"):
        objective("dpoo")
