"""The mistakes: what a user did, and a part of what polyalign says. One table."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.kit import CHATS, PAIRS, PROMPTS, SCORED, THUMBS, Answer, Kitchen, Setup, run

TRAIN = "train dpo -m tiny -d pairs.jsonl -o run"


def nothing(here: Kitchen) -> None:
    """No preparation."""


@dataclass(frozen=True)
class Mistake:
    """``did`` in words; ``typed`` after ``polyalign``; ``says`` stands in the answer."""

    id: str
    did: str
    typed: str
    says: str
    setup: Setup = nothing
    status: int = 2
    last: Sequence[str] = ()

    def provoke(self, here: Kitchen) -> Answer:
        """Make it."""
        self.setup(here)
        return run("--quiet", *self.typed.split(), *self.last)


# Preparations


def text(name: str, content: str) -> Setup:
    return lambda here: void(here.text(name, content))


def rows(name: str, content: Sequence[Any]) -> Setup:
    return lambda here: void(here.rows(name, content))


def binary(name: str, content: bytes) -> Setup:
    return lambda here: void((here.folder / name).write_bytes(content))


def lacking(*files: str) -> Setup:
    return lambda here: void(here.model("broken", files))


def a_run(name: str) -> Setup:
    return lambda here: here.run(name)


def void(_: object) -> None: ...


def edit(file: Path, **changes: Any) -> None:
    held = json.loads(file.read_text())
    file.write_text(json.dumps(held | changes))


def pickled(here: Kitchen) -> None:
    folder = here.model("broken", ["model.safetensors"])
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def cut_weights(here: Kitchen) -> None:
    file = here.model("broken") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def own_code(here: Kitchen) -> None:
    edit(here.model("broken") / "config.json", auto_map={"AutoModelForCausalLM": "m.Model"})


def no_end(here: Kitchen) -> None:
    edit(here.model("broken") / "tokenizer_config.json", eos_token=None)


def small_vocabulary(here: Kitchen) -> None:
    from tests.conftest import make_tiny_llama

    make_tiny_llama(here.folder / "broken", vocabulary=100)


def no_template(here: Kitchen) -> None:
    here.model("broken", ["chat_template.jinja"])
    here.rows("chats.jsonl", CHATS)


def both_forms(here: Kitchen) -> None:
    here.rows("mixed.jsonl", [*PAIRS[:4], *THUMBS[:4]])


def cut_gzip(here: Kitchen) -> None:
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in PAIRS).encode())
    (here.folder / "pairs.jsonl.gz").write_bytes(whole[: len(whole) // 2])


def one_bad_row(here: Kitchen) -> None:
    here.rows("flawed.jsonl", [*PAIRS, {"prompt": "Well?", "chosen": 3, "rejected": "No."}])


def other_data(here: Kitchen) -> None:
    here.run("stopped")
    here.rows("pairs.jsonl", PAIRS[:6])


def rotten_checkpoints(here: Kitchen) -> None:
    here.run("stopped")
    for file in (here.folder / "stopped" / "checkpoints").glob("*/*"):
        file.write_bytes(b"rotten")


def refuses(code: int) -> Setup:
    """The disk answers every write with this error."""

    def setup(here: Kitchen) -> None:
        from polyalign.engine import storage

        def write(file: int, data: Any) -> None:
            raise OSError(code, __import__("os").strerror(code))

        here.monkeypatch.setattr(storage.fs, "write", write)

    return setup


def no_wandb(here: Kitchen) -> None:
    here.monkeypatch.setitem(__import__("sys").modules, "wandb", None)


def hub_silent(here: Kitchen) -> None:
    from polyalign.policies.language import hub

    def ask(repo: str, timeout: float) -> list[str]:
        raise hub.HubUnreachable(
            f"The model hub cannot be reached for {repo} (no answer within {timeout:g} s).",
            "Give a model folder, or `smollm2`, which also comes from the package index.",
        )

    here.monkeypatch.delenv("HF_HUB_OFFLINE")
    here.monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    here.monkeypatch.setattr(hub, "_files", ask)


JUDGES = """
def score(prompt, completion):
    raise ValueError("no opinion")

def words(prompt, completion):
    return "good"
"""
ONLINE = "train grpo -m tiny -d prompts.jsonl -o run --max-steps 1 --max-new-tokens 4 G=2 L_max=4"

OWN = """
from polyalign.feedback.records import Pair
from polyalign.objectives import Pairwise, SumLogRatio
from polyalign.recipe import Method, Offline, Positive, method

@method(id="my-own", feedback=Pair)
def mine(beta: Positive = 1.0) -> Method:
    \"\"\"My own.\"\"\"
    return Offline(Pairwise(SumLogRatio(), scale=beta))
"""

COMMANDS = [
    Mistake("command", "Mistype a command", "tran dpo", "Did you mean train?"),
    Mistake("method-as-command", "Forget the verb", "dpo -m tiny", "dpo is a method"),
    Mistake("subcommand", "Mistype a command of data", "data chek pairs.jsonl", "mean check?"),
    Mistake("one-level", "Look one level too high", "check pairs.jsonl", "polyalign data check"),
    Mistake("option", "Mistype an option", f"{TRAIN} --epoch 2", "Did you mean --epochs?"),
    Mistake("dashes", "Write a method's option with dashes", f"{TRAIN} --beta 3", "beta=…"),
    Mistake("no-value", "Leave an option's value out", "train dpo --model", "--model"),
    Mistake("no-method", "Name no method", "train -m tiny -d pairs.jsonl", "needs a METHOD"),
    Mistake("no-model", "Name no model", "train dpo -d pairs.jsonl -o run", "--model smollm2"),
    Mistake("no-data", "Name no data", "train dpo -m tiny -o run", "--data FILE"),
    Mistake("no-output", "Name no run folder", "train dpo -m tiny -d pairs.jsonl", "--output"),
    Mistake("not-assigned", "Write an option without =", f"{TRAIN} beta 0.2", "name=value"),
    Mistake("lr", "Ask for no learning rate", f"{TRAIN} --lr 0", "greater than 0"),
    Mistake("batch", "Ask for half an example", f"{TRAIN} --batch 2.5", "batch='2.5'"),
    Mistake("schedule", "Mistype a choice", f"{TRAIN} --schedule cosin", "'cosine'"),
    Mistake("lora", "Ask for adapters of rank 0", f"{TRAIN} --lora-r 0", "lora.r"),
    Mistake("columns", "Give columns without =", f"{TRAIN} --columns prompt", "name=value"),
    Mistake("logger", "Mistype a logger", f"{TRAIN} --loggers wanb", "wandb"),
    Mistake(
        "logger-absent", "Ask for a logger that is not installed",
        f"{TRAIN} --loggers wandb", "wandb is not installed", no_wandb,
    ),
    Mistake("shell", "Ask completion of an unknown shell", "completion bush", "mean bash?"),
    Mistake("trl", "Import a flag that TRL does not have", "import-config", "Did you mean",
            last=["trl dpo --betta 0.1"]),
    Mistake("lab", "Ask the laboratory for the unknown", "lab dqo", "Did you mean"),
]  # fmt: skip

METHODS = [
    Mistake("method", "Mistype a method", "train dpoo -m tiny", "Did you mean dpo?"),
    Mistake("ambiguous", "Use a name that means several methods", "train rdpo", "several"),
    Mistake("alias", "Use the name of a method at certain options", "train cdpo", "loss=cdpo"),
    Mistake("verb", "Train what does not train", "train best-of-n", "does not train"),
    Mistake("measures", "Train what measures", "train preference-rankings", "--with preference-"),
    Mistake("trains", "Measure with what trains",
            "evaluate tiny -d pairs.jsonl --with simpo", "polyalign train simpo"),
    Mistake("dimension", "Group methods by the unknown", "methods --by referense", "reference?"),
    Mistake("value", "Ask for an unknown value", "methods --only data=ofline", "mean offline?"),
    Mistake("tag", "Mistype a tag", "methods --tag reference-fre", "reference-free"),
    Mistake("kind", "Ask methods for an unknown feedback", "methods --feedback pear",
            "mean pairs?"),
    Mistake("hyper", "Misspell a hyper-parameter", f"{TRAIN} bta=0.2", "Did you mean beta?"),
    Mistake("type", "Give words for a number", f"{TRAIN} beta=much", "beta='much'"),
    Mistake("range", "Leave the bounds of a hyper-parameter", f"{TRAIN} beta=-1", "greater than 0"),
    Mistake("choice", "Mistype a choice of the method", f"{TRAIN} loss=cdop", "'cdpo'"),
    Mistake("unused", "Give an option that would be ignored", f"{TRAIN} label_smoothing=0.1",
            "no place in loss=dpo"),
    Mistake("own-missing", "Name a method file that is not there", "train my.py:best", "no file"),
    Mistake("own-name", "Name a function that the file lacks", "train my.py:bset",
            "Did you mean best?", text("my.py", "def best(): ...\n")),
    Mistake("own-bare", "Forget to declare your method", "train my.py:best",
            "@polyalign.method", text("my.py", "def best(): ...\n")),
    Mistake("own-broken", "Name a method file with an error", "train my.py:best",
            "NameError", text("my.py", "best = wurst\n")),
    Mistake("environment", "Train a language model by acting",
            "train sac -m tiny -d prompts.jsonl -o run", "environment"),
    Mistake("paper", "Ask for a paper's defaults where it gives none",
            "train my.py:mine -m tiny -d pairs.jsonl -o run --paper-defaults",
            "gives no learning rate", text("my.py", OWN)),
]  # fmt: skip

DATA = [
    Mistake("file", "Mistype a file", "train dpo -m tiny -d pears.jsonl -o run", "pairs.jsonl"),
    Mistake("empty", "Give an empty file", "data check none.jsonl", "is empty",
            text("none.jsonl", "")),
    Mistake("ending", "Give a spreadsheet", "data check table.xlsx", "xlsx",
            binary("table.xlsx", b"PK\x03\x04")),
    Mistake("json", "Give text that is no JSON", "data check words.jsonl", "JSON",
            text("words.jsonl", "hello\nworld\n")),
    Mistake("encoding", "Give a file in Latin-1", "data check old.jsonl", "UTF-8",
            binary("old.jsonl", '{"prompt": "Café?", "chosen": "Oui.", "rejected": "é"}\n'
                   .encode("latin-1"))),
    Mistake("gzip", "Give a download that broke off", "data check pairs.jsonl.gz", "gz", cut_gzip),
    Mistake("column", "Give columns with other names", "train dpo -m tiny -d odd.jsonl -o run",
            "columns", rows("odd.jsonl", [{"question": "a", "good": "b", "bad": "c"}])),
    Mistake("mapping", "Map a column that is not there",
            f"{TRAIN} --columns prompt=question", "no column 'question'"),
    Mistake("mixed", "Mix two formats in one file", "data check mixed.jsonl", "mixed", both_forms),
    Mistake("nan", "Give scores that are no numbers", "data pair nan.jsonl -o p.jsonl", "scores",
            text("nan.jsonl", '{"prompt": "a", "completions": ["b", "c"], "scores": [NaN, 1]}\n')),
    Mistake("images", "Give images", "data check seen.jsonl", "images",
            rows("seen.jsonl", [{**PAIRS[0], "images": ["a.png"]}])),
    Mistake("wrong-kind", "Give thumbs to a method that learns from pairs",
            "train dpo -m tiny -d thumbs.jsonl -o run", "learns from pairs"),
    Mistake("prompts-only", "Give prompts to a method that needs answers",
            "train dpo -m tiny -d prompts.jsonl -o run", "learns from pairs"),
    Mistake("scored-kind", "Give scored answers without saying how they make pairs",
            "train dpo -m tiny -d scored.jsonl -o run", "polyalign data"),
    Mistake("stop", "Ask to stop at malformed rows",
            "train dpo -m tiny -d flawed.jsonl -o run --rejects stop", "row 9", one_bad_row),
    Mistake("too-short", "Leave no room for any answer",
            f"{TRAIN} --max-length 4 --max-prompt-length 4", "max_length"),
    Mistake("no-way", "Convert what cannot be converted",
            "data convert thumbs.jsonl --to pairs -o p.jsonl", "cannot be converted"),
    Mistake("unknown-kind", "Convert to an unknown kind",
            "data convert pairs.jsonl --to thumps -o p.jsonl", "thumps"),
    Mistake("threshold", "Convert scores to thumbs without a threshold",
            "data convert scored.jsonl --to binary -o b.jsonl", "threshold"),
    Mistake("idle-option", "Give a conversion's option without a conversion",
            "data convert scored.jsonl --threshold 0.5 -o b.jsonl", "--to"),
    Mistake("rule", "Mistype a pairing rule", "data pair scored.jsonl --rule best-wurst -o p.jsonl",
            "best-worst"),
    Mistake("not-scored", "Pair what has no scores", "data pair thumbs.jsonl -o p.jsonl", "scored"),
    Mistake("share", "Ask for all prompts in the test part", "data split pairs.jsonl --test 1",
            "between 0 and 1"),
    Mistake("tokens", "Ask for token lengths without a model",
            "data check pairs.jsonl --max-length 10", "--model"),
    Mistake("write-ending", "Write an unknown format", "data convert pairs.jsonl -o p.docx",
            ".docx"),
    Mistake("write-place", "Write below a file",
            "data convert pairs.jsonl -o prompts.jsonl/p.jsonl", "Cannot write"),
]  # fmt: skip

BROKEN = "train dpo -m broken -d pairs.jsonl -o run"
MODELS = [
    Mistake("no-model-folder", "Mistype a model folder",
            "train dpo -m ./tyni -d pairs.jsonl -o run", "Did you mean tiny?"),
    Mistake("no-model-name", "Mistype a model", "model get smolm2", "smollm2"),
    Mistake("source", "Mistype a source of models", "model get smollm2 --source hubb", "mean hub?"),
    Mistake("no-config", "Give a model without config.json", BROKEN, "config.json",
            lacking("config.json")),
    Mistake("no-tokenizer", "Give a model without tokenizer", BROKEN, "no tokenizer",
            lacking("tokenizer.json", "tokenizer_config.json")),
    Mistake("no-weights", "Give a model without weights", BROKEN, "no weights",
            lacking("model.safetensors")),
    Mistake("pickle", "Give a model with pickled weights only", BROKEN, "pickled", pickled),
    Mistake("cut-weights", "Give weights whose download broke off", BROKEN, "damaged", cut_weights),
    Mistake("own-code", "Give a model that brings its own code", BROKEN, "--trust-remote-code",
            own_code),
    Mistake("no-end", "Give a tokenizer without an end token", BROKEN, "eos_token", no_end),
    Mistake("vocabulary", "Give a tokenizer of another model", BROKEN, "embeds only 100",
            small_vocabulary),
    Mistake("no-template", "Give conversations to a model without chat template",
            "train dpo -m broken -d chats.jsonl -o run", "chat template", no_template),
    Mistake("a-run", "Give a run where a model belongs",
            "train dpo -m finished -d pairs.jsonl -o run", "finished/final", a_run("finished")),
    Mistake("adapter-full", "Train all weights of an adapter",
            "train dpo -m adapter/final -d pairs.jsonl -o run --full", "adapter", a_run("adapter")),
    Mistake("merge", "Merge what is no adapter", "model merge tiny -o merged", "not an adapter"),
    Mistake("offline", "Ask the hub while it is forbidden",
            "train dpo -m some/model -d pairs.jsonl -o run", "HF_HUB_OFFLINE"),
    Mistake("hub", "Ask a hub that does not answer", "model get some/model",
            "cannot be reached", hub_silent),
    Mistake("device", "Name a device that is none", f"{TRAIN} --device gpu0", "no device"),
]  # fmt: skip

RUNS = [
    Mistake("output-taken", "Train into a folder that holds a run",
            "train dpo -m tiny -d pairs.jsonl -o finished", "--resume", a_run("finished")),
    Mistake("output-file", "Train below a file",
            "train dpo -m tiny -d pairs.jsonl -o pairs.jsonl/r", "pairs.jsonl"),
    Mistake("disk-full", "Train until the disk is full", TRAIN, "space",
            refuses(errno.ENOSPC)),
    Mistake("permission", "Train where you may not write", TRAIN, "ermission",
            refuses(errno.EACCES)),
    Mistake("resume-nothing", "Continue a run that is not there", "train --resume runs/a",
            "not a run folder"),
    Mistake("resume-other", "Continue a run with another method", "train simpo --resume stopped",
            "is dpo, not simpo", a_run("stopped")),
    Mistake("resume-plan", "Continue a run with other data", "train --resume stopped",
            "--replan", other_data),
    Mistake("resume-rotten", "Continue from checkpoints that are all damaged",
            "train --resume stopped", "checkpoint", rotten_checkpoints),
    Mistake("replan", "Replan a new run", f"{TRAIN} --replan", "--resume"),
    Mistake("two-folders", "Continue one run into another", "train --resume stopped -o other",
            "two folders", a_run("stopped")),
    Mistake("stopping", "Stop early on a metric that is not measured",
            f"{TRAIN} --eval-data pairs.jsonl --early-stopping eval_reward --samples 0",
            "eval_loss"),
    Mistake("stopping-blind", "Stop early without held-out data",
            f"{TRAIN} --early-stopping eval_loss", "eval"),
    Mistake("yaml", "Write a configuration that is no YAML", "train --config run.yaml",
            "line 1", text("run.yaml", "method: dpo: x\n")),
    Mistake("yaml-list", "Write a list as configuration", "train --config run.yaml",
            "no names", text("run.yaml", "- dpo\n")),
    Mistake("yaml-key", "Misspell a name in a configuration", "train --config run.yaml",
            "Did you mean epochs?",
            text("run.yaml", "method: dpo\nmodel: tiny\ndata: pairs.jsonl\noutput: r\nepoch: 2\n")),
    Mistake("yaml-missing", "Name a configuration that is not there", "train --config no.yaml",
            "no.yaml"),
    Mistake("report", "Report on what is no run", "report tiny", "tiny"),
]  # fmt: skip

JUDGING = [
    Mistake("judge-missing", "Name a judge file that is not there",
            f"{ONLINE} --judge mine.py:score", "does not exist"),
    Mistake("judge-bare", "Name a judge file without a function", f"{ONLINE} --judge mine.py",
            "names no function", text("mine.py", JUDGES)),
    Mistake("judge-name", "Mistype a judge's function", f"{ONLINE} --judge mine.py:scor",
            "Did you mean score?", text("mine.py", JUDGES)),
    Mistake("judge-raises", "Give a judge that fails", f"{ONLINE} --judge mine.py:score",
            "no opinion", text("mine.py", JUDGES)),
    Mistake("judge-words", "Give a judge that answers in words", f"{ONLINE} --judge mine.py:words",
            "mine.py:words", text("mine.py", JUDGES)),
    Mistake("judge-none", "Sample without a judge", ONLINE, "judge"),
    Mistake("evaluate-data", "Evaluate on a file that is not there",
            "evaluate tiny --data helt.jsonl", "helt.jsonl"),
    Mistake("evaluate-kind", "Evaluate on feedback that ranks nothing",
            "evaluate tiny --data thumbs.jsonl", "evaluation reads"),
    Mistake("baseline", "Compare with a baseline without a judge",
            "evaluate tiny --data pairs.jsonl --baseline tiny --samples 0", "judge"),
    Mistake("sample-none", "Ask for no answer", "sample tiny Hello --n 0", "n=0"),
    Mistake("sample-twice", "Give prompts twice", "sample tiny Hello --prompts prompts.jsonl",
            "twice"),
]  # fmt: skip

SECTIONS = {
    "Commands and options": COMMANDS,
    "Methods and their options": METHODS,
    "Feedback": DATA,
    "Models": MODELS,
    "Runs and configurations": RUNS,
    "Judges, evaluation and samples": JUDGING,
}
"""The table, by what a mistake is about."""

MISTAKES = [mistake for part in SECTIONS.values() for mistake in part]
__all__ = ["MISTAKES", "PROMPTS", "SCORED", "SECTIONS", "Mistake"]
