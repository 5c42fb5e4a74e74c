from polyalign.studies import code
from polyalign.studies.code import code_hash, declaration, reached


def modules(*roots: str, without: tuple[str, ...] = ()) -> set[str]:
    return {module for module, _ in reached(*roots, without=without)}


def test_a_method_depends_on_its_objective_and_not_on_its_family():
    root = declaration("direct_pairwise", "dpo")
    assert root == "polyalign.methods.direct_pairwise:dpo"
    found = reached(root)
    assert ("polyalign.objectives.pairwise", "Pairwise") in found
    assert ("polyalign.methods.direct_pairwise", "ipo") not in found
    assert not [place for place in found if place[0] == "polyalign.objectives.transport"]


def test_a_method_that_is_made_of_another_depends_on_it():
    found = reached(declaration("reference_schedules", "tr-dpo"))
    assert ("polyalign.methods.direct_pairwise", "ipo") in found


def test_how_reports_look_and_commands_read_changes_no_hash():
    found = modules("polyalign.studies.compare_cell:run_cell")
    assert not [name for name in found if name.split(".")[1] in ("reports", "cli")]
    assert "polyalign.engine.step" in found
    assert "polyalign.policies.counted" in found
    # Methods are found by their names, which whoever asks has to give.
    assert not [name for name in found if name.startswith("polyalign.methods")]


def test_an_exact_world_does_not_depend_on_language_models():
    from polyalign.studies.claims import LANGUAGE

    root = "polyalign.studies.claims_runs:figure"
    assert [n for n in modules(root) if n.startswith("polyalign.policies.language")]
    found = modules(root, without=LANGUAGE)
    assert not [n for n in found if n.startswith("polyalign.policies.language")]
    assert "polyalign.policies.tabular" in found


def test_a_lazily_offered_name_is_followed_to_its_home():
    assert code._home("polyalign.feedback", "convert") == (
        "polyalign.feedback.conversion", "convert",
    )  # fmt: skip
    assert code._home("polyalign.loops", "epochs") == ("polyalign.loops.epochs", "*")


PLAIN = "def f(x):\n    return g(x) + 1\n\ndef g(x):\n    return x\n\ndef other(x):\n    return x\n"


def hashed(file, text: str, root: str = ":f") -> str:
    file.write_text(text)
    for cached in (code._module, code._text, code._named, code._offered):
        cached.cache_clear()
    return code_hash(f"{file}{root}")


def test_comments_docstrings_and_what_is_not_called_are_no_change(tmp_path):
    file = tmp_path / "mine.py"
    plain = hashed(file, PLAIN)
    assert hashed(file, PLAIN.replace("(x):", '(x):\n    """Adds."""\n    # one')) == plain
    changed = PLAIN.replace("other(x):\n    return x", "other(x):\n    return 2")
    assert hashed(file, changed) == plain
    assert hashed(file, PLAIN + "\ndef new():\n    return f(1)\n") == plain


def test_a_changed_definition_and_what_it_calls_are(tmp_path):
    file = tmp_path / "mine.py"
    plain = hashed(file, PLAIN)
    assert hashed(file, PLAIN.replace("+ 1", "+ 2")) != plain
    assert hashed(file, PLAIN.replace("return x\n\ndef other", "return -x\n\ndef other")) != plain
    whole = hashed(file, PLAIN, root="")
    assert hashed(file, PLAIN + "\ndef new():\n    return f(1)\n", root="") != whole


def test_constants_and_loose_statements_count(tmp_path):
    file = tmp_path / "mine.py"
    text = "TABLE = {1: 2}\nTABLE[3] = 4\ndef f(x):\n    return TABLE[x]\n"
    plain = hashed(file, text)
    assert hashed(file, text.replace("1: 2", "1: 3")) != plain
    assert hashed(file, text.replace("= 4", "= 5")) != plain
