"""Ready designs of comparisons: the questions of "Insights into Alignment" (2404.14723).

Does a method need SFT first (from the model as it is, from the model after SFT, from an instruct
model), and how much feedback does it need (nested parts of the data)? A page shows all side by
side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polyalign.engine.storage import write_text_atomic
from polyalign.errors import OptionError, nearest
from polyalign.reports import protocol_page
from polyalign.runs.folder import Silent, Watcher
from polyalign.studies.compare import compare
from polyalign.studies.compare_setup import IMITATION

SIZES = (0.05, 0.25, 0.5, 1.0)
"""Shares of the training data, each inside the next."""

Found = list[dict[str, Any]]


def follow(
    protocol: str,
    methods: Sequence[str],
    *,
    output: str | Path,
    instruct: str | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> Found:
    """Run the comparisons of a protocol, each into a folder of its own below ``output``.

    ``with-sft``: from the model, from the model after SFT on the better answers, and from an
    ``instruct`` model where one is named. ``sizes``: over nested shares of the training data, at
    the same budget, so smaller shares are seen more often. ``output/report.html`` shows them side
    by side. Returns title, folder and result of each. Raises :class:`OptionError` for an unknown
    name, and for data that do not fit the protocol, before anything is trained.
    """
    if protocol not in PROTOCOLS:
        raise OptionError(f"There is no protocol '{protocol}'.", nearest(protocol, PROTOCOLS))
    if options.get("world"):
        raise OptionError(
            f"The protocol {protocol} is about language models.", "Leave --world out."
        )
    if instruct is not None and protocol != "with-sft":
        raise OptionError(
            f"The protocol {protocol} has no place for an instruct model.",
            "Use --protocol with-sft, or leave --instruct out.",
        )
    for name, mend in (("model", "Add --model smollm2."), ("data", "Add --data FILE.")):
        if not options.get(name):
            raise OptionError(f"A comparison needs {name}.", mend)
    if isinstance(options["data"], str):
        options["data"] = [options["data"]]
    watcher, output = watcher or Silent(), Path(output)
    title = options.pop("title", None)
    if instruct is not None:
        options["instruct"] = instruct
    found = PROTOCOLS[protocol](methods, output, watcher, options)
    heading, question = QUESTIONS[protocol]
    arms = [part | {"folder": Path(part["folder"]).name} for part in found]
    page = protocol_page.render(title or heading, question, arms, protocol == "sizes")
    write_text_atomic(output / "report.html", page)
    watcher.note(f"All side by side: {output / 'report.html'}")
    return found


def _one(
    title: str, methods: Sequence[str], folder: Path, watcher: Watcher, options: dict[str, Any]
) -> dict[str, Any]:
    watcher.note(title)
    result = compare(methods, output=folder, watcher=watcher, **(options | {"title": title}))
    return {"title": title, "folder": str(folder), "result": result}


def _with_sft(
    methods: Sequence[str], output: Path, watcher: Watcher, options: dict[str, Any]
) -> Found:
    from polyalign.api import train

    if not options.get("eval_data"):
        raise OptionError(
            "The protocol with-sft trains before it compares, so what is held out must be a file.",
            "Split the data: polyalign data split FILE, and give both with --data and --eval-data.",
        )
    named = ("batch", "lr", "full", "max_length", "dtype", "device", "threads", "limit")
    instruct = options.pop("instruct", None)
    common = {n: options[n] for n in named if options.get(n) is not None}
    folder = output / "sft-model"
    run = train(
        IMITATION,
        model=options["model"],
        data=list(options["data"]),
        output=folder,
        resume=folder.exists(),
        watcher=watcher,
        samples=0,
        **common,
    )
    after = options | {"model": str(run.folder / "final")}
    arms = [
        ("Without SFT: from the model as it is", "without-sft", options),
        ("With SFT: from the model after SFT on the better answers", "with-sft", after),
    ]
    if instruct is not None:
        arms.append(("From an instruct model", "instruct", options | {"model": instruct}))
    return [_one(title, methods, output / name, watcher, own) for title, name, own in arms]


def _sizes(
    methods: Sequence[str], output: Path, watcher: Watcher, options: dict[str, Any]
) -> Found:
    found: Found = []
    # The whole data come first: without --budget theirs is everybody's.
    for share in sorted(SIZES, reverse=True):
        title = f"With {100 * share:g} % of the training data"
        folder = output / f"size-{100 * share:g}"
        found.append(_one(title, methods, folder, watcher, options | {"share": share}))
        options["budget"] = found[0]["result"]["budget"]
    return found[::-1]


PROTOCOLS: dict[str, Callable[..., Found]] = {"with-sft": _with_sft, "sizes": _sizes}
"""Protocols by name."""

QUESTIONS = {
    "with-sft": (
        "Does it need SFT first?",
        "Alignment usually begins after supervised fine-tuning. Here each method also begins "
        "without it, with the same budget of its own; what the fine-tuning before it cost comes on "
        "top.",
    ),
    "sizes": (
        "How much feedback does it need?",
        "Each column trains on a part of the same feedback, every part inside the next larger one, "
        "at one budget: where there is less, it is seen more often.",
    ),
}
"""What a protocol asks, as a heading and in a sentence or two."""
