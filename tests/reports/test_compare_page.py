import copy

import pytest

from polyalign.errors import RunError
from polyalign.reports.compare_page import headline, render
from polyalign.reports.compare_pictures import scatter


def row(label, kind, value, verdict="", **more):
    measure = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40}
    if kind != "base":
        gap = {"value": value - 0.5, "low": value - 0.6, "high": value - 0.4}
        measure |= {"difference": gap, "p": 0.01 if verdict else 0.8, "verdict": verdict}
    return {
        "label": label, "kind": kind, "method": label, "note": "", "seeds": [0],
        "measures": {"score": measure, "kl": {"value": 1.0, "low": 0.9, "high": 1.1}},
        "cost": dict.fromkeys(
            ("total", "policy", "reference", "sampled", "judge", "search", "steps"), 10.0
        ),
        "seconds": 61.0, "memory_bytes": 2**30, "settings": {}, "search": [],
        "curve": {"loss": [[1.0, 0.5], [2.0, 0.4]]}, "texts": [], **more,
    }  # fmt: skip


def result(*rows, won=None, tied=()):
    best = max((r for r in rows if r["kind"] == "train"),
               key=lambda r: r["measures"]["score"]["value"])  # fmt: skip
    measure = {"better": "high", "form": "percent", "help": "of answers", "items": 40,
               "prompts": 40, "dropped": 0, "seed_spread": 0.0, "repeated": 1}  # fmt: skip
    return {
        "title": "A comparison", "primary": "score", "budget": 1000, "level": 0.95,
        "measures": {
            "score": measure | {"label": "judge's score"},
            "kl": measure | {"label": "divergence", "better": None, "form": "number"},
        },
        "rows": list(rows), "tests": {"primary": 2, "all": 2}, "pairs": [],
        "detectable": {"to_base": 0.1, "between": 0.1},
        "winner": {"label": won, "best": best["label"], "tied": list(tied)},
        "words": {"differed": ["It differed."], "not": [], "controls": [], "watch": [],
                  "unknown": ["Much."]},
        "setup": {"world": "", "model": "m", "data": ["d"], "eval_data": [], "test": 0.2,
                  "seeds": [0], "judge": "verifier", "prompts": 40, "answers": 1, "best_of": 4,
                  "temperature": 1.0, "max_new_tokens": 8, "train": {}, "search": {}},
        "fingerprints": {}, "made": {}, "texts": True,
    }  # fmt: skip


BASE = row("base", "base", 0.5)


def test_the_headline_names_a_winner_only_where_there_is_one():
    good, other = row("a", "train", 0.9, "better"), row("b", "train", 0.8, "better")
    assert headline(result(BASE, good, other, won="a")) == "a wins on judge's score."
    tied = headline(result(BASE, good, other, tied=["b"]))
    assert tied == "No single winner: 2 methods are better than the base on judge's score."
    none = headline(result(BASE, row("a", "train", 0.55)))
    assert none.startswith("No difference found")


def test_a_difference_inside_noise_bears_no_star():
    page = render(result(BASE, row("quiet", "train", 0.55), row("loud", "train", 0.9, "better")))
    cells = {label: page.split(f"<td>{label}")[1].split("</tr>")[0] for label in ("quiet", "loud")}
    assert "* " not in cells["quiet"]
    assert "* " in cells["loud"]


def test_what_comes_from_data_is_escaped():
    bad = "<script>alert(1)</script>"
    shown = row(bad, "train", 0.6, texts=[{"prompt": bad, "answer": bad}])
    page = render(result(BASE, shown))
    assert "<script" not in page


def test_texts_are_left_out_before_a_page_grows_too_large():
    long = [{"prompt": "p", "answer": "x" * 1_200_000}]
    page = render(result(BASE, row("a", "train", 0.6, texts=long)))
    assert len(page.encode()) < 1_000_000
    assert "xxxx" not in page


def test_a_page_that_cannot_be_small_is_refused():
    huge = copy.deepcopy(BASE)
    huge["note"] = "y" * 1_100_000
    with pytest.raises(RunError, match="MB"):
        render(result(huge, row("a", "train", 0.6)))


def test_points_are_told_by_name_and_need_two():
    assert scatter([("a", 0.0, 1.0, 0)], "x", "y") == ""
    picture = scatter([("a", 0.0, 1.0, 0), ("b & c", 1.0, 2.0, 1)], "x", "y")
    assert "b &amp; c: 1 nats, 2" in picture
