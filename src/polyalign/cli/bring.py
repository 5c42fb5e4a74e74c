"""Come from elsewhere, and settle in: ``import-config`` and ``completion``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polyalign.cli.group import epilog
from polyalign.cli.methods import Json
from polyalign.cli.screen import emit, err, note, results_only, say
from polyalign.errors import OptionError, nearest

IMPORT = epilog(
    "polyalign import-config dpo_config.yaml",
    "polyalign import-config 'trl dpo --beta 0.1 --learning_rate 5e-7' --output run.yaml",
    "polyalign import-config sft.yaml --trainer sft --json",
)


def import_config(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="A TRL configuration, or a command in quotes.")
    ],
    trainer: Annotated[
        str | None, typer.Option(help="dpo, kto, orpo, cpo, sft or grpo, where it is not clear.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the configuration here (stdout).")
    ] = None,
    json: Json = False,
) -> None:
    """Turn a TRL configuration into one for polyalign train --config.

    Says of each flag what it became and what differs.
    """
    import yaml

    from polyalign.methods.trl.importer import import_config as read

    with results_only():
        found = read(source, trainer)
    text = yaml.safe_dump(found.options, sort_keys=False, allow_unicode=True)
    if output is not None:
        from polyalign.engine.storage import write_text_atomic

        write_text_atomic(output, text)
    if json:
        emit({"options": found.options, "notes": [asdict(line) for line in found.notes]})
        return
    console = err()
    for line in found.notes:
        became = line.became or "nothing"
        given = " (TRL's default)" if line.default else ""
        told = f"{line.flag}{given} → {became}" + (f"; {line.differs}" if line.differs else "")
        style = "yellow" if line.differs else "dim"
        console.print(told, markup=False, soft_wrap=True, style=style)
    if output is None:
        say(text.rstrip())
    else:
        say(f"written: {output}")
        note(f"Train with: polyalign train --config {output} --model … --data … --output …")


SHELLS = ("bash", "zsh", "fish")
COMPLETION = epilog(
    'eval "$(polyalign completion bash)"     # in ~/.bashrc',
    "polyalign completion zsh > ~/.zfunc/_polyalign",
    "polyalign completion fish > ~/.config/fish/completions/polyalign.fish",
)


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")] = "bash",
) -> None:
    """Print the script that completes commands, options and method names in your shell."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    if shell not in SHELLS:
        raise OptionError(
            f"There is no completion for the shell '{shell}'.", nearest(shell, SHELLS)
        )
    typer.echo(
        get_completion_script(
            prog_name="polyalign", complete_var="_POLYALIGN_COMPLETE", shell=shell
        )
    )
