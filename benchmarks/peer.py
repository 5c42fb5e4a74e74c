"""TRL's side of each measurement, and that of `generate`: the same rows, model and optimizer."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from benchmarks.child import Clock, share
from benchmarks.work import model_of, pairs, units


def _loaded(spec: dict[str, Any]) -> tuple[Any, Any]:
    from polyalign.policies.language import models

    name, device = model_of(spec["model"]), spec.get("device", "cpu")
    # What trains is held in float32, here as there; under adapters the base is as it is computed.
    dtype = spec.get("dtype", "float32") if spec.get("lora") else "float32"
    return models.load_model(name, dtype=dtype, device=device), models.load_tokenizer(name)


def _tokenised(spec: dict[str, Any], count: int) -> list[dict[str, list[int]]]:
    from polyalign.policies.language.defaults import template_of

    records, _ = pairs(spec["data"], count)
    model, tokenizer = _loaded(spec)
    return units(_encode(template_of(model, tokenizer)), records)


def encoder(name: str) -> Any:
    """How polyalign encodes a prompt and an answer with a model's tokenizer."""
    from polyalign.policies.language.defaults import template_of

    return _encode(template_of(*_loaded({"model": name})))


def _encode(template: Any) -> Any:
    return lambda prompt, answer: template.encode(prompt, answer).row


def _lora(spec: dict[str, Any]) -> Any:
    from peft import LoraConfig

    if not spec.get("lora"):
        return None
    return LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _arguments(spec: dict[str, Any], folder: str, **more: Any) -> dict[str, Any]:
    best = spec["side"] == "best"
    return {
        "output_dir": folder,
        "max_steps": spec["steps"],
        "per_device_train_batch_size": spec["batch"],
        "learning_rate": spec["lr"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "bf16": spec.get("dtype") == "bfloat16",
        "use_cpu": spec.get("device", "cpu") == "cpu",
        "gradient_checkpointing": not best,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    } | more


def _callback(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        def on_train_begin(self, *args: Any, **more: Any) -> None:
            clock.start()

        def on_step_end(self, *args: Any, **more: Any) -> None:
            clock.stop()

    return Timed()


def _rows(trainer: Any) -> dict[str, list[float]]:
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return {
        "losses": [row["loss"] for row in logged],
        "norms": [row.get("grad_norm", 0.0) for row in logged],
    }


def train(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """DPOTrainer; "best": reference precomputed, pairs of like length together, no checkpointing.

    Its chunked log-probabilities are on in both.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    best = spec["side"] == "best"
    rows = _tokenised(spec, spec["batch"] * spec["steps"])
    if best:
        rows.sort(key=lambda x: len(x["prompt_ids"]) + len(x["chosen_ids"] + x["rejected_ids"]))

    class OnTokens(DPOTrainer):
        """The trainer on rows that are tokenised already: those that polyalign computes."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    model, tokenizer = _loaded(spec)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            **_arguments(spec, folder),
            beta=0.1,
            max_length=None,
            precompute_ref_log_probs=best,
            train_sampling_strategy="sequential",
        )
        clock.start()
        trainer = OnTokens(
            model,
            None,
            arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=_lora(spec),
            callbacks=[_callback(clock)],
        )
        clock.stop()
        before = clock.steps.pop()
        trainer.train()
    if best:
        share(clock, before)
    return {"steps": clock.steps, **_rows(trainer)}


def group(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """GRPOTrainer's update on fixed groups."""
    from datasets import Dataset
    from torch.nn.utils.rnn import pad_sequence
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.ours import groups
    from polyalign.policies.language.defaults import template_of

    model, tokenizer = _loaded(spec)
    fixed = iter(groups(spec, _encode(template_of(model, tokenizer))))

    class OnGroups(GRPOTrainer):
        """The trainer on given completions instead of those that it would sample."""

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            contexts, completions, advantages = next(fixed)
            prompts = [torch.tensor(c) for c, xs in zip(contexts, completions) for _ in xs]
            answers = [torch.tensor(x) for xs in completions for x in xs]

            def padded(rows: list[Any], side: str) -> tuple[Any, Any]:
                ids = pad_sequence(rows, batch_first=True, padding_side=side)
                ones = [torch.ones_like(row) for row in rows]
                return ids, pad_sequence(ones, batch_first=True, padding_side=side)

            prompt_ids, prompt_mask = padded(prompts, "left")
            completion_ids, completion_mask = padded(answers, "right")
            clock.start()
            made = {
                "prompt_ids": prompt_ids,
                "prompt_mask": prompt_mask,
                "completion_ids": completion_ids,
                "completion_mask": completion_mask,
                "advantages": torch.tensor(advantages).flatten(),
                "num_items_in_batch": completion_mask.sum(),
            }
            return {name: value.to(self.accelerator.device) for name, value in made.items()}

    n = spec["n"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            **_arguments(spec, folder, per_device_train_batch_size=spec["batch"] * n),
            num_generations=n,
            beta=0.0,
            loss_type="grpo",
            scale_rewards="group",
        )
        trainer = OnGroups(
            model,
            lambda completions, **more: [0.0] * len(completions),
            arguments,
            train_dataset=Dataset.from_list([{"prompt": "a"}] * spec["batch"] * spec["steps"]),
            processing_class=tokenizer,
            peft_config=_lora(spec),
            callbacks=[_callback(clock)],
        )
        trainer.train()
    return {"steps": clock.steps, **_rows(trainer)}


def reference(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """DPOTrainer's reference log-probabilities, batch after batch."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = _tokenised(spec, spec["batch"] * spec["steps"])
    if spec["side"] == "best":
        rows.sort(key=lambda x: len(x["prompt_ids"]) + len(x["chosen_ids"] + x["rejected_ids"]))

    class OnTokens(DPOTrainer):
        """The trainer on rows that are tokenised already."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    model, tokenizer = _loaded(spec)
    sums: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = OnTokens(
            model,
            None,
            DPOConfig(**_arguments(spec, folder), max_length=None),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=_lora({"lora": True}),
        )
        clock.start()
        for step in range(spec["steps"]):
            batch = trainer.data_collator(rows[step * spec["batch"] : (step + 1) * spec["batch"]])
            for part in trainer.compute_ref_log_probs(trainer.model, batch):
                sums += part.tolist()
            clock.stop()
    return {"steps": clock.steps, "losses": [sum(sums) / len(sums)]}


def sample(spec: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """`generate` with ``rows`` rows a batch, prompts of like length together."""
    from polyalign.policies.language.defaults import template_of

    records, _ = pairs(spec["data"], spec["prompts"])
    model, tokenizer = _loaded(spec)
    if spec.get("lora"):
        from peft import get_peft_model

        model = get_peft_model(model, _lora(spec)).eval()
    template = template_of(model, tokenizer)
    contexts = sorted((template.context(r.prompt, room=spec["new"]) for r in records), key=len)
    n, rows = spec["n"], spec["rows"]
    most = max(rows // n, 1)
    tokens = 0
    clock.start()
    for start in range(0, len(contexts), most):
        part = contexts[start : start + most]
        size = max(map(len, part))
        ids = torch.tensor([[0] * (size - len(c)) + list(c) for c in part])
        mask = torch.tensor([[0] * (size - len(c)) + [1] * len(c) for c in part])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            num_return_sequences=n,
            max_new_tokens=spec["new"],
            eos_token_id=spec["stops"] or None,
            pad_token_id=0,
        )
        new = out[:, size:]
        stops = torch.tensor(spec["stops"], dtype=torch.long)
        ended = torch.isin(new, stops)
        before = ended.cumsum(1) - ended.long()
        tokens += int((before == 0).sum())
    clock.stop()
    return {"steps": clock.steps, "tokens": tokens}
