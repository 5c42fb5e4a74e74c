import gzip
import json

import numpy as np
import pytest
from scipy.optimize import minimize

from polyalign.metrics.length_control import length_controlled, logistic_fit


def test_the_fit_is_scipys_minimum():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(60), rng.normal(size=(60, 2))])
    y = rng.random(60)

    def loss(w):
        z = x @ w
        return np.mean(np.logaddexp(0, z) - y * z) + 0.01 * (w @ w) / 2

    theirs = minimize(loss, np.zeros(3), tol=1e-12)
    np.testing.assert_allclose(logistic_fit(x, y, 0.01), theirs.x, atol=1e-5)


def test_a_judge_of_length_alone_finds_no_difference_once_length_is_controlled():
    rng = np.random.default_rng(1)
    mine, theirs = rng.normal(500, 100, 800), rng.normal(400, 100, 800)
    z = (mine - theirs) / (mine - theirs).std()
    wins = 1 / (1 + np.exp(-2 * np.tanh(z)))
    found = length_controlled(wins, mine, theirs)
    assert found.raw > 0.6
    assert found.win_rate == pytest.approx(0.5, abs=1e-3)
    assert found.length == pytest.approx(2.0, abs=1e-2)


def test_equal_lengths_leave_the_win_rate_as_it_is():
    found = length_controlled([1, 0, 1, 1], [5, 5, 5, 5], [5, 5, 5, 5])
    assert found.win_rate == pytest.approx(0.75, abs=1e-4)


def test_winning_always_stays_finite():
    found = length_controlled([1.0] * 10, range(10), [3.0] * 10)
    assert 0.95 < found.win_rate <= 1.0


@pytest.mark.parametrize("wins", [[], [1.2], [np.nan]])
def test_what_is_no_win_is_refused(wins):
    with pytest.raises(ValueError, match="wins lie in"):
        length_controlled(wins, [1.0] * len(wins), [1.0] * len(wins))


@pytest.mark.data
def test_alpacaeval_2_is_reproduced_offline(shared_data):
    def read(name):
        with gzip.open(shared_data / "alpaca_eval" / f"{name}.jsonl.gz", "rt") as file:
            return [json.loads(line) for line in file]

    asked = {row["id"]: row for row in read("instructions")}
    published = {row["model"]: row for row in read("leaderboard")}
    by_model: dict[str, list[dict]] = {}
    for row in read("outputs"):
        by_model.setdefault(row["model"], []).append(row)
    assert len(by_model) == 12
    for model, rows in by_model.items():
        reference = [asked[row["instruction_id"]] for row in rows]
        found = length_controlled(
            [row["preference"] - 1 for row in rows],
            [len(row["output"]) for row in rows],
            [len(ref["reference_output"]) for ref in reference],
            [ref["difficulty_estimate"] for ref in reference],
        )
        theirs = published[model]
        assert 100 * found.raw == pytest.approx(theirs["win_rate"], abs=0.02)
        # The set's README: instruction difficulties had to be estimated, so about 3 points, and
        # 6 for very short answers.
        short = np.median([len(row["output"]) for row in rows]) < 300
        gap = 100 * found.win_rate - theirs["length_controlled_winrate"]
        assert abs(gap) < (6 if short else 3), (model, gap)
