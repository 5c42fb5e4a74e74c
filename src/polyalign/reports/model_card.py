"""The model card of a finished run: README.md beside the weights, with what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

import polyalign
from polyalign.engine.storage import write_text_atomic
from polyalign.errors import RunError
from polyalign.feedback.conditioning import Condition
from polyalign.reports import words
from polyalign.reports.pieces import story
from polyalign.reports.results import results
from polyalign.reports.rundata import RunData, display, read_run

OWN = (
    "batch", "epochs", "max_steps", "lr", "module_lr", "optimizer", "schedule", "warmup", "seed",
    "dtype", "max_length", "lora", "quantize",
)  # fmt: skip
"""Entries of the plan that are hyper-parameters of the training."""

QUANTISED = {
    "4bit": (
        ", BitsAndBytesConfig",
        ", quantization_config=BitsAndBytesConfig(\n    load_in_4bit=True, "
        'bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True\n)',
    ),
    "8bit": (
        ", BitsAndBytesConfig",
        ", quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    ),
}
"""How the base of an adapter is loaded as it was trained on: an import, and an argument."""


def write_model_card(run: str | Path) -> Path:
    """Write ``final/README.md`` of a run folder; write it again after ``evaluate`` for its figures.

    Raises :class:`RunError` for a run without a final model.
    """
    data = read_run(run)
    folder = data.path / "final"
    if not folder.is_dir():
        raise RunError(
            f"{data.path} has no final model to describe.",
            f"Finish it with: polyalign train --resume {data.path}",
        )
    adapter = (folder / "adapter_config.json").is_file()
    write_text_atomic(folder / "README.md", model_card(data, adapter=adapter))
    return folder / "README.md"


def model_card(run: RunData, *, adapter: bool) -> str:
    """The card as Markdown with YAML metadata; ``adapter`` says how the model is loaded."""
    parts = [
        f"---\n{yaml.safe_dump(metadata(run, adapter), sort_keys=False, allow_unicode=True)}---",
        f"# {run.model} aligned with {run.method}",
        " ".join(story(run)),
        "## How to load it",
        loading(run, adapter),
        "## What was measured",
        _measured(run),
    ]
    if run.advice:
        parts += ["## Worth knowing", "\n".join(f"- {a.text} (step {a.step})" for a in run.advice)]
    parts += ["## Training", _training(run), "## Versions", _versions(run)]
    if run.arxiv:
        parts += [
            "## Paper",
            f"The method is described in [arXiv {run.arxiv}](https://arxiv.org/abs/{run.arxiv}).",
        ]
    return "\n\n".join(parts) + "\n"


def metadata(run: RunData, adapter: bool) -> dict[str, Any]:
    """The metadata that model hubs read."""
    found: dict[str, Any] = {
        "base_model": run.model,
        "base_model_relation": "adapter" if adapter else "finetune",
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["polyalign", "alignment", run.method],
    }
    if run.arxiv:
        found["tags"].append(f"arxiv:{run.arxiv}")
    accuracy = ((run.evaluation.get("ranking") or {}).get("accuracy") or {}).get("implicit")
    if accuracy and accuracy.get("value") is not None:
        source = str((run.evaluation.get("data") or {}).get("source", "held-out pairs"))
        found["model-index"] = [
            {
                "name": run.name,
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": display(source), "type": "preference"},
                        "metrics": [
                            {
                                "type": "accuracy",
                                "name": "ranking accuracy of the implicit reward",
                                "value": round(accuracy["value"], 4),
                            }
                        ],
                    }
                ],
            }
        ]
    return found


def loading(run: RunData, adapter: bool) -> str:
    """Code that loads the model with public libraries and asks it as it was trained to be."""
    messages: Any = ({"role": "user", "content": "What is gravity?"},)
    written = run.final.get("condition")
    how = ""
    if written:
        condition = Condition.read(written)
        messages = condition.ask(messages)
        how = (
            f"\n\nIt was trained on prompts with a condition, and is to be asked with one: "
            f"`{condition.text.strip()}`, with a number from {condition.least:g} to "
            f"{condition.most:g} in the place of the braces, {condition.value:g} for the best. "
            "`polyalign sample` and `polyalign evaluate` write it by themselves (`--condition`)."
        )
    loader = (
        "from peft import AutoPeftModelForCausalLM as Model"
        if adapter
        else "from transformers import AutoModelForCausalLM as Model"
    )
    quantize = run.plan.get("quantize") if adapter else None
    more, option = QUANTISED.get(str(quantize), ("", ""))
    return f"""```python
{loader}
from transformers import AutoTokenizer{more}

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = Model.from_pretrained(folder{option})
messages = {json.dumps(list(messages))}
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
output = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```{how}"""


def _measured(run: RunData) -> str:
    lines = results(run)
    if not lines:
        return (
            "Nothing was measured on held-out data. `polyalign evaluate RUN --data FILE` does it."
        )
    rows = [
        f"| {_cell(x.measure)} | {_cell(x.before)} | {_cell(x.after)} | {_cell(x.change)} | "
        f"{_cell(x.n or x.hint)} |"
        for x in lines
    ]
    head = [
        "| measure | before | after | change | measured on |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows]) + "\n\nBrackets hold 95 % intervals, resampling prompts."


def _training(run: RunData) -> str:
    plan = run.plan
    hyper = plan.get("hyper") or run.config.get("hyper") or {}
    rows = [(name, value) for name, value in hyper.items()]
    rows += [(name, plan[name]) for name in OWN if plan.get(name) is not None]
    data = ", ".join(display(d) for d in run.config.get("data") or [])
    if data:
        rows.insert(0, ("data", f"{data} (fingerprint {run.final.get('data', 'unknown')})"))
    out = ["| option | value |", "| --- | --- |"]
    return "\n".join([*out, *(f"| {_cell(n)} | {_cell(_value(v))} |" for n, v in rows)])


def _versions(run: RunData) -> str:
    names = {"polyalign": polyalign.__version__} | {
        name: str(run.plan[name]) for name in ("torch", "python") if run.plan.get(name)
    }
    return "\n".join(f"- {name} {version}" for name, version in names.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(x)}" for name, x in value.items())
    return words.number(value) if not isinstance(value, list) else ", ".join(map(str, value))


def _cell(text: Any) -> str:
    """Text for a cell of a Markdown table: bars and line ends would break it."""
    return str(text).replace("|", "\\|").replace("\n", " ")
