"""The options of ``train`` as flags, read off the schema of a run: one text for one fact."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer

from polyalign.errors import OptionError, nearest
from polyalign.runs.config import ELSEWHERE, Lora, TrainConfig

PANELS = {
    "What": ("model", "data", "eval_data", "output", "columns", "limit", "rejects", "judge"),
    "How long and how fast": (
        *("epochs", "max_steps", "batch", "micro", "lr", "module_lr", "schedule", "warmup"),
        *("optimizer", "betas", "weight_decay", "clip", "seed", "paper_defaults"),
    ),
    "The model": (
        *("full", "lora_r", "lora_alpha", "lora_targets", "quantize", "fsdp"),
        *(
            "dtype",
            "device",
            "threads",
            "memory",
            "checkpointing",
            "reference_states",
            "precompute_references",
            "max_length",
            "max_prompt_length",
            "assistant",
            "trust_remote_code",
        ),
    ),
    "While it runs": (
        *("eval_every", "save_every", "keep", "early_stopping", "patience", "loggers", "samples"),
        *("max_new_tokens", "temperature", "top_p", "top_k", "sampler", "vllm_memory"),
    ),
}
"""Where a flag stands in ``train --help``."""

SHORT = {"model": "-m", "data": "-d", "output": "-o"}
HIDDEN = {"method", "hyper", "lora"}
"""Fields that are no flag of their own."""

Command = TypeVar("Command", bound=Callable[..., Any])


def flags() -> list[inspect.Parameter]:
    """One keyword parameter a field of :class:`TrainConfig` (and of its adapters), all optional."""
    panel_of = {name: panel for panel, names in PANELS.items() for name in names}
    found: dict[str, inspect.Parameter] = {}
    for name, field in TrainConfig.model_fields.items():
        if name not in HIDDEN:
            found[name] = _flag(name, field, str(field.description), panel_of.get(name))
    for name, field in Lora.model_fields.items():
        text = str(field.description)
        found[f"lora_{name}"] = _flag(f"lora_{name}", field, text, "The model")
    order = [*panel_of, *(name for name in found if name not in panel_of)]
    return [found[name] for name in order]


def _flag(name: str, field: Any, text: str, panel: str | None) -> inspect.Parameter:
    annotation, choices = _bare(field.annotation)
    spelled = "--" + name.replace("_", "-")
    default = field.get_default(call_default_factory=True)
    told = text
    if choices:
        told += f" ({', '.join(choices)})"
    if default not in (None, [], {}, False) and not field.is_required():
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        told += f" [default: {shown}]".replace("[", r"\[")
    kind: Any = str | None
    names = [SHORT[name], spelled] if name in SHORT else [spelled]
    metavar: str | None = _metavar(annotation, choices)
    if annotation is bool:
        kind, metavar = bool | None, None
        if field.default is None:
            names = [f"{spelled}/--no-{name.replace('_', '-')}"]
    elif get_origin(annotation) in (list, dict):
        kind = list[str] | None
        metavar = "OURS=YOURS" if get_origin(annotation) is dict else metavar
    option = typer.Option(*names, help=told, metavar=metavar, rich_help_panel=panel or "Other")
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _bare(annotation: Any) -> tuple[Any, list[str]]:
    """A type without None and bounds, and its choices where it is a list of words."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        first, *_ = (a for a in get_args(annotation) if a is not type(None))
        return _bare(first)
    if get_origin(annotation) is Literal:
        return str, [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) is list:
        return annotation, _bare(get_args(annotation)[0])[1]
    return annotation, []


def _metavar(annotation: Any, choices: Sequence[str]) -> str:
    if choices:
        return "NAME"
    if annotation in (int, float):
        return "N" if annotation is int else "X"
    if get_origin(annotation) is tuple:
        return "X,X"
    return "PATH" if annotation is Path else "TEXT"


def with_flags(command: Command) -> Command:
    """Give a function that takes ``**given`` every flag of a run as a parameter of its own."""
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    keyword_only = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own, *flags()]
    ]
    command.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword_only}
    return command


def values_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, as :class:`TrainConfig` takes them."""
    values = {name: value for name, value in given.items() if value not in (None, [], ())}
    lora = {n: values.pop(f"lora_{n}") for n in Lora.model_fields if f"lora_{n}" in values}
    if lora:
        if "," in str(lora.get("targets", "")):
            lora["targets"] = [name.strip() for name in lora["targets"].split(",")]
        values["lora"] = lora
    if "betas" in values:
        values["betas"] = [part.strip() for part in values["betas"].split(",")]
    if "columns" in values:
        values["columns"] = dict(assigned(text, "--columns") for text in values["columns"])
    return values


def assigned(text: str, where: str = "the command") -> tuple[str, str]:
    """``name=value`` as a pair; raises :class:`OptionError` for any other text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise OptionError(
            f"{where}: '{text}' is not name=value.",
            "Write the method's options as name=value (beta=0.2), the others with dashes (--lr).",
        )
    return name.strip(), value.strip()


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file; raises :class:`OptionError` with the line where it is no YAML."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"The configuration {path} cannot be read ({error.strerror}).", "Check --config."
        ) from None
    except UnicodeDecodeError:
        raise OptionError(
            f"The configuration {path} is not UTF-8 text.", "Save it as UTF-8."
        ) from (None)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise OptionError(
            f"{path}{at} is not YAML: {problem}.", "Write one `name: value` a line."
        ) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise OptionError(
            f"{path} holds a {type(found).__name__} and no names with values.",
            "Write one `name: value` a line, for example `method: dpo`.",
        )
    odd = next((name for name in found if not isinstance(name, str)), None)
    if odd is not None:
        raise OptionError(f"{path} has the name {odd!r}, which is no text.", "Write it in quotes.")
    return found


def near_option(name: str, method: str | None) -> str:
    """A mend for a flag that ``train`` does not have: perhaps it is the method's."""
    bare = name.replace("-", "_")
    fields = {parameter.name.replace("_", "-") for parameter in flags()}
    if bare in ELSEWHERE:
        said = (f"--{part}" for part in ELSEWHERE[bare].replace("=", " ").split(" or "))
        return f"Here it is {' or '.join(said)}."
    if method is None:
        return ""
    from polyalign.methods import catalogue

    entry = catalogue().get(method, {})
    if bare in entry.get("hyper", {}):
        return f"It is an option of {method}; write it without dashes: {bare}=…"
    mend = nearest(name, [*fields, *entry.get("hyper", {})])
    if not mend.startswith("Did you mean"):
        return ""
    guess = mend.split("?")[0].removeprefix("Did you mean ")
    return f"Did you mean {'--' + guess if guess in fields else guess + '=…'}?"
