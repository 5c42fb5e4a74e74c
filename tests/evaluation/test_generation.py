import itertools

import numpy as np
import pytest
import torch

from polyalign.errors import DataError
from polyalign.evaluation.generation import Judged, contest, draw, judged, verified, win_rate
from polyalign.feedback.records import Prompt
from polyalign.judges.function import FunctionJudge
from polyalign.protocols import Sampling, Verdict
from tests.evaluation.fake import Letters

PROMPTS = [Prompt(key=str(i), prompt=f"p{i}", meta={"kind": "ab"[i % 2]}) for i in range(40)]
starts_with_a = FunctionJudge(lambda completion: float(completion.startswith("a")))


def test_an_answer_does_not_depend_on_what_else_is_asked():
    policy = Letters(end=2)
    many = draw(policy, PROMPTS, 3, seed=1)
    few = draw(policy, PROMPTS[7:8], 2, seed=1)
    assert few.payloads == many.payloads[21:23]
    assert draw(policy, PROMPTS, 3, seed=2).payloads != many.payloads


def test_success_covers_the_exact_probability_in_all_and_by_kind():
    policy = Letters(a=3)
    found = verified(policy, PROMPTS, starts_with_a, 5, Sampling(max_steps=20)).to_json()
    exact = 3 / 11
    assert found["success"]["low"] < exact < found["success"]["high"]
    assert found["success"]["clusters"] == 40
    assert set(found["by_kind"]) == {"a", "b"}
    assert found["by_kind"]["a"]["n"] == 100


def test_the_judge_sees_columns_and_whether_the_answer_ended():
    seen = []
    judge = FunctionJudge(lambda completion, meta: seen.append(meta) or 1.0)
    verified(Letters(end=1e-9), PROMPTS[:1], judge, 1, Sampling(max_steps=3))
    assert seen == [{"kind": "a", "finished": False}]


def test_scores_that_are_no_successes_are_called_scores():
    judge = FunctionJudge(lambda completion: len(completion))
    found = verified(Letters(), PROMPTS, judge).to_json()
    assert "success" not in found
    assert found["score"]["n"] == 40
    assert found["length_correlation"]["value"] == pytest.approx(1.0, abs=0.05)


def test_abstentions_are_counted_and_left_out():
    judge = FunctionJudge(lambda completion, kind: None if kind == "a" else 1.0)
    found = verified(Letters(), PROMPTS, judge, 2).to_json()
    assert found["abstained"] == 40
    assert found["success"]["n"] == 40


def scored(grid):
    grid = np.asarray(grid, dtype=float)
    samples = draw(Letters(), PROMPTS[: len(grid)], grid.shape[1])
    return Judged(samples, grid.ravel())


def test_best_of_n_is_the_mean_maximum_over_all_subsets():
    row = [0.3, 0.9, 0.1, 0.5]
    for n in range(1, 5):
        expected = np.mean([max(c) for c in itertools.combinations(row, n)])
        assert scored([row]).best_of(n)[0] == pytest.approx(expected)


def test_best_of_more_than_were_drawn_is_refused():
    with pytest.raises(ValueError, match="best of 3 needs at least 3"):
        scored([[0.0, 1.0]]).best_of(3)


def test_an_answer_that_was_not_judged_is_never_the_best():
    assert scored([[np.nan, 1.0]]).best_of(2)[0] == 1.0


def test_faults_are_counted_with_the_text_not_the_end_token():
    samples = draw(Letters(end=1e9), PROMPTS[:3])
    assert samples.to_json()["faults"] == {"empty": 3, "loop": 0, "unfinished": 0}
    looping = draw(Letters(a=1e9, end=1e-9), PROMPTS[:3], how=Sampling(max_steps=30))
    assert looping.to_json()["faults"]["loop"] == 3


def test_the_win_rate_against_itself_is_one_half():
    found = win_rate(Letters(a=2), Letters(a=2), PROMPTS, starts_with_a).to_json()
    assert found["win_rate"]["value"] == 0.5
    assert found["ties"] == 40


def test_win_rates_of_the_two_sides_add_to_one():
    one, two = draw(Letters(a=4), PROMPTS, 2), draw(Letters(), PROMPTS, 2)
    a, b = contest(one, two, starts_with_a), contest(two, one, starts_with_a)
    assert np.allclose(a.wins + b.wins, 1)
    assert a.to_json()["win_rate"]["value"] > 0.5


class FirstLover:
    """A comparing judge with nothing but a love of the first position."""

    pairwise = True

    def __call__(self, prompts, completions, meta):
        prefer = torch.full((len(completions) // 2, 2, 2), 0.5)
        prefer[:, 0, 1], prefer[:, 1, 0] = 0.9, 0.1
        return Verdict(prefer=prefer)


def test_a_love_of_the_first_position_wins_nothing():
    found = win_rate(Letters(a=4), Letters(), PROMPTS, FirstLover()).to_json()
    assert found["win_rate"]["value"] == pytest.approx(0.5)


def test_a_comparing_function_decides_a_contest():
    judge = FunctionJudge(lambda first, second: float(len(first) > len(second)))
    found = win_rate(Letters(end=0.3), Letters(end=5), PROMPTS, judge).to_json()
    assert found["win_rate"]["low"] > 0.5


def test_a_comparing_judge_is_refused_where_scores_are_needed():
    samples = draw(Letters(), PROMPTS[:2])
    with pytest.raises(DataError, match="compares answers, and this needs a score"):
        judged(samples, FunctionJudge(lambda first, second: 0.5))


def test_the_table_keeps_what_was_answered():
    table = verified(Letters(), PROMPTS[:2], starts_with_a, 2).table()
    assert [row["key"] for row in table] == ["0", "0", "1", "1"]
    assert all(row["score"] == float(row["answer"].startswith("a")) for row in table)
