"""polyalign's side of each measurement: its session, engine and sampling, without files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.child import Clock, share
from benchmarks.work import WORDS, model_of, pairs, units


def _policy(spec: dict[str, Any], **more: Any) -> Any:
    from polyalign.policies.language.adapters import LoraSpec
    from polyalign.policies.language.policy import LanguagePolicy

    lora = LoraSpec(r=16, alpha=32.0) if spec.get("lora") else None
    return LanguagePolicy.from_pretrained(
        model_of(spec["model"]),
        lora=lora,
        quantize=spec.get("quantize"),
        device=spec.get("device", "cpu"),
        dtype=spec.get("dtype", "float32"),
        **more,
    )


def _session(spec: dict[str, Any], method: Any, policy: Any, records: list[Any]) -> Any:
    from polyalign.loops.session import Session, Settings
    from polyalign.runs.memory import ENOUGH

    settings = Settings(
        batch=spec["batch"],
        # What a run plans where memory is not short.
        budget=ENOUGH.get(spec.get("device", "cpu"), 16384),
        lr=spec["lr"],
        schedule="constant",
        warmup=0.0,
        clip=1.0,
        optimizer=spec.get("optimizer", "adamw"),
        references_first=not spec.get("lora"),  # what a run does where all weights train
    )
    session = Session(
        lambda progress: method,
        policy,
        records,
        settings,
        reopen=None if spec.get("lora") else lambda: _policy(spec).settle(),
    )
    session.open()
    return session


def train(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Optimizer steps of an offline method on pairs, in order."""
    from polyalign import methods
    from polyalign.feedback.draws import draw
    from polyalign.feedback.units import assemble, make_units
    from polyalign.loops.epochs import stage_needs

    batch, steps = spec["batch"], spec["steps"]
    records, _ = pairs(spec["data"], batch * steps)
    policy = _policy(spec)
    method = methods.get(spec["method"])(**spec.get("hyper", {}))
    if spec["method"] in ("kto",):
        from polyalign.feedback.records import Binary

        records = [
            Binary(key=r.key + tag, prompt=r.prompt, completion=answer, label=label)
            for r in records
            for tag, answer, label in (("+", r.chosen, True), ("-", r.rejected, False))
        ]
        batch = 2 * batch
    if spec["method"] in ("oreo",):
        from polyalign.feedback.records import Scored

        records = [
            Scored(
                key=r.key,
                prompt=r.prompt,
                completions=(r.chosen, r.rejected),
                scores=(1.0, 0.0),
            )
            for r in records
        ]
    session = _session(spec, method, policy, records)
    needs = stage_needs(session)
    losses, norms, tokens = [], [], 0

    def batch_of(step: int) -> Any:
        part = make_units(records[step * batch : (step + 1) * batch], list(range(batch)), needs, 0)
        return draw(assemble(part, policy.encode), needs, 0)

    clock.start()
    session.references.ahead(batch_of, steps)
    clock.stop()
    before = clock.steps.pop()
    for step in range(steps):
        row = session.train(session.references.fill(batch_of(step), step), steps)
        clock.stop()
        losses.append(row["loss"])
        norms.append(row["grad_norm"])
        tokens = session.position["tokens"]
    share(clock, before)
    return {"steps": clock.steps, "losses": losses, "norms": norms, "decisions": tokens}


def group(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Updates by a group-relative policy gradient on fixed groups of completions."""
    from polyalign import methods
    from polyalign.types import Batch, Row, Rows

    policy = _policy(spec)
    method = methods.get("grpo")(G=spec["n"], beta=0.0)
    session = _session(spec, method, policy, [])
    losses, norms = [], []
    clock.start()
    for contexts, completions, advantages in groups(spec, policy.encode):
        rows = [
            Row(tuple(c), torch.tensor(x), torch.ones(len(x), dtype=torch.bool))
            for c, answers in zip(contexts, completions)
            for x in answers
        ]
        collated = Rows.collate(rows)
        n = len(rows)
        with torch.no_grad():
            old = policy.score(collated).logp
        field = torch.tensor(advantages, dtype=torch.float64).flatten()
        batch = Batch(
            collated,
            {"own": torch.arange(n)},
            torch.ones(n, dtype=torch.float64),
            {"advantage": field, "reward": field},
            tuple(str(i) for i in range(n)),
            old=old,
        )
        clock.start()
        row = session.train(batch, spec["steps"])
        clock.stop()
        losses.append(row["loss"])
        norms.append(row["grad_norm"])
    return {"steps": clock.steps, "losses": losses, "norms": norms}


def groups(spec: dict[str, Any], encode: Any) -> list[Any]:
    """For each step contexts, ``n`` completions of each and their advantages, all fixed."""
    made = torch.Generator().manual_seed(0)
    records, _ = pairs(spec["data"], spec["batch"] * spec["steps"])
    found = units(encode, records)
    out = []
    for step in range(spec["steps"]):
        mine = found[step * spec["batch"] : (step + 1) * spec["batch"]]
        contexts = [x["prompt_ids"] for x in mine]
        completions, advantages = [], []
        for x in mine:
            whole = (x["chosen_ids"] + x["rejected_ids"]) * 8
            cut = torch.randint(16, 97, (spec["n"],), generator=made).tolist()
            start = torch.randint(0, 40, (spec["n"],), generator=made).tolist()
            completions.append([whole[a : a + size] for a, size in zip(start, cut)])
            reward = torch.randn(spec["n"], generator=made, dtype=torch.float64)
            advantages.append(((reward - reward.mean()) / (reward.std() + 1e-4)).tolist())
        out.append((contexts, completions, advantages))
    return out


def reference(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Log-probabilities of all rows under a constant policy."""
    from polyalign.feedback.units import assemble, make_units
    from polyalign.types import Needs

    batch = spec["batch"]
    records, _ = pairs(spec["data"], batch * spec["steps"])
    policy = _policy(spec, frozen=True)
    needs = Needs(roles=frozenset({"chosen", "rejected"}))
    sums: list[float] = []
    policy.trunk.layout()
    clock.start()
    for step in range(spec["steps"]):
        part = make_units(records[step * batch : (step + 1) * batch], list(range(batch)), needs, 0)
        made = assemble(part, policy.encode)
        with torch.no_grad():
            sums += policy.score(made.rows).logp.sum(-1).tolist()
        clock.stop()
    return {"steps": clock.steps, "losses": [sum(sums) / len(sums)]}


def sample(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """``n`` completions of each prompt."""
    from polyalign.protocols import Sampling

    records, _ = pairs(spec["data"], spec["prompts"])
    policy = _policy(spec, **({} if spec.get("lora") else {"frozen": True}))
    policy.template.__dict__["stops"] = frozenset(spec["stops"])
    contexts = [r.prompt for r in records]
    policy.sample(contexts[:2], 2, Sampling(max_steps=2), range(4))
    clock.start()
    how = Sampling(max_steps=spec["new"])
    rollout = policy.sample(contexts, spec["n"], how, range(len(contexts) * spec["n"]))
    clock.stop()
    return {"steps": clock.steps, "tokens": sum(len(row.steps) for row in rollout.rows)}


def memory(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """A whole run, from its plan to the saved model."""
    import polyalign as pa

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        rows = _long(*spec["made"]) if "made" in spec else _real(spec)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        clock.start()
        pa.train(
            "dpo",
            model=model_of(spec["model"]),
            data=str(data),
            output=f"{folder}/run",
            batch=spec["batch"],
            max_steps=spec["steps"],
            samples=0,
            **spec["options"],
        )
        clock.stop()
        plan = json.loads((Path(folder) / "run" / "plan.json").read_text("utf-8"))
    names = ("micro", "checkpointing", "memory_bytes", "memory_limit", "longest")
    return {"steps": clock.steps, "plan": {name: plan[name] for name in names}}


def _real(spec: dict[str, Any]) -> list[dict[str, Any]]:
    records, _ = pairs(spec["data"], spec["batch"] * spec["steps"])
    return [
        {
            name: [dict(turn) for turn in getattr(r, name)]
            for name in ("prompt", "chosen", "rejected")
        }
        for r in records
    ]


def _long(context: int, answer: int) -> list[dict[str, Any]]:
    """Eight pairs with about so many tokens in prompts and answers."""
    words = (WORDS * (context // len(WORDS) + 2), WORDS * (answer // len(WORDS) + 2))
    return [
        {
            "prompt": " ".join(words[0][i : i + context]),
            "chosen": " " + " ".join(words[1][i : i + answer]),
            "rejected": " " + " ".join(words[1][i + 1 : i + 1 + answer]),
        }
        for i in range(8)
    ]


def rate(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Matrix products of the model's shapes."""
    from benchmarks.work import gpu_rate, matmul_rate, model_config

    if spec.get("device") == "cuda":
        return {"rate": gpu_rate(model_config(spec["model"]), getattr(torch, spec["dtype"]))}
    return {"rate": matmul_rate()}


def grow(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Gradients of the log-probabilities of one group on a small random model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from polyalign.policies.language.policy import LanguagePolicy
    from polyalign.policies.language.template import Template
    from polyalign.types import Row, Rows

    config = LlamaConfig(
        vocab_size=spec["vocabulary"],
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    )
    from polyalign.policies.language import models

    tokenizer = models.load_tokenizer(model_of(spec["model"]))
    model = LlamaForCausalLM(config)
    model.get_input_embeddings().requires_grad_(False)
    model.lm_head.requires_grad_(False)
    policy = LanguagePolicy(model, tokenizer, template=Template(tokenizer))
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 32000, (spec["context"] + 64 * spec["completions"],), generator=made)
    context = tuple(ids[: spec["context"]].tolist())
    answers = ids[spec["context"] :].reshape(spec["completions"], 64)
    rows = Rows.collate([Row(context, x, torch.ones(64, dtype=torch.bool)) for x in answers])
    policy.trunk.layout()
    for _ in range(spec["steps"]):
        clock.start()
        policy.score(rows).logp.sum().backward()
        clock.stop()
    return {"steps": clock.steps, "places": len(ids)}


def trunk(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Gradients of adapters through the layers alone, of one row of "places" tokens: by our layers,
    by the model's own ("own"), or by those compiled ("compiled"; compiling is in the first step).
    """
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 32000, (1, spec["places"]), generator=made)
    if spec["how"] == "ours":
        from polyalign.policies.language.layout import lay
        from polyalign.types import Row, Rows

        policy = _policy(spec)
        rows = Rows.collate([Row((1,), ids[0], torch.ones(len(ids[0]), dtype=torch.bool))])
        laid = lay(rows, policy.trunk.layout())

        def states() -> torch.Tensor:
            return policy.trunk.states(laid)
    else:
        from peft import get_peft_model

        from benchmarks.peer import _loaded, _lora

        inner = get_peft_model(_loaded(spec)[0], _lora(spec)).get_base_model().model
        own = torch.compile(inner) if spec["how"] == "compiled" else inner

        def states() -> torch.Tensor:
            return own(input_ids=ids, use_cache=False).last_hidden_state

    for _ in range(spec["steps"]):
        clock.start()
        states().sum().backward()
        clock.stop()
    return {"steps": clock.steps, "places": spec["places"]}
