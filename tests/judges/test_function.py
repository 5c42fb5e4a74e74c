from pathlib import Path

import pytest

from polyalign.errors import DataError, OptionError
from polyalign.judges.function import FunctionJudge
from polyalign.judges.load import load_judge

CHAT = ({"role": "user", "content": "Hi"},)
ANSWER = ({"role": "assistant", "content": "Hello you"},)


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "my.py").write_text(text)
    return str(tmp_path / "my.py")


def test_a_function_of_one_answer_gets_text_and_gives_scores(tmp_path):
    path = write(tmp_path, "def reward(prompt, completion):\n    return len(completion.split())\n")
    verdict = load_judge(f"{path}:reward")(["p", CHAT], ["a b c", ANSWER], [{}, {}])
    assert verdict.score.tolist() == [3.0, 2.0]
    assert not verdict.abstained.any()


def test_a_function_of_all_answers_gets_payloads_and_columns_as_trl_passes_them():
    def reward(prompts, completions, answer, **columns):
        assert prompts[1] == [{"role": "user", "content": "Hi"}]
        assert completions[1] == [{"role": "assistant", "content": "Hello you"}]
        assert columns == {"level": [1, 2]}
        return [float(a) for a in answer]

    metas = [{"answer": "4", "level": 1}, {"answer": "5", "level": 2}]
    assert FunctionJudge(reward)(["p", CHAT], ["x", ANSWER], metas).score.tolist() == [4.0, 5.0]


def test_none_abstains():
    verdict = FunctionJudge(lambda completion: None if completion == "?" else 1)(
        ["p", "p"], ["?", "!"], [{}, {}]
    )
    assert verdict.abstained.tolist() == [True, False]


def test_a_pairwise_function_that_likes_the_first_says_nothing_after_swapping():
    judge = FunctionJudge(lambda prompt, first, second: 1.0)
    assert judge.pairwise
    assert judge(["p", "p"], ["a", "b"], [{}, {}]).prefer[0].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_a_pairwise_function_with_an_opinion_keeps_it():
    judge = FunctionJudge(lambda prompt, first, second: float(len(first) > len(second)))
    assert judge(["p"] * 2, ["long", "s"], [{}] * 2).prefer[0, 0, 1] == 1.0


def test_the_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_judge.py").write_text("bonus = 2\n")
    path = write(
        tmp_path,
        "from neighbour_of_judge import bonus\ndef reward(completion):\n    return bonus\n",
    )
    assert load_judge(f"{path}:reward")(["p"], ["c"], [{}]).score.tolist() == [2.0]


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("def reward(completion): return 1", "rewrd", "no function 'rewrd'. Did you mean reward"),
        ("def reward(completion)\n", "reward", r"SyntaxError.*line 1"),
        ("import nonsense_package\n", "reward", r"No module named 'nonsense_package' \(line 1\)"),
        ("def reward(x, y): return 1", "reward", r"takes the parameters: x, y\. Write def reward"),
    ],
)
def test_a_faulty_file_is_told_in_one_sentence(tmp_path, text, name, says):
    path = write(tmp_path, text)
    with pytest.raises(OptionError, match=says):
        load_judge(f"{path}:{name}")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda completion: 1 / 0, r"failed for completion 1: ZeroDivisionError: .*\(line \d+\)"),
        (lambda completion: "good", "returned 'good' for completion 1. Return a finite number"),
        (lambda completion: float("nan"), "returned nan for completion 1"),
        (lambda completions: [1.0], "returned 1 scores for 2 completions"),
        (lambda completions: 1.0, "returned float, not a list"),
        (lambda completion, answr: 1, "column 'answr', which prompt 1 lacks. Did you mean answer"),
        (lambda first, second: 7, "returned 7 for a comparison"),
    ],
)
def test_a_faulty_answer_is_told_in_one_sentence(function, says):
    with pytest.raises(DataError, match=says):
        FunctionJudge(function)(["p", "p"], ["a", "b"], [{"answer": "4"}] * 2)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere.py:reward", "nowhere.py does not exist"),
        ("my.py", "names no function. Write my.py:reward"),
        ("nonsense", "There is no judge 'nonsense'"),
        (3, "cannot be a int"),
    ],
)
def test_what_is_no_judge_is_refused_with_what_is(spec, says):
    with pytest.raises(OptionError, match=says):
        load_judge(spec)
