from __future__ import annotations

import errno
import json
import math
import subprocess
import sys

import pytest

from polyalign.engine import storage
from polyalign.engine.storage import (
    append_line,
    read_lines,
    truncate_lines,
    write_json_atomic,
    write_text_atomic,
)
from polyalign.errors import RunError
from tests.engine.disk import Disk, FullDisk, Killed, Killing, PowerLoss, Refusing


@pytest.fixture
def disk(monkeypatch):
    def exchange(new: storage.FileSystem) -> storage.FileSystem:
        monkeypatch.setattr(storage, "fs", new)
        return new

    return exchange


def test_lines_come_back_as_they_were_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 0.1}, {"text": "\u2028 é \ud800"}, {"loss": math.inf}]
    for row in rows:
        append_line(path, row)
    assert read_lines(path) == rows


def test_a_file_that_is_not_there_has_no_lines_and_stays_absent(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []
    truncate_lines(tmp_path / "none.jsonl", lambda row: True)
    assert not list(tmp_path.iterdir())


def test_a_torn_last_line_is_left_out_and_the_next_line_takes_its_place(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_lines(path) == [{"step": 1}]
    append_line(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}')
    append_line(path, {"step": 2})
    assert read_lines(path) == [{"step": 1}, {"step": 2}]


def test_truncating_keeps_accepted_lines_byte_for_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":  1,"x": 1.50}\n{"step": 2}\n{"step": 3}\n{"st')
    truncate_lines(path, lambda row: row["step"] != 2)
    assert path.read_text() == '{"step":  1,"x": 1.50}\n{"step": 3}\n'


def test_a_broken_line_before_the_last_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(RunError, match="Line 2 of .*metrics.jsonl is not a JSON object") as caught:
        truncate_lines(path, lambda row: True)
    assert "sed -i 2d" in caught.value.mend


@pytest.mark.parametrize("kind", [Killing, PowerLoss])
def test_after_a_crash_at_any_effect_the_text_is_the_old_or_the_new(tmp_path, disk, kind):
    path = tmp_path / "config.yaml"
    counting = disk(Disk())
    write_text_atomic(path, "old\n")
    for k in range(counting.count):
        disk(storage.FileSystem())
        write_text_atomic(path, "old\n")
        broken = disk(kind(k))
        with pytest.raises(Killed):
            write_text_atomic(path, "the new text\n")
        if isinstance(broken, PowerLoss):
            broken.lose()
        assert path.read_text() in ("old\n", "the new text\n")


@pytest.mark.parametrize("kind", [Killing, PowerLoss])
def test_after_a_crash_at_any_effect_a_truncated_file_is_whole(tmp_path, disk, kind):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    for k in range(5):
        broken = disk(kind(k))
        with pytest.raises(Killed):
            truncate_lines(path, lambda row: row["step"] < 2)
        disk(storage.FileSystem())
        if isinstance(broken, PowerLoss):
            broken.lose()
        assert read_lines(path) in ([{"step": 1}, {"step": 2}], [{"step": 1}])


def test_after_a_kill_at_any_effect_the_lines_before_are_there(tmp_path, disk):
    path = tmp_path / "metrics.jsonl"
    for k in range(3):
        disk(storage.FileSystem())
        path.write_text('{"step": 1}\n')
        disk(Killing(k))
        with pytest.raises(Killed):
            append_line(path, {"step": 2})
        disk(storage.FileSystem())
        assert read_lines(path) in ([{"step": 1}], [{"step": 1}, {"step": 2}])
        append_line(path, {"step": 3})
        assert read_lines(path)[-1] == {"step": 3}


def test_a_full_disk_leaves_the_lines_as_they_were_and_says_so(tmp_path, disk):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    disk(Refusing(1))
    with pytest.raises(RunError, match="Cannot add a line to metrics.jsonl: no space is left"):
        append_line(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n'


def test_a_full_disk_leaves_the_old_text_and_no_temporary_file(tmp_path, disk):
    path = tmp_path / "plan.json"
    write_json_atomic(path, {"a": 1})
    for k in range(3):
        disk(FullDisk(k, lasting=True))
        with pytest.raises(RunError, match=r"Cannot write plan\.json: no space is left"):
            write_json_atomic(path, {"a": 2})
        assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
        assert json.loads(path.read_text()) == {"a": 1}


def test_no_permission_is_one_sentence_with_the_mend(tmp_path, disk):
    disk(Refusing(0, errno.EACCES))
    with pytest.raises(RunError, match="permission denied") as caught:
        append_line(tmp_path / "metrics.jsonl", {"step": 1})
    assert "chmod" in caught.value.mend


def test_json_keeps_the_order_of_keys_and_reads_as_unicode(tmp_path):
    path = tmp_path / "plan.json"
    write_json_atomic(path, {"z": "é", "a": [1, math.inf]})
    assert path.read_text() == '{\n  "z": "é",\n  "a": [\n    1,\n    Infinity\n  ]\n}\n'


def test_storage_loads_no_torch():
    code = "import sys, polyalign.engine.storage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
