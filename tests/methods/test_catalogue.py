"""How methods are found by name, from the index, from files and from other packages."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

import polyalign.methods as methods
from polyalign.errors import OptionError
from polyalign.methods import (
    AMBIGUOUS,
    KINDS,
    OPTIONS,
    build_index,
    catalogue,
    fold,
    get,
    measurement,
)
from polyalign.recipe import Declaration, Schedule

IDS = [
    "aot",
    "dpo",
    "grpo",
    "iopo",
    "ipo",
    "kto",
    "oreo",
    "orpo",
    "sac",
    "sera",
    "sft",
    "simpo",
    "slic",
    "tdpo",
]


def test_the_index_is_current():
    assert build_index.INDEX.read_text(encoding="utf-8") == build_index.text(), (
        "run python -m polyalign.methods.build_index"
    )


def test_the_catalogue_loads_neither_torch_nor_a_declaration():
    code = (
        "import sys; from polyalign.methods import catalogue; found = catalogue(); "
        "assert 'simpo' in found; "
        "assert not {'torch', 'pydantic', 'polyalign.methods.direct_pairwise'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_every_method_of_the_first_release_is_there():
    assert set(IDS) <= set(catalogue())


@pytest.mark.parametrize(("id", "declared"), build_index.headers().items())
def test_every_method_says_what_people_look_for(id, declared):
    assert declared.title.endswith(".")
    assert len(declared.title) <= 100
    for word in ("Formula:", "When:", "When not:", "Limits:", "Source:"):
        assert word in declared.doc, (id, word)
    entry = build_index.entry(declared)
    assert all("default" in hyper for hyper in entry["hyper"].values())
    assert entry["feedback"]
    assert entry["family"]
    assert entry["kind"] in KINDS


def test_the_index_tells_bounds_and_needs():
    simpo, kto = catalogue()["simpo"], catalogue()["kto"]
    assert simpo["hyper"]["beta"] == {"default": 2.5, "exclusiveMinimum": 0, "type": "number"}
    assert simpo["needs"]["references"] == []
    assert kto["needs"]["statistics"] == ["mismatched"]
    assert kto["needs"]["couples"] == "statistics"


@pytest.mark.parametrize(
    ("name", "id"),
    [("simpo", "simpo"), ("SimPO", "simpo"), ("SIM_PO", "simpo"), ("SLiC-HF", "slic")],
)
def test_case_hyphens_and_underscores_do_not_matter(name, id):
    assert get(name).id == id


@pytest.mark.parametrize(
    "name", ["SDPO", "rdpo", "spo", "dapo", "aot_pair", "R_DPO".replace("_", "")]
)
def test_names_that_mean_several_methods_list_them_and_are_not_guessed(name):
    with pytest.raises(OptionError, match="means several methods") as caught:
        get(name)
    assert all(candidate in str(caught.value) for candidate in AMBIGUOUS[fold(name)])


@pytest.mark.parametrize("name", ["cdpo", "gspo", "Dr-GRPO", "cispo", "RWR"])
def test_a_methods_option_taken_for_a_method_is_told_how_to_ask_for_it(name):
    with pytest.raises(OptionError, match="at certain options"):
        get(name)


@pytest.mark.parametrize(("base", "options"), OPTIONS.values())
def test_the_options_that_are_told_are_valid(base, options):
    declared = get(base)
    declared(**dict(pair.split("=") for pair in options.split()))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(OptionError, match="There is no method 'simpoo'. Did you mean simpo?"):
        get("simpoo")


def test_a_method_of_another_kind_names_the_right_command():
    with pytest.raises(OptionError, match="does not measure: it trains a policy") as caught:
        measurement("dpo")
    assert "Use: polyalign train dpo --model MODEL" in str(caught.value)
    with pytest.raises(OptionError, match="does not train: it measures a policy") as caught:
        get("likelihood-overopt")
    use = "Use: polyalign evaluate RUN_OR_MODEL --data FILE --with likelihood-overopt"
    assert use in str(caught.value)


def test_an_exact_id_is_meant_though_the_name_is_said_of_others_too():
    assert get("sdpo").id == "sdpo"


FILE = '''
from polyalign import method
from polyalign.feedback.records import Pair
from polyalign.objectives import Pairwise, Squared, SumLogp
from polyalign.recipe import Offline, Positive

@method(id="mine", feedback=Pair)
def mine(beta: Positive = 1.0):
    """A squared loss."""
    return Offline(Pairwise(SumLogp(), scale=beta, link=Squared()))

other = 3
'''


def test_a_method_may_live_in_a_users_file(tmp_path):
    path = tmp_path / "my_method.py"
    path.write_text(FILE)
    found = get(f"{path}:mine")
    assert isinstance(found, Declaration)
    assert found.id == "mine"
    assert found.feedback.__name__ == "Pair"
    with pytest.raises(OptionError, match="has no 'mien'. Did you mean mine?"):
        get(f"{path}:mien")
    with pytest.raises(OptionError, match="is a int and no method"):
        get(f"{path}:other")
    with pytest.raises(OptionError, match="There is no file"):
        get(f"{tmp_path}/absent.py:mine")
    path.write_text("import nonsense_of_mine")
    with pytest.raises(OptionError, match="could not be loaded: ModuleNotFoundError"):
        get(f"{path}:mine")


def test_methods_of_other_packages_are_listed_without_being_loaded(monkeypatch):
    point = EntryPoint("theirs", "polyalign.methods.supervised:sft", methods.GROUP)
    broken = EntryPoint("broken", "no_such_package:thing", methods.GROUP)
    monkeypatch.setattr(methods, "entry_points", lambda group: [point, broken])
    assert {"theirs", "broken"} <= set(catalogue())
    assert get("theirs").id == "sft"


def test_hyper_parameters_are_checked_against_their_types():
    with pytest.raises(OptionError, match="simpo has no option 'bta'. Did you mean beta?"):
        get("simpo")(bta=1)
    with pytest.raises(OptionError, match="beta=0.0 is not allowed"):
        get("simpo")(beta=0.0)
    assert get("dpo")(beta="0.5->0.1").hyper["beta"] == Schedule(0.5, 0.1)
    assert get("dpo")(beta="0.5->0.1").stages[0].updates[0].objective.scale == 0.5


@pytest.mark.parametrize("id", ["aot", "dpo", "ipo", "kto", "simpo", "tdpo", "orpo", "grpo"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_coefficients_out_of_range_are_refused(id, value):
    name = {"ipo": "tau", "orpo": "lam"}.get(id, "beta")
    with pytest.raises(OptionError, match=f"{id}: {name}="):
        get(id)(**{name: value})
