import json

from rich.console import Console

from polyalign.reports.rundata import read_run
from polyalign.reports.tables import Table, evaluation_table, runs_table, show
from tests.reports.synthetic import evaluation, run_folder


def printed(table):
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.rich())
    return console.export_text()


def test_an_evaluation_is_a_table_with_intervals():
    text = printed(evaluation_table(evaluation()))
    assert "run against smollm2" in text
    assert "57.1 % [52.3, 61.9]" in text
    assert "400 pairs" in text


def test_runs_stand_side_by_side(tmp_path):
    text = printed(runs_table([read_run(run_folder(tmp_path / "one"))]))
    assert "4 min 6 s" in text
    assert "70.9 %" in text


def test_square_brackets_are_not_markup():
    assert "[red]" in printed(Table("t", ("a",), [("[red]",)]))


def test_as_json_the_data_behind_the_table_are_printed(capsys):
    show(evaluation_table(evaluation()), as_json=True)
    assert json.loads(capsys.readouterr().out) == evaluation()
    show(Table("t", ("a", "b"), [("1", "2")]), as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"a": "1", "b": "2"}]
