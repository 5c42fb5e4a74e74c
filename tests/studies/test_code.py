from polyalign.studies import code
from polyalign.studies.code import code_hash


def reached(*modules: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += code._imported(name)
    return seen


def test_a_method_depends_on_its_objective_and_not_on_other_families():
    found = reached("polyalign.methods.supervised")
    assert "polyalign.objectives.likelihood" in found
    assert "polyalign.objectives.transport" not in found
    assert "polyalign.methods.transport" not in found


def test_how_reports_look_and_commands_read_changes_no_hash():
    found = reached("polyalign.studies.compare_cell", "polyalign.methods.direct_pairwise")
    assert not [name for name in found if name.split(".")[1] in ("reports", "cli")]
    assert "polyalign.engine.step" in found
    assert "polyalign.policies.counted" in found


def test_a_lazily_offered_name_is_followed_to_its_home():
    assert code._home("polyalign.feedback", "convert") == "polyalign.feedback.conversion"


def test_comments_and_docstrings_are_no_change_and_code_is(tmp_path):
    file = tmp_path / "mine.py"

    def hashed(text: str) -> str:
        file.write_text(text)
        code._tree.cache_clear()
        code._text.cache_clear()
        code._imported.cache_clear()
        return code_hash(str(file))

    plain = hashed("def f(x):\n    return x + 1\n")
    assert hashed('def f(x):\n    """Adds."""\n    # one\n    return x + 1\n') == plain
    assert hashed("def f(x):\n    return x + 2\n") != plain
