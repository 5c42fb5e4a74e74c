import json
import re
from html.parser import HTMLParser

import pytest

from polyalign.errors import OptionError, RunError
from polyalign.reports.comparison import Column, Entry, Values, compare
from polyalign.reports.html import report
from tests.reports.synthetic import evaluation, lines, run_folder

VOID = {"meta", "path", "circle", "rect", "br"}


class Balanced(HTMLParser):
    """Fails on tags that do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def read(path):
    page = path.read_text("utf-8")
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return page, re.sub(r"\s+", " ", " ".join(parser.text))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = run_folder(tmp_path_factory.mktemp("runs") / "first", fall=1.2)
    (folder / "evaluation.json").write_text(json.dumps(evaluation()))
    return folder


def test_a_report_is_one_small_file_that_asks_the_network_for_nothing(full):
    path = report([full])
    page, _ = read(path)
    assert path == full / "report.html"
    assert len(page.encode()) < 1_000_000
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|url\(|src=", page, re.I)
    assert all("arxiv.org" in link for link in re.findall(r'href="([^"]+)"', page))


def test_a_newcomer_reads_what_was_done_and_what_it_gave(full):
    _, text = read(report([full]))
    for words in (
        "smollm2 was trained with dpo on 480 examples from data/human_pairs.jsonl.",
        "Of 135 million parameters, 5 million were trained, in low-rank adapters of rank 16.",
        "It came to its end at step 60 after 4 min 6 s of training on the CPU.",
        "both become less likely (by 8.0 and 16.5 nats per answer)",
        "61.8 % [57.1, 66.5]",
        "+4.1 points [+1.2, +7.0], p = 0.0041",
        "exact_words",
        "Log-probabilities of answers",
        "KL divergence in nats" if "Distance from the reference" in text else "Divergence (KL)",
        "Perplexity",
        "5 examples are cut at max_length=512.",
    ):
        assert words in text


def test_what_models_wrote_is_escaped(full):
    page, text = read(report([full]))
    assert "<script" not in page
    assert "<script>alert('before')</script>" in text
    assert "Say <b>hello</b> in HTML & nothing else." in text


def test_paths_of_the_machine_and_secrets_are_not_told(tmp_path):
    folder = run_folder(tmp_path / "r", hub_token="hf_abcdefghijklmnopqrstuvwx")
    page, _ = read(report([folder]))
    assert "hf_abcdefgh" not in page
    assert "trained with" in page


def test_an_interrupted_run_is_reported_as_far_as_it_came(tmp_path):
    import shutil

    folder = run_folder(tmp_path / "r")
    shutil.rmtree(folder / "final")
    (folder / "samples.jsonl").unlink()
    kept = (folder / "metrics.jsonl").read_text().splitlines()[:30]
    (folder / "metrics.jsonl").write_text("\n".join(kept) + '\n{"step": 99, "los')
    _, text = read(report([folder]))
    assert "It is not finished: the last step logged is 27 of 60" in text
    assert "Answers before and after" not in text


@pytest.mark.parametrize("part", ["config.yaml", "plan.json", "metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("content", [None, "", "{broken", "[1, 2]\n[3]\n"])
def test_any_part_may_be_missing_empty_or_broken(tmp_path, part, content):
    folder = run_folder(tmp_path / "r")
    (folder / part).unlink()
    if content is not None:
        (folder / part).write_text(content)
    page, text = read(report([folder]))
    assert "Training report: r" in text
    assert "None" not in text


def test_a_run_with_nothing_but_a_plan_is_reported(tmp_path):
    (tmp_path / "plan.json").write_text('{"method": "dpo", "steps": 10}')
    _, text = read(report([tmp_path]))
    assert "the last step logged is 0 of 10" in text


def test_several_runs_lie_over_each_other_and_side_by_side(tmp_path, full):
    other = run_folder(tmp_path / "second", seed=1, hyper={"beta": 0.5})
    page, text = read(report([full, other], tmp_path / "both.html"))
    assert "The runs side by side" in text
    assert "hyper.beta 0.1 0.5" in text
    assert 'aria-label="first, first (held out), second, second (held out)"' in page
    assert "Dashed curves are held-out examples." in text


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    for place in "ab":
        run_folder(tmp_path / place / "run")
    _, text = read(report([tmp_path / "a" / "run", tmp_path / "b" / "run"], tmp_path / "x.html"))
    assert "a/run" in text
    assert "b/run" in text


def test_numbers_that_broke_down_are_told_and_do_not_break_the_page(tmp_path):
    folder = run_folder(tmp_path / "r")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows[40:]:
        row |= {"loss": float("nan"), "grad_norm": float("inf")}
    lines(folder / "metrics.jsonl", rows)
    page, text = read(report([folder]))
    assert "is no longer a number" in text
    assert not re.search(r"\bnan\b", page)


def test_a_comparison_stands_on_top(tmp_path, full):
    table = compare(
        "Methods",
        [Column("new", "new instructions")],
        [
            Entry("base", {"new": Values([0.0] * 20)}),
            Entry("<dpo>", {"new": Values([1.0] * 20)}, note="primary"),
        ],
        base="base",
    )
    page, text = read(report([full], tmp_path / "demo.html", comparison=table, title="Demo"))
    assert text.index("Methods") < text.index("What was done")
    assert "<dpo>" in text
    assert 'class="num better"' in page
    _, alone = read(report([], tmp_path / "alone.html", comparison=table))
    assert "What was done" not in alone


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(RunError, match="is not a run folder: it has none of config.yaml"):
        report([tmp_path])
    with pytest.raises(OptionError, match="no run to report on"):
        report([])


def test_before_training_every_pair_is_a_tie_and_not_a_loss(tmp_path):
    folder = run_folder(tmp_path / "r")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    start = {f"eval_rewards/{name}": 0.0 for name in ("chosen", "rejected", "accuracies")}
    rows[0] |= start
    lines(folder / "metrics.jsonl", rows)
    _, text = read(report([folder]))
    assert "during training no interval 50.0 % 70.9 % +20.9 points" in text
