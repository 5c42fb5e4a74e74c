"""Checkpoints on a disk that fails: crashes at any effect, no room, refusals."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import pytest

from polyalign.engine import storage
from polyalign.engine.checkpoint import load, newest, save
from polyalign.errors import PolyalignWarning, RunError
from tests.engine.disk import Disk, FullDisk, Killed, Killing, PowerLoss, Refusing
from tests.engine.states import same, state


@pytest.fixture
def disk(monkeypatch):
    """Exchange the disk: ``disk(FullDisk(3))``."""

    def exchange(new: storage.FileSystem) -> storage.FileSystem:
        monkeypatch.setattr(storage, "fs", new)
        return new

    return exchange


def effects(folder: Path, disk, again: int, keep: int) -> int:
    """How many effects the save of the second checkpoint has."""
    counting = disk(Disk())
    save(folder, state(2), step=again, keep=keep)
    disk(storage.FileSystem())
    return counting.count


# Over an earlier step; the same step again; with the earlier one removed at once.
SITUATIONS = [(2, 2), (1, 2), (2, 1)]


@pytest.mark.parametrize("kind", [Killing, PowerLoss])
@pytest.mark.parametrize(("again", "keep"), SITUATIONS)
def test_after_a_crash_at_any_effect_a_whole_checkpoint_is_there(tmp_path, disk, kind, again, keep):
    save(tmp_path / "count", state(1), step=1)
    total = effects(tmp_path / "count", disk, again, keep)
    assert total > 12
    for k in range(total):
        folder = tmp_path / str(k)
        disk(storage.FileSystem())
        save(folder, state(1), step=1)
        broken = disk(kind(k))
        with pytest.raises(Killed):
            save(folder, state(2), step=again, keep=keep)
        disk(storage.FileSystem())
        if isinstance(broken, PowerLoss):
            broken.lose()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing bad may bear a checkpoint's name
            path = newest(folder)
        assert path is not None
        found, _ = load(path)
        assert same(found, state(1)) or same(found, state(2)), k
        for other in folder.glob("step-*"):
            load(other)  # none is half removed
        # The run goes on, and nothing of the crash is left.
        save(folder, state(3), step=3, keep=1)
        assert [p.name for p in folder.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("kind", [Killing, PowerLoss])
def test_after_a_crash_in_the_first_save_there_is_none_or_a_whole_one(tmp_path, disk, kind):
    total = effects(tmp_path / "count", disk, 2, 2)
    for k in range(total):
        folder = tmp_path / str(k)
        broken = disk(kind(k))
        with pytest.raises(Killed):
            save(folder, state(2), step=2)
        disk(storage.FileSystem())
        if isinstance(broken, PowerLoss):
            broken.lose()
        path = newest(folder)
        assert path is None or same(load(path)[0], state(2))


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("kind", [Refusing, FullDisk])
@pytest.mark.parametrize(("again", "keep"), SITUATIONS)
def test_a_disk_that_is_full_at_any_effect_leaves_the_earlier_checkpoint_intact(
    tmp_path, disk, kind, lasting, again, keep
):
    save(tmp_path / "count", state(1), step=1)
    counting = disk(kind(-1))
    save(tmp_path / "count", state(2), step=again, keep=keep)
    refusals = []
    for k in range(counting.count):
        folder = tmp_path / str(k)
        disk(storage.FileSystem())
        save(folder, state(1), step=1)
        disk(kind(k, errno.ENOSPC, lasting))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PolyalignWarning)
            try:
                save(folder, state(2), step=again, keep=keep)
            except RunError as error:
                refusals.append(error)
        disk(storage.FileSystem())
        path = newest(folder)
        assert path is not None
        found, _ = load(path)
        assert same(found, state(1)) or same(found, state(2)), k
        if kind is FullDisk:  # removing works, so nothing half written is left
            assert not [p for p in folder.iterdir() if p.name.startswith(".writing")]
            assert (folder / "step-00000001").exists() or keep == 1
    assert len(refusals) >= 9
    for error in refusals:
        assert f"checkpoint of step {again}: no space is left" in error.what
        assert "Free space" in error.mend


def test_a_save_that_is_refused_removes_what_it_had_written(tmp_path, disk):
    save(tmp_path, state(1), step=1)
    disk(FullDisk(4, errno.ENOSPC, lasting=True))
    with pytest.raises(RunError, match="no space is left"):
        save(tmp_path, state(2), step=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_an_old_checkpoint_that_cannot_be_removed_is_only_a_warning(tmp_path, disk, monkeypatch):
    save(tmp_path, state(1), step=1)

    def refuse(path):
        raise PermissionError(errno.EACCES, "denied", str(path))

    monkeypatch.setattr(storage.fs, "remove", refuse)
    with pytest.warns(PolyalignWarning, match="no longer needed: permission denied"):
        path = save(tmp_path, state(2), step=2, keep=1)
    assert newest(tmp_path) == path


@pytest.mark.parametrize(
    ("code", "says", "mend"),
    [
        (errno.EACCES, "permission denied", "chmod"),
        (errno.EROFS, "read-only", "--output"),
        (errno.EDQUOT, "no space is left", "quota"),
        (errno.EIO, os.strerror(errno.EIO), "Check the disk"),
    ],
)
def test_each_refusal_to_write_is_one_sentence_with_its_mend(tmp_path, disk, code, says, mend):
    disk(Refusing(1, code))
    with pytest.raises(RunError) as caught:
        save(tmp_path, state(1), step=1)
    assert says in caught.value.what
    assert "step-00000001" in caught.value.what
    assert mend in caught.value.mend


def test_a_file_where_the_folder_should_be_is_said(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match="is not a folder"):
        save(tmp_path / "checkpoints", state(1), step=1)
    with pytest.raises(RunError, match="is not a folder"):
        newest(tmp_path / "checkpoints")
