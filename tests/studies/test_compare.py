import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polyalign.errors import OptionError, PolyalignError
from polyalign.studies import compare_cell
from polyalign.studies.compare import compare
from polyalign.studies.compare_setup import Job, jobs_of, parse_budget, parse_search, rows_of
from tests.studies.kit import result_in, small, untimed


@pytest.fixture(scope="module")
def compared(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("compared")
    return folder, compare(["dpo", "kto"], **small(folder, tiny_llama))


def test_the_honest_rows_are_always_there(compared):
    _, result = compared
    assert [row["kind"] for row in result["rows"]] == [
        "base", "best", "train", "train", "train", "shuffled", "again",
    ]  # fmt: skip
    assert [row["label"] for row in result["rows"]][1:] == [
        "best of 2 of the base", "dpo", "kto", "sft on chosen", "dpo, shuffled labels",
        "dpo, again",
    ]  # fmt: skip


def test_no_run_computes_more_than_its_budget_and_all_come_near(compared):
    _, result = compared
    for row in result["rows"]:
        if row["kind"] in ("train", "shuffled", "again"):
            spent = row["cost"]
            parts = spent["policy"] + spent["reference"] + spent["sampled"] + spent["judge"]
            assert spent["total"] == parts
            assert 0.5 * 2000 <= spent["total"] <= 2000


def test_a_reference_is_charged_and_shared(compared):
    _, result = compared
    cost = {row["label"]: row.get("cost") for row in result["rows"]}
    assert cost["dpo"]["reference"] > 0
    assert cost["sft on chosen"]["reference"] == 0


def test_the_base_has_half_of_the_ranking_and_no_divergence(compared):
    _, result = compared
    base = result["rows"][0]["measures"]
    assert base["ranking"]["value"] == 0.5
    assert base["kl"]["value"] == 0.0


def test_methods_that_learn_rank_held_out_pairs(compared):
    _, result = compared
    ranking = {r["label"]: r["measures"].get("ranking", {}).get("value") for r in result["rows"]}
    assert ranking["dpo"] > 0.6


def test_the_page_is_one_file_below_a_megabyte_without_network(compared):
    folder, result = compared
    page = (folder / "out" / "report.html").read_text("utf-8")
    assert len(page.encode()) < 1_000_000
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    for row in result["rows"]:
        assert row["label"] in page
    assert "Say " in page  # prompts are shown


def test_a_finished_comparison_is_not_run_again(compared, monkeypatch, tiny_llama):
    folder, result = compared

    def forbidden(*_):
        raise AssertionError("a cell was computed again")

    monkeypatch.setattr("polyalign.studies.compare.perform", forbidden)
    again = compare(["dpo", "kto"], **small(folder, tiny_llama))
    assert again["rows"] == result["rows"]


def test_without_texts_nothing_that_is_kept_holds_one(tmp_path, tiny_llama):
    compare(["dpo"], **small(tmp_path, tiny_llama, texts=False, budget="1k"))
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            kept = path.read_text("utf-8")
            assert "Say 1" not in kept, path
            assert "good good" not in kept, path


def test_a_policy_that_learned_a_condition_is_measured_with_it(tmp_path, tiny_llama, monkeypatch):
    measured = {}

    def spy(bench, policy, *, base=False):
        measured.setdefault("base" if base else "trained", getattr(policy, "condition", None))
        return measure(bench, policy, base=base)

    measure = compare_cell.measure
    monkeypatch.setattr(compare_cell, "measure", spy)
    options = small(tmp_path, tiny_llama, budget="4k")
    rows = [json.loads(line) for line in Path(options["data"]).read_text("utf-8").splitlines()]
    scored = [r | {"score_chosen": 7.0 + i % 3, "score_rejected": 2.0} for i, r in enumerate(rows)]
    Path(options["data"]).write_text("\n".join(map(json.dumps, scored)), "utf-8")
    compare(["reward-augmented"], **options)
    assert measured["base"] is None
    assert "10" in measured["trained"].told()


def test_a_dry_run_tells_what_is_left_to_compute_and_writes_nothing(compared, tmp_path, tiny_llama):
    folder, _ = compared
    again = compare(["dpo", "kto"], dry_run=True, **small(folder, tiny_llama))
    assert [c["done"] for c in again["cells"]] == [True] * 6
    assert again["tokens"] == 0
    fresh = small(tmp_path, tiny_llama)
    found = compare(["dpo"], dry_run=True, **fresh)
    assert [c["row"] for c in found["cells"] if c["trains"]] == [
        "dpo", "sft on chosen", "dpo, shuffled labels", "dpo, again",
    ]  # fmt: skip
    assert (found["budget"], found["tokens"]) == (2000, 8000)
    assert not fresh["output"].exists()


def test_a_search_is_paid_from_the_budget(tmp_path, tiny_llama):
    result = compare(
        ["dpo"], **small(tmp_path, tiny_llama, search=["lr=0.001,0.01"], budget="6k", judge=None)
    )
    row = next(r for r in result["rows"] if r["label"] == "dpo")
    assert 0 < row["cost"]["search"] <= 3200
    assert row["cost"]["total"] <= 6000
    assert row["settings"]["lr"] in (0.001, 0.01)
    assert len(row["search"][0]) == 2


def test_a_comparison_that_is_killed_goes_on_to_the_same_report(tmp_path, tiny_llama):
    whole = small(tmp_path / "whole", tiny_llama, judge=None, budget="1k")
    compare(["dpo"], **whole)
    arguments = small(tmp_path / "killed", tiny_llama, judge=None, budget="1k")
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys\nfrom polyalign.studies.compare import compare\n"
        "compare(['dpo'], **json.loads(sys.argv[1]))\n"
    )
    text = json.dumps(arguments, default=str)
    cells = Path(arguments["output"]) / "cells"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    for wanted in (2,):
        run = subprocess.Popen([sys.executable, str(script), text], env=environment)
        end = time.monotonic() + 90
        while time.monotonic() < end and run.poll() is None:
            if cells.is_dir() and len(list(cells.glob("*.json"))) >= wanted:
                run.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        run.wait()
        assert len(list(cells.glob("*.json"))) >= wanted
    left = sorted(cells.glob("*.json"))
    left[-1].write_text("{ damaged")  # a file that was being written counts as none
    compare(["dpo"], **arguments)
    one, other = result_in(tmp_path / "whole" / "out"), result_in(tmp_path / "killed" / "out")
    assert untimed(one["rows"]) == untimed(other["rows"])
    assert one["words"] == other["words"]


def test_in_a_world_the_planted_truth_is_found_and_nothing_is_learned_of_shuffled_labels(tmp_path):
    result = compare(["dpo"], world="bandit", output=tmp_path, seeds=2, budget="6k")
    rows = {row["label"]: row for row in result["rows"]}
    assert rows["dpo"]["measures"]["reward"]["verdict"] == "better"
    assert rows["dpo, shuffled labels"]["measures"]["reward"]["verdict"] != "better"
    assert (
        rows["best of 4 of the base"]["measures"]["reward"]["value"]
        > (rows["base"]["measures"]["reward"]["value"])
    )


def test_two_spellings_of_one_method_have_no_winner(tmp_path):
    result = compare(["dpo", "dpo:beta=0.1"], world="bandit", output=tmp_path, budget="2k")
    assert result["winner"]["label"] is None or result["winner"]["label"].startswith("sft")
    pair = next(p for p in result["pairs"] if {p["first"], p["second"]} == {"dpo", "dpo beta=0.1"})
    assert pair["p_holm"] == 1.0


def test_a_cell_depends_on_what_it_was_made_from_and_on_nothing_else(tmp_path, tiny_llama):
    from polyalign.runs.folder import Silent
    from polyalign.studies.compare import declare
    from polyalign.studies.compare_setup import Setup

    def setup(**more):
        given = {"rows": rows_of(["dpo", "kto"]), "seeds": (0, 1), "budget": 1000,
                 "primary": "reward", "world": "bandit"}  # fmt: skip
        return declare(Setup(**(given | more)), Silent())

    one, more, richer = setup(), setup(rows=rows_of(["dpo", "ipo", "kto"])), setup(budget=2000)
    keys = {(j.row.label, j.seed): j.key for j in jobs_of(one)}
    others = {(j.row.label, j.seed): j.key for j in jobs_of(more)}
    assert all(others[name] == key for name, key in keys.items())
    changed = {(j.row.label, j.seed): j.key for j in jobs_of(richer)}
    assert changed["base", 0] == keys["base", 0]
    assert changed["dpo", 0] != keys["dpo", 0]
    assert len(set(keys.values())) == len(keys)
    assert Job(one, one.rows[1], 5).key not in keys.values()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"methods": ["dpoo"]}, "Did you mean dpo"),
        ({"methods": ["dpo", "DPO"]}, "twice"),
        ({"methods": ["dpo:beta"]}, "name=value"),
        ({"methods": ["dpo:beta=-1"]}, "not allowed"),
        ({"methods": []}, "needs a METHOD"),
        ({"world": "bandid"}, "Did you mean"),
        ({"world": "", "model": ""}, "needs model"),
        ({"budget": "many"}, "no number of tokens"),
        ({"seeds": 0}, "at least 1"),
        ({"search": ["lr"]}, "names no values"),
        ({"judge": "verifier"}, "no meaning in a world"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(tmp_path, arguments, said):
    given = {"methods": ["dpo"], "world": "bandit", "output": tmp_path} | arguments
    with pytest.raises(PolyalignError) as error:
        compare(given.pop("methods"), **given)
    assert said in f"{error.value} {error.value.mend}"
    assert not list(tmp_path.glob("cells/*.json"))


def test_a_budget_that_pays_for_no_step_is_told(tmp_path):
    with pytest.raises(OptionError, match="more than the budget"):
        compare(["dpo"], world="bandit", output=tmp_path, budget=10)


def test_budgets_and_searches_are_read_as_people_write_them():
    assert parse_budget("1.5M") == 1_500_000
    assert parse_budget(7) == 7
    assert parse_search(["lr=1e-5,0.1", "loss=cdpo"]) == {"lr": (1e-5, 0.1), "loss": ("cdpo",)}


def test_a_comparison_goes_on_in_another_folder_where_files_lie_elsewhere(
    tmp_path, tiny_llama, monkeypatch
):
    import shutil

    compare(["dpo"], **small(tmp_path / "here", tiny_llama, judge=None, budget="1k"))
    there = small(tmp_path / "there", tiny_llama, judge=None, budget="1k")
    shutil.copytree(tmp_path / "here" / "out", there["output"])
    model = tmp_path / "there" / "model"
    shutil.copytree(tiny_llama, model)

    def forbidden(*_):
        raise AssertionError("a cell was computed again")

    monkeypatch.setattr("polyalign.studies.compare.perform", forbidden)
    compare(["dpo"], **there | {"model": str(model)})


def test_a_comparison_computes_with_the_threads_that_were_asked_for(monkeypatch):
    from polyalign.studies import compare_bench
    from polyalign.studies.compare_setup import Setup

    said: list[int] = []
    monkeypatch.setattr(compare_bench.torch, "set_num_threads", said.append)
    given = {"rows": rows_of(["dpo"]), "seeds": (0,), "budget": 1000, "primary": "ranking"}
    compare_bench.Bench(Setup(**given, train={"threads": 3}))
    compare_bench.Bench(Setup(**given))
    assert said == [3]


def test_seeds_draw_adapters_of_their_own_on_one_base(tmp_path, tiny_llama):
    from polyalign.studies.compare_bench import Bench
    from polyalign.studies.compare_setup import Setup

    given = small(tmp_path, tiny_llama)
    setup = Setup(rows=rows_of(["dpo"]), seeds=(0, 1), budget=1000, primary="ranking",
                  model=given["model"], data=(given["data"],), train={"full": False})  # fmt: skip
    bench = Bench(setup)
    row = setup.rows[1]
    first = {n: x.clone() for n, x in bench.policy(row, 0).tensors().items()}
    base = id(bench.trained.model)
    second = {n: x.clone() for n, x in bench.policy(row, 1).tensors().items()}
    again = bench.policy(row, 0).tensors()
    assert id(bench.trained.model) == base
    assert any(bool((first[n] != second[n]).any()) for n in first if "lora_A" in n)
    assert all(bool((second[n] == 0).all()) for n in second if "lora_B" in n)
    assert all(bool((first[n] == again[n]).all()) for n in first)
