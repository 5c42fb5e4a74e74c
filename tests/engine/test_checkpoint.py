from __future__ import annotations

import errno
import json
import math
import os
import struct
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from polyalign.engine import storage
from polyalign.engine.checkpoint import load, newest, save
from polyalign.engine.tree import NAMES
from polyalign.errors import OptionError, PolyalignWarning, RunError
from tests.engine.disk import Disk, FullDisk, Killed, Killing, PowerLoss, Refusing


def same(a: object, b: object) -> bool:
    """Equal bit for bit, in type, shape and order; NaN equals the NaN of its own bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        left, right = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
        return torch.equal(left, right)
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items())
        return len(a) == len(b) and all(same(k, m) and same(v, w) for (k, v), (m, w) in pairs)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def state(step: int) -> dict:
    """A small state tree that differs in every part from step to step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "policy": {
            "weight": torch.randn(7, 3, generator=generator),
            "half": torch.randn(5, generator=generator).bfloat16(),
        },
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}, "groups": [{"lr": 0.1}]},
        "step": step,
        "best": math.inf,
        "betas": (0.9, 0.999),
    }


@pytest.fixture
def disk(monkeypatch):
    """Exchange the disk: ``disk(FullDisk(3))``."""

    def exchange(new: storage.FileSystem) -> storage.FileSystem:
        monkeypatch.setattr(storage, "fs", new)
        return new

    return exchange


def dtypes() -> list[torch.dtype]:
    return [*NAMES, torch.complex64, torch.complex128, torch.float8_e4m3fnuz]


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (3, 5)], ids=str)
def test_every_type_and_shape_of_tensor_comes_back_bit_for_bit(tmp_path, dtype, shape):
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    data = torch.randint(0, high, (size,), dtype=torch.uint8, generator=torch.manual_seed(0))
    tree = {"x": data.view(dtype).reshape(shape)}
    assert same(load(save(tmp_path, tree, step=1))[0], tree)


def test_the_tensor_file_is_one_that_safetensors_itself_reads(tmp_path):
    tree = state(3)
    found = load_file(save(tmp_path, tree, step=3) / "state.safetensors")
    assert same(found["policy/half"], tree["policy"]["half"])
    assert set(found) == {"policy/weight", "policy/half", "optimizer/state/0/step"}


def test_views_and_tied_tensors_come_back_equal_and_tied_ones_tied(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tree = {
        "embedding": base,
        "head": base,
        "column": base[:, 1],
        "transposed": base.T,
        "wide": torch.ones(1).expand(4),
        "parameter": torch.nn.Parameter(base[0]),
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }
    path = save(tmp_path, tree, step=1)
    found = load(path)[0]
    assert found["embedding"] is found["head"]
    for name in ("embedding", "column", "transposed", "wide", "conjugate"):
        assert torch.equal(found[name], tree[name])
    assert torch.equal(found["parameter"], base[0])
    assert len(load_file(path / "state.safetensors")) == 6


def test_names_that_collide_as_paths_stay_apart(tmp_path):
    one, two, three = torch.tensor(1), torch.tensor(2), torch.tensor(3)
    tree = {"a": {"b": one}, "a/b": two, "__metadata__": three, "": torch.tensor(4)}
    assert same(load(save(tmp_path, tree, step=1))[0], tree)


def test_an_optimizer_goes_on_after_a_round_trip_exactly_as_without_it(tmp_path):
    def build():
        layer = torch.nn.Linear(4, 3)
        with torch.no_grad():
            layer.weight.fill_(0.1)
            layer.bias.fill_(0.0)
        return layer, torch.optim.AdamW(layer.parameters(), lr=1e-2, betas=(0.8, 0.95))

    def go(layer, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            layer(torch.full((2, 4), float(step))).square().sum().backward()
            optimizer.step()

    straight, optimizer = build()
    go(straight, optimizer, range(6))

    first, optimizer = build()
    go(first, optimizer, range(3))
    tree = {"layer": first.state_dict(), "optimizer": optimizer.state_dict()}
    path = save(tmp_path, tree, step=3)
    second, optimizer = build()
    found, step = load(path)
    second.load_state_dict(found["layer"])
    optimizer.load_state_dict(found["optimizer"])
    assert step == 3
    go(second, optimizer, range(3, 6))
    assert same(dict(second.state_dict()), dict(straight.state_dict()))


NUMBERS = st.integers() | st.floats() | st.floats(width=32)
KEYS = st.text(max_size=6) | st.integers() | st.booleans() | st.none()
TENSORS = st.builds(
    lambda dtype, n: torch.arange(n).to(dtype),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
    st.integers(0, 4),
)
TREES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(), max_size=8) | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(max_size=5), TREES, max_size=4), st.integers(0, 10**9))
def test_any_tree_comes_back_bit_for_bit(tmp_path_factory, tree, step):
    folder = tmp_path_factory.mktemp("tree")
    found, at = load(save(folder, tree, step=step))
    assert same(found, tree)
    assert at == step


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=8, max_size=8))
def test_every_float_keeps_its_bits_even_a_nan(data):
    from polyalign.engine.tree import Encoder, decode

    (number,) = struct.unpack(">d", data)
    node = json.loads(json.dumps(Encoder().structure([number])))
    assert same(decode(node, lambda name: None), [number])


def test_what_cannot_be_stored_is_named_with_its_place(tmp_path):
    with pytest.raises(RunError, match=r"cannot hold the set at loop/seen/1\."):
        save(tmp_path, {"loop": {"seen": [1, {2}]}}, step=1)
    with pytest.raises(RunError, match="at a: it is not dense"):
        save(tmp_path, {"a": torch.eye(2).to_sparse()}, step=1)
    assert newest(tmp_path) is None


def test_only_the_last_checkpoints_are_kept_and_leftovers_go(tmp_path):
    (tmp_path / ".writing-step-00000007").mkdir()
    (tmp_path / ".writing-step-00000007" / "state.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    for step in (5, 10, 15):
        path = save(tmp_path, state(step), step=step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "notes.txt",
        "step-00000010",
        "step-00000015",
    ]
    assert newest(tmp_path) == path


def test_keep_nothing_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(OptionError, match="keep=0"):
        save(tmp_path / "c", state(1), step=1, keep=0)
    assert not (tmp_path / "c").exists()


def test_going_on_from_an_earlier_step_drops_the_abandoned_later_ones(tmp_path):
    for step in (5, 10):
        save(tmp_path, state(step), step=step)
    path = save(tmp_path, state(7), step=7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000007"]
    assert newest(tmp_path) == path


def test_a_step_can_be_written_again(tmp_path):
    save(tmp_path, state(5), step=5)
    path = save(tmp_path, state(6), step=5)
    assert same(load(path)[0], state(6))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "absent") is None


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


def remove(name):
    return lambda path: (path / name).unlink()


def truncate(name):
    return lambda path: os.truncate(path / name, (path / name).stat().st_size // 2)


def flip(name):
    def do(path):
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(data)

    return do


def rewrite(old, new):
    def do(path):
        text = (path / "state.json").read_text()
        assert old in text
        (path / "state.json").write_text(text.replace(old, new))

    return do


DAMAGE = {
    "tensors missing": (remove("state.safetensors"), "has no state.safetensors"),
    "structure missing": (remove("state.json"), "has no state.json"),
    "tensors truncated": (truncate("state.safetensors"), r"has \d+ bytes instead of \d+"),
    "structure truncated": (truncate("state.json"), "not the JSON of a checkpoint"),
    "structure empty": (lambda p: os.truncate(p / "state.json", 0), "state.json is empty"),
    "tensors flipped": (flip("state.safetensors"), "state.safetensors is damaged"),
    "number edited": (rewrite('"lr":0.1', '"lr":0.2'), "state.json is damaged"),
    "other JSON": (lambda p: (p / "state.json").write_text("[1]"), "not the JSON of a checkpoint"),
    "other version": (rewrite('"version":1', '"version":9'), "reads polyalign-checkpoint 1"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage, says):
    good = save(tmp_path, state(1), step=1)
    bad = save(tmp_path, state(2), step=2)
    damage(bad)
    with pytest.raises(RunError, match=says) as caught:
        load(bad)
    assert caught.value.mend
    with pytest.warns(PolyalignWarning, match=says + ".*passed over.*step-00000001"):
        assert newest(tmp_path) == good
    damage(good)
    with pytest.raises(RunError, match="All 2 checkpoints .* cannot be used: .*" + says):
        newest(tmp_path)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_no_flipped_byte_goes_unnoticed(tmp_path, name):
    path = save(tmp_path, {"x": torch.arange(4), "lr": 0.25}, step=1)
    whole = (path / name).read_bytes()
    for i in range(len(whole)):
        (path / name).write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(RunError):
            load(path)


def test_a_checkpoint_that_may_not_be_read_is_passed_over_with_the_reason(tmp_path, monkeypatch):
    good = save(tmp_path, state(1), step=1)
    save(tmp_path, state(2), step=2)
    read = storage.fs.read

    def refuse(path):
        if path.parent.name == "step-00000002":
            raise PermissionError(errno.EACCES, "denied", str(path))
        return read(path)

    monkeypatch.setattr(storage.fs, "read", refuse)
    with pytest.warns(PolyalignWarning, match="permission denied"):
        assert newest(tmp_path) == good


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="There is no checkpoint .*step-00000009"):
        load(tmp_path / "step-00000009")


def test_a_loaded_tree_outlives_the_file_it_came_from(tmp_path):
    path = save(tmp_path, state(1), step=1)
    tree, _ = load(path)
    save(tmp_path, state(2), step=2, keep=1)
    assert not path.exists()
    assert same(tree, state(1))
