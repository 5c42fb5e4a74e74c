import pytest

from polyalign.errors import OptionError
from polyalign.studies.compare_protocols import SIZES, follow
from tests.runs.kit import write_pairs
from tests.studies.kit import small


@pytest.fixture(scope="module")
def with_sft(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("protocol")
    given = small(folder, tiny_llama, judge=None, budget="1k")
    held = write_pairs(folder / "held.jsonl", 12)
    found = follow("with-sft", ["dpo"], eval_data=[str(held)], instruct=str(tiny_llama), **given)
    return folder / "out", found


def test_each_start_has_a_comparison_and_a_page_of_its_own(with_sft):
    folder, found = with_sft
    assert [part["title"].split(":")[0] for part in found] == [
        "Without SFT", "With SFT", "From an instruct model",
    ]  # fmt: skip
    for part in found:
        assert (folder / part["folder"] / "report.html").is_file()
    models = [part["result"]["fingerprints"]["model"] for part in found]
    assert models[0] == models[2] != models[1]


def test_the_arms_are_measured_on_the_same_held_out_examples(with_sft):
    _, found = with_sft
    assert len({part["result"]["fingerprints"]["held_out"] for part in found}) == 1


def test_one_page_shows_all_starts_side_by_side_and_links_their_reports(with_sft):
    folder, found = with_sft
    page = (folder / "report.html").read_text("utf-8")
    assert "Does it need SFT first?" in page
    for part in found:
        assert part["title"] in page
    assert 'href="with-sft/report.html"' in page
    # Against its own base a start cannot be compared with another across.
    assert "read down the columns" in page
    assert "Read across" in page
    assert "<script" not in page


def test_sizes_are_nested_shares_at_the_budget_of_the_whole(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.setattr("polyalign.studies.compare_protocols.SIZES", SIZES[-2:])
    given = small(tmp_path, tiny_llama, judge=None, budget=None, prompts=2)
    found = follow("sizes", ["dpo"], **given)
    assert [part["folder"].rsplit("-", 1)[1] for part in found] == ["50", "100"]
    assert len({part["result"]["budget"] for part in found}) == 1
    assert len({part["result"]["fingerprints"]["data"] for part in found}) == 2
    bases = [part["result"]["rows"][0]["measures"]["ranking_mean"]["value"] for part in found]
    assert len(set(bases)) == 1
    assert "read down" not in (tmp_path / "out" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("protocol", "more", "said"),
    [
        ("with_sft", {}, "with-sft"),
        ("with-sft", {}, "must be a file"),
        ("sizes", {"instruct": "x"}, "no place for an instruct model"),
        ("sizes", {"world": "bandit"}, "language models"),
        ("sizes", {"data": ()}, "needs data"),
    ],
)
def test_what_does_not_fit_a_protocol_is_told_first(tmp_path, protocol, more, said):
    given = {"model": "m", "data": ["d.jsonl"], "output": tmp_path / "out"} | more
    with pytest.raises(OptionError) as error:
        follow(protocol, ["dpo"], **given)
    assert said in f"{error.value} {error.value.mend}"
    assert not (tmp_path / "out").exists()
