import pytest
from hypothesis import given
from hypothesis import strategies as some

from polyalign.metrics.sequences import distinct, fault, faults, lengths, loops, repetition

text = (
    "the small boat left the harbour at dawn and by noon nobody on the pier could tell its "
    "sail from the many white birds that followed it towards the open sea where it would stay"
)
prose = text.split()


def test_length_statistics_by_hand():
    s = lengths([2, 4, 9])
    assert (s.n, s.mean, s.median, s.shortest, s.longest) == (3, 5.0, 4.0, 2.0, 9.0)
    assert s.spread == pytest.approx(13**0.5)


def test_distinct_bigrams_by_hand():
    assert distinct([["a", "b", "a", "b"], ["a", "b"]], 2) == pytest.approx(2 / 4)


def test_repetition_by_hand():
    assert repetition(list("abab"), 2) == pytest.approx(1 / 3)
    assert repetition(["a"], 4) == 0.0


@given(
    some.lists(some.integers(0, 5), max_size=20),
    some.lists(some.integers(0, 5), min_size=1, max_size=8),
    some.integers(0, 7),
)
def test_a_block_repeated_to_the_end_is_a_loop_wherever_it_is_cut(head, block, cut):
    tail = block * max(5, -(-16 // len(block)))
    assert loops(head + tail + block[: cut % len(block)])


def test_prose_is_no_loop_and_short_lists_are_forgiven():
    assert fault(prose) is None
    assert fault(["no", "no", "no"]) is None


@pytest.mark.parametrize(
    ("steps", "finished", "name"),
    [
        ([], True, "empty"),
        (["I", "am", "I", "am", "I", "am", "I", "am", "I", "am"], True, "loop"),
        (prose + ["go", "on", "and"] * 30 + ["end"], True, "loop"),
        (prose, False, "unfinished"),
    ],
)
def test_each_fault_has_its_name(steps, finished, name):
    assert fault(steps, finished) == name


def test_faults_are_counted():
    assert faults([[], [1] * 20, prose], [True, False, False]) == {
        "empty": 1,
        "loop": 1,
        "unfinished": 1,
    }
