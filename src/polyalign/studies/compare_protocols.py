"""Ready designs of comparisons: the questions of "Insights into Alignment" (2404.14723).

Does a method need SFT first (from the model as it is, and from the model after SFT; name an
instruct model to ask about that), and how much feedback does it need (nested parts of the data)?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polyalign.errors import OptionError, nearest
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
    watcher: Watcher | None = None,
    **options: Any,
) -> Found:
    """Run the comparisons of a protocol, each into a folder of its own below ``output``.

    ``with-sft``: from the model, and from the model after SFT on the better answers. ``sizes``:
    over nested shares of the training data, at the same budget, so smaller shares are seen more
    often. Returns (title, folder, result) of each. Raises :class:`OptionError` for an unknown name.
    """
    if protocol not in PROTOCOLS:
        raise OptionError(f"There is no protocol '{protocol}'.", nearest(protocol, PROTOCOLS))
    return PROTOCOLS[protocol](methods, Path(output), watcher or Silent(), options)


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
    return [
        _one("Without SFT: from the model as it is", methods, output / "without-sft", watcher,
             options),
        _one("With SFT: from the model after SFT on the better answers", methods,
             output / "with-sft", watcher, after),
    ]  # fmt: skip


def _sizes(
    methods: Sequence[str], output: Path, watcher: Watcher, options: dict[str, Any]
) -> Found:
    return [
        _one(
            f"With {100 * share:g} % of the training data",
            methods,
            output / f"size-{100 * share:g}",
            watcher,
            options | {"share": share},
        )
        for share in SIZES
    ]


PROTOCOLS: dict[str, Callable[..., Found]] = {"with-sft": _with_sft, "sizes": _sizes}
"""Protocols by name."""
