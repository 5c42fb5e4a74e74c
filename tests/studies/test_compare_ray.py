import os
import signal
import sys
from pathlib import Path

import pytest

from polyalign.errors import OptionError, PolyalignError, RunError
from polyalign.studies import compare_ray
from polyalign.studies.compare import compare
from polyalign.studies.compare_ray import _remote
from tests.studies.kit import small, untimed

REASON = "needs ray: pip install polyalign[scale]"


def test_ray_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match="Ray is not installed"):
        compare(["dpo"], world="bandit", output=tmp_path, ray="local", budget="5k")


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "There is no Ray cluster at '127.0.0.1:1'"), ("auto", "is no address")],
)
def test_a_wrong_address_is_one_sentence_at_once(tmp_path, address, said):
    pytest.importorskip("ray", reason=REASON)
    with pytest.raises(OptionError, match=said):
        compare(["dpo"], world="bandit", output=tmp_path, ray=address, budget="5k")
    assert not list((tmp_path / "cells").glob("*.json"))


@pytest.fixture(scope="module")
def cluster():
    """The address of a head node on this machine, with two cores; it ends with the module."""
    ray = pytest.importorskip("ray", reason=REASON)
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    # One connection for all tests, so that the workers stay warm.
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made.address
    ray.shutdown()
    made.shutdown()


def test_a_comparison_that_was_begun_in_turn_is_finished_on_a_cluster_to_the_same_report(
    tmp_path, cluster
):
    given = {"world": "bandit", "budget": "2k", "output": tmp_path}
    here = compare(["dpo"], **given)
    for path in sorted((tmp_path / "cells").glob("*.json"))[1:]:
        path.unlink()
    there = compare(["dpo"], ray=cluster, **given)
    assert untimed(there["rows"]) == untimed(here["rows"])
    assert there["words"] == here["words"]


def test_a_language_model_is_compared_on_a_cluster_from_relative_paths(
    tmp_path, cluster, tiny_llama, monkeypatch
):
    given = small(tmp_path / "x", tiny_llama, budget="1k", ray=cluster)
    here = compare(["dpo"], **given | {"ray": None, "output": tmp_path / "here"})
    monkeypatch.chdir(tmp_path / "x")
    there = compare(["dpo"], **given | {"data": "pairs.jsonl", "judge": "judge.py:score"})
    assert untimed(there["rows"]) == untimed(here["rows"])


def test_a_cell_whose_worker_is_killed_is_computed_by_another(tmp_path, cluster, monkeypatch):
    given = {"world": "bandit", "budget": "2k"}
    here = compare(["dpo"], output=tmp_path / "here", **given)

    def kill(setup, label, seed, key, folder, threads):
        """The cells as ever, but that the first worker to begin one dies of it."""
        marker = Path(folder) / "killed"
        if not marker.exists():
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return _remote(setup, label, seed, key, folder, threads)

    monkeypatch.setattr(compare_ray, "_remote", kill)
    there = compare(["dpo"], output=tmp_path / "there", ray=cluster, **given)
    assert int((tmp_path / "there" / "killed").read_text()) != os.getpid()
    assert untimed(there["rows"]) == untimed(here["rows"])


def test_a_worker_that_always_dies_is_one_sentence_and_what_is_done_is_kept(
    tmp_path, cluster, monkeypatch
):
    def kill(setup, label, seed, key, folder, threads):
        if label == "dpo":
            os.kill(os.getpid(), signal.SIGKILL)
        return _remote(setup, label, seed, key, folder, threads)

    monkeypatch.setattr(compare_ray, "_remote", kill)
    monkeypatch.setattr(compare_ray, "RETRIES", 0)
    given = {"world": "bandit", "budget": "2k", "output": tmp_path}
    with pytest.raises(RunError, match="dpo, seed 0: its worker died"):
        compare(["dpo"], ray=cluster, **given)
    monkeypatch.undo()
    assert compare(["dpo"], **given)["winner"]["best"]


def test_a_mistake_on_a_worker_is_told_as_here(tmp_path, cluster):
    with pytest.raises(PolyalignError, match="more than the budget"):
        compare(["dpo"], world="bandit", output=tmp_path, budget=10, ray=cluster)
