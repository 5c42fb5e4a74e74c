"""What the listwise methods refuse, and how they say so."""

import numpy as np
import pytest

from polyalign import objective
from polyalign.errors import NumericsError, OptionError
from polyalign.methods import get
from tests.methods.lists_by_hand import (
    LENGTHS,
    RATIO,
    K,
)

# What cards refuse


@pytest.mark.parametrize("id", ["infonca", "nca", "exo", "lipo", "pro", "rrhf", "brain"])
def test_a_list_of_one_is_refused(id):
    arrays = {k: v.copy() for k, v in (LENGTHS if id in ("pro", "rrhf") else RATIO).items()}
    arrays["lp"][1] = [-1.0] + [np.nan] * (K - 1)
    with pytest.raises(NumericsError, match="Example 1 has fewer than two answers"):
        objective(id)(arrays)


@pytest.mark.parametrize("id", ["infonca", "nca", "exo", "lipo", "pro", "rrhf", "brain"])
def test_scores_are_asked_for_and_must_be_finite(id):
    arrays = dict(LENGTHS if id in ("pro", "rrhf") else RATIO)
    broken = dict(arrays, r=np.where(np.arange(K) == 1, np.inf, arrays["r"]))
    with pytest.raises(NumericsError, match=r"'reward' is not finite at \[0, 1\]"):
        objective(id)(broken)
    arrays.pop("r")
    with pytest.raises(OptionError, match="needs the array 'reward'"):
        objective(id)(arrays)


@pytest.mark.parametrize(
    ("id", "change", "error", "says"),
    [
        ("infonca", {"lp": [[np.inf, -1.0]]}, NumericsError, r"'lp' is not finite at \[0, 0\]"),
        ("infonca", {"rf": [[np.nan, -1.0]]}, NumericsError, r"'rf' is not finite at \[0, 0\]"),
        ("infonca", {"rf": [[-1.0]]}, NumericsError, r"'rf' has shape \[1, 1\], not \[1, 2\]"),
        ("infonca", {"lp": [-1.0]}, NumericsError, r"'lp' has shape \[1\], and \[U, K\]"),
        ("infonca", {"rf": None}, OptionError, "needs the array 'rf'"),
        ("infonca", {"lp": None}, OptionError, "needs the array 'lp'"),
        ("infonca", {"r": [1.0, 2.0]}, NumericsError, r"'reward' has shape \[2\]"),
        ("infonca", {"mask": [[1, 2]]}, NumericsError, "'mask' holds more than 0 and 1"),
        (
            "rrhf",
            {"rf": None, "r": [[0, 1]]},
            OptionError,
            "rrhf depends on the completions' lengths",
        ),
        ("rrhf", {"rf": None, "n": [[1, 0]]}, NumericsError, "length 0"),
    ],
)
def test_a_mistake_in_lists_is_told_in_one_sentence_with_its_mend(id, change, error, says):
    arrays = {"lp": [[-1.0, -2.0]], "rf": [[-1.0, -1.0]], "r": [[1.0, 0.0]], **change}
    with pytest.raises(error, match=says) as caught:
        objective(id)({k: v for k, v in arrays.items() if v is not None})
    assert caught.value.mend


def test_lipos_labels_must_suit_its_variant():
    def run(variant, r):
        objective("lipo", variant=variant)(lp=[[-1.0, -2.0]], rf=[[-1.0, -1.0]], r=[r])

    with pytest.raises(NumericsError, match=r"'reward' holds numbers outside \[0, 1\]"):
        run("point-sigmoid", [2.0, 0.0])
    with pytest.raises(NumericsError, match=r"'reward' holds numbers outside \[0, inf\]"):
        run("softmax", [1.0, -0.5])
    with pytest.raises(NumericsError, match="labels of example 0 sum to 0"):
        run("softmax", [0.0, 0.0])


@pytest.mark.parametrize(
    ("id", "hyper", "says"),
    [
        ("infonca", {"beta": 0}, "infonca: beta="),
        ("infonca", {"T": 0}, "infonca: T="),
        ("nca", {"T": -1}, "nca: T="),
        ("exo", {"eps": 0, "form": "pref"}, "exo: eps="),
        ("exo", {"eps": 0.5, "form": "pref"}, "exo: eps="),
        ("exo", {"beta_r": 0}, "exo: beta_r="),
        ("exo", {"eps": 0.1}, "eps has no place in form=rw"),
        ("exo", {"form": "pref", "beta_r": 1.0}, "beta_r has no place in form=pref"),
        ("lipo", {"variant": "softmax", "pair_reduction": "mean"}, "pair_reduction has no place"),
        ("lipo", {"variant": "lamda"}, "Did you mean lambda"),
        ("pro", {"sft_weight": -1}, "pro: sft_weight="),
        ("rrhf", {"rrhf_weight": -1}, "rrhf: rrhf_weight="),
        ("brain", {"g": 0}, "brain: g="),
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(id, hyper, says):
    with pytest.raises(OptionError, match=says):
        get(id)(**hyper)
