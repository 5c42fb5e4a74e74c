"""T49 where people look: each curve and each table line holds its own side's numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rich.console import Console

from polyalign.reports.html import report
from polyalign.reports.tables import evaluation_table
from tests.reports.synthetic import evaluation, run_folder

CURVES = {"rewards/chosen": 7, "rewards/rejected": -3, "logps/chosen": -41,
          "logps/rejected": -83}  # fmt: skip


def test_t49_the_curves_of_preferred_and_rejected_hold_their_own_numbers(tmp_path: Path):
    folder = run_folder(tmp_path / "run", steps=6)
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for row in rows:
        prefix = "eval_" if row["split"] == "eval" else ""
        shift = 1000 if prefix else 0
        row |= {prefix + name: value + shift + row["step"] for name, value in CURVES.items()}
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    page = report([folder], tmp_path / "report.html").read_text("utf-8")
    told = re.findall(r"<title>((?:preferred|rejected)[^<]*), step (\d+): ([^<]*)</title>", page)
    assert told
    for side, word in (("chosen", "preferred"), ("rejected", "rejected")):
        for shift, label in ((0, word), (1000, f"{word} (held out)")):
            mine = {(int(n), float(v.replace("−", "-"))) for name, n, v in told if name == label}
            for kind in ("rewards", "logps"):
                assert (6, CURVES[f"{kind}/{side}"] + shift + 6) in mine, (label, kind)
            steps = range(1 - bool(shift), 7)
            assert len(mine) == 2 * len(steps)


def test_t14_the_table_tells_how_many_were_emptied():
    found = evaluation()
    found["ranking"]["emptied"] = 3
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(evaluation_table(found).rich())
    assert "3 pairs left out, emptied by the length limit" in console.export_text()
