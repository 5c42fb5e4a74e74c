from __future__ import annotations

import errno
import json
import math
import os
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from polyalign.engine import storage
from polyalign.engine.checkpoint import load, newest, save
from polyalign.engine.tree import NAMES
from polyalign.errors import OptionError, PolyalignWarning, RunError
from tests.engine.states import same, state


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
