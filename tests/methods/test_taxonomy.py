"""The taxonomy of the methods, read off their declarations."""

import json

import pytest

from polyalign.methods import catalogue
from polyalign.methods.build_index import headers
from polyalign.methods.taxonomy import BY_TAG, CONCERNS, DIMENSIONS, describe
from tests.cli.kit import run

DESCRIBED = {id: describe(header) for id, header in headers().items()}


@pytest.mark.parametrize("id", DESCRIBED)
def test_every_method_has_tags_a_concern_and_no_dimension_of_its_own(id):
    found = DESCRIBED[id]
    assert headers()[id].tags
    assert set(found) <= set(DIMENSIONS)
    assert found["concern"]
    assert set(found["concern"]) <= set(CONCERNS)
    assert all(values and all(values) for values in found.values())


def test_tags_speak_of_known_concerns():
    assert set(BY_TAG.values()) <= set(CONCERNS)


@pytest.mark.parametrize(
    ("id", "dimension", "values"),
    [
        ("dpo", "reference", ["fixed"]),
        ("dpo", "objective", ["sum log ratio"]),
        ("dpo", "regularisation", ["a reference"]),
        ("ipo", "link", ["squared"]),
        ("simpo", "reference", ["none"]),
        ("simpo", "objective", ["mean logp"]),
        ("simpo", "regularisation", ["nothing"]),
        ("orpo", "regularisation", ["a likelihood term"]),
        ("tdpo", "granularity", ["step"]),
        ("dro", "granularity", ["answer"]),
        ("osp", "data", ["offline"]),
        ("tdpo", "regularisation", ["a reference", "a divergence"]),
        ("kto", "feedback", ["binary"]),
        ("kto", "coupling", ["statistics"]),
        ("aot", "coupling", ["batch"]),
        ("grpo", "data", ["online"]),
        ("sac", "data", ["environment"]),
        ("sera", "data", ["self-generated"]),
        ("tr-dpo", "reference", ["moving"]),
        ("sdpo", "reference", ["by stage"]),
        ("sdpo", "stages", ["several"]),
        ("spo-sequential", "margin", ["constant", "reference gap"]),
        ("modpo", "margin", ["sum"]),
        ("likelihood-overopt", "kind", ["measure"]),
        ("likelihood-overopt", "concern", ["measurement"]),
    ],
)
def test_what_a_declaration_says_is_read_off_it(id, dimension, values):
    assert DESCRIBED[id][dimension] == values


@pytest.mark.parametrize(
    ("id", "concern"),
    [
        ("simpo", "reward-hacking"),
        ("simpo", "kl-and-reference"),
        ("ipo", "implicit-reward"),
        ("grpo", "online"),
        ("kto", "feedback"),
        ("modpo", "alignment-tax"),
    ],
)
def test_the_survey_s_questions_are_answered(id, concern):
    assert concern in DESCRIBED[id]["concern"]


def ids(*argv):
    answer = run("--quiet", "methods", *argv, "--json")
    assert answer.status == 0, answer
    return json.loads(answer.out)


def test_only_filters_by_a_value_and_by_several():
    free = {entry["id"] for entry in ids("--only", "reference=none")}
    assert {"simpo", "orpo", "sft"} <= free
    assert "dpo" not in free
    both = {e["id"] for e in ids("--only", "reference=none", "--only", "feedback=pairs")}
    assert both == {id for id in free if catalogue()[id]["feedback"] == "pairs"}
    assert {e["id"] for e in ids("--only", "tag=baseline")} == {
        e["id"] for e in ids("--tag", "baseline")
    }


def test_by_groups_all_methods_under_the_values_of_a_dimension():
    groups = ids("--by", "data")
    listed = [entry["id"] for group in groups.values() for entry in group]
    assert set(groups) >= {"offline", "online", "environment"}
    trained = {id for id, entry in catalogue().items() if entry["kind"] == "train"}
    assert sorted(listed) == sorted(trained)
    several = ids("--by", "concern")
    assert "simpo" in [e["id"] for e in several["reward-hacking"]]
    assert "simpo" in [e["id"] for e in several["kl-and-reference"]]


def test_a_grouped_table_says_what_its_groups_mean():
    answer = run("--quiet", "methods", "--by", "concern")
    assert answer.status == 0
    for name, meaning in CONCERNS.items():
        assert f"{name} ({meaning})" in answer.err + answer.out


@pytest.mark.parametrize(
    ("argv", "mend"),
    [
        (("--by", "referenc"), "Did you mean reference?"),
        (("--only", "reference=nne"), "Did you mean none?"),
        (("--only", "referenc=none"), "Did you mean reference?"),
        (("--only", "reference"), "is not name=value"),
    ],
)
def test_an_unknown_dimension_or_value_gets_the_nearest(argv, mend):
    answer = run("methods", *argv)
    assert answer.status == 2
    assert mend in answer.err


def test_the_survey_s_name_leads_to_the_taxonomy():
    answer = run("train", "dpo-survey")
    assert answer.status == 2
    assert "polyalign methods --by concern" in answer.err
