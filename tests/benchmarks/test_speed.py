"""The speed benchmark: what it counts, and what it prints of what was measured."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benchmarks import run, tables, work

CONFIG = SimpleNamespace(
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    vocab_size=50,
)


def test_the_floor_counts_every_product_of_a_pass_once():
    """Counted weight by weight and pair of places by pair of places."""
    weights = 3 * (16 * 16 + 16 * 8 + 16 * 8 + 16 * 16 + 3 * 16 * 24)
    # A context of 3 and answers of 2 and 4 steps, whose last step is not computed.
    sees = [1, 2, 3] + [4] + [4, 5, 6]
    layers, head = work.forward_operations(CONFIG, 3, [2, 4])
    assert layers == 2 * weights * len(sees) + 3 * 2 * 2 * 16 * sum(sees)
    assert head == 2 * 16 * 50 * (2 + 4)
    once = work.needed(CONFIG, [(3, [2, 4])], "reference")
    assert once == layers + head
    assert work.needed(CONFIG, [(3, [2, 4])], "lora") == 3 * once
    assert work.needed(CONFIG, [(3, [2, 4])] * 2, "full") == 8 * once


def test_pairs_of_a_stated_profile_stand_in_for_data_that_is_not_here(monkeypatch, tmp_path):
    monkeypatch.setattr(work, "DATA", tmp_path)
    found, said = work.pairs("hh_harmless", 3, skip=1)
    assert [record.key for record in found] == ["profile-1", "profile-2", "profile-3"]
    assert "made-up" in said


def stored(line, cpu, peak, tokens=None):
    spec = {"batch": 4}
    row = {"line": line, "spec": spec, "peak_mib": peak, "rate": 1e11, "losses": [0.6931]}
    steps = [{"cpu": 99.0, "wall": 99.0}, {"cpu": cpu, "wall": 2 * cpu}]
    return row | {"steps": steps[-1:] if tokens else steps, "tokens": tokens}


def test_a_table_gives_medians_and_spreads_and_leaves_the_first_step_out():
    rows = [stored("polyalign", x, 1000) for x in (1.0, 2.0, 4.0)]
    rows += [stored("TRL default", x, 4000) for x in (7.0, 8.0, 9.0)]
    text = tables.render(tables.TABLES["dpo-lora"], rows, 1e11)
    assert "2.0 [1.0, 4.0]" in text
    assert "99" not in text
    assert "polyalign: 4.00x the speed and 0.25 of the memory of TRL default." in text
    assert "| TRL best | not measured" in text


def test_sampling_is_compared_with_the_best_batch_size():
    rows = [
        stored("polyalign", 1.0, 1000, 300),
        stored("generate, 32 rows", 1.0, 1000, 100),
        stored("generate, 64 rows", 1.0, 1000, 150),
    ]
    text = tables.render(tables.TABLES["sampling"], rows, None)
    assert "polyalign: 2.00x generate, 64 rows (its best)." in text


def test_what_is_stored_is_not_measured_again(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "STORED", tmp_path / "speed.jsonl")
    asked = []

    def child(spec):
        asked.append(spec.get("side"))
        return {"steps": [{"cpu": 1.0, "wall": 1.0}], "peak_mib": 1.0, "load": 0.0, "rate": 1.0}

    monkeypatch.setattr(run, "_child", child)
    monkeypatch.setattr(run, "_versions", dict)
    args = run._parser().parse_args(["sampling", "--repeats", "1"])
    run.measure("sampling", tables.TABLES["sampling"], args)
    assert asked == ["polyalign", *["generate"] * 4]
    run.measure("sampling", tables.TABLES["sampling"], args)
    assert len(asked) == 5
    args = run._parser().parse_args(["sampling", "--repeats", "1", "--prompts", "8"])
    run.measure("sampling", tables.TABLES["sampling"], args)
    assert len(asked) == 10
    assert len([json.loads(x) for x in run.STORED.read_text().splitlines()]) == 10
    # A line's own settings go over the table's, in what is measured and in what is found.
    args = run._parser().parse_args(["quantised", "--repeats", "1"])
    for _ in range(2):
        run.measure("quantised", tables.TABLES["quantised"], args)
    assert len(asked) == 15
    assert len(run.stored("quantised", args)) == 5


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_line_of_every_table_has_a_side_that_does_its_work(name):
    from benchmarks import ours, peer

    table = tables.TABLES[name]
    for line in table.lines:
        side = ours if line.side == "polyalign" else peer
        assert callable(getattr(side, {**table.spec, **line.spec}["work"]))


def test_the_measured_rate_is_that_of_matrix_products():
    assert 1e8 < work.matmul_rate(0.05) < 1e14


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["dpo"], "There is no table dpo. Tables: dpo-lora, "),
        (["dpo-lora", "--prompts", "3"], "Table dpo-lora has no prompts; leave --prompts out."),
        (["growth", "--only", "ours"], "There is no line 'ours'. Lines: context 128, "),
        (["growth", "--batch", "3"], "Table growth has no batch; leave --batch out."),
        (["dpo-lora"], "Table dpo-lora compares with TRL: pip install -e '.[bench]'"),
        (["gpu-full"], "Table gpu-full wants a GPU, and PyTorch finds none here."),
    ],
)
def test_what_a_table_cannot_do_is_a_sentence(monkeypatch, command, sentence):
    monkeypatch.setattr(run, "possible", lambda table: table.spec.get("device") != "cuda")
    monkeypatch.setattr(run, "_versions", dict)
    args = run._parser().parse_args(command)
    assert (run.refused(args.tables, args) or "").startswith(sentence)


def test_settings_go_over_those_of_a_table_and_into_the_title_of_its_section():
    args = run._parser().parse_args(["group", "--batch", "4", "--steps", "2"])
    table = tables.TABLES["group"]
    assert run._spec(table, args)["batch"] == 4
    assert run.title(table, args) == f"Speed: {table.title}, batch 4"
    assert run._flags(args) == " --batch 4 --steps 2"
    plain = run._parser().parse_args(["group"])
    assert run._spec(table, plain)["batch"] == 1
    assert run.title(table, plain) == f"Speed: {table.title}"


def test_a_section_is_written_when_its_table_is_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "STORED", tmp_path / "measured" / "speed.jsonl")
    written = []
    monkeypatch.setattr(run, "write_section", lambda title, text: written.append(title))
    monkeypatch.setattr(run, "_needed", lambda *a: None)
    monkeypatch.setattr(run, "_versions", lambda: {"trl": "1"})
    row = stored("", 1.0, 1000.0) | {"load": 1.0, "norms": [1.0]}
    monkeypatch.setattr(run, "_child", lambda spec: row)
    command = ["run", "dpo-lora", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", [*command, "--only", "polyalign"])
    run.main()
    assert written == []
    monkeypatch.setattr("sys.argv", command)
    run.main()
    assert written == ["Speed: DPO, LoRA r=16 on all linear layers"]


def test_a_gpu_is_compared_by_seconds_and_a_cpu_by_its_own():
    rows = [stored("polyalign", x, 1000) for x in (1.0, 2.0, 4.0)]
    text = tables.render(tables.TABLES["gpu-lora"], rows, 1e11)
    assert "GFLOP a second" in text
    assert "CPU seconds a step" not in text
    assert "4.000 [2.000, 8.000]" in text


def test_a_random_model_is_made_once(monkeypatch, tmp_path, smollm2):
    from polyalign.policies.language import models

    monkeypatch.setattr(models, "cache_folder", lambda: tmp_path)
    folder = work.model_of("random-llama-tiny")
    made = models.load_model(folder)
    assert made.config.num_hidden_layers == 2
    assert (
        made.num_parameters()
        == made.config.vocab_size * 64 + 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64) + 64
    )
    assert work.model_of("random-llama-tiny") == folder
    assert work.model_of("smollm2") == "smollm2"
