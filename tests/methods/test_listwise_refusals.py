"""What the listwise methods refuse, and how they say so."""

import numpy as np
import pytest

from polyalign import objective
from polyalign.errors import NumericsError, OptionError
from polyalign.methods import get

# What cards refuse


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
        ("exo", {"form": "pref", "beta_r": 1.0}, "beta_r has no place in form=pref"),
        ("lipo", {"variant": "softmax", "pair_reduction": "mean"}, "pair_reduction has no place"),
        ("lipo", {"variant": "lamda"}, "Did you mean lambda"),
    ],
)
def test_options_without_effect_or_misspelt_are_refused(id, hyper, says):
    with pytest.raises(OptionError, match=says):
        get(id)(**hyper)
