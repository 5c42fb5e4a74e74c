"""The rows that are measured, and the floating-point operations that they need.

Axes: N rows, T steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

DATA = Path(__file__).parents[2] / "shared" / "data"
PROFILE = ((34, 28, 20), (92, 60, 41), (137, 52, 96), (41, 75, 18), (215, 44, 63), (66, 30, 87))
"""Tokens of (prompt, chosen, rejected) where the real pairs are not present."""
WORDS = tuple("the sea was calm and every boat was home before the light had gone".split())  # noqa: SIM905


def pairs(data: str, count: int, skip: int = 0) -> tuple[list[Any], str]:
    """``count`` pairs of a data set and its name, or of a stated profile where it is not here."""
    import polyalign as pa
    from polyalign.feedback.records import Pair

    file = DATA / data / "train.jsonl.gz"
    if file.exists():
        return list(pa.read(str(file), limit=skip + count))[skip:], f"`{data}`"
    made = []
    for i in range(skip, skip + count):
        p, c, r = PROFILE[i % len(PROFILE)]
        text = [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(n)) for n in (p, c, r)]
        made.append(
            Pair(
                key=f"profile-{i}",
                prompt=({"role": "user", "content": text[0]},),
                chosen=({"role": "assistant", "content": text[1]},),
                rejected=({"role": "assistant", "content": text[2]},),
            )
        )
    return made, "made-up pairs of the lengths " + "; ".join(str(x) for x in PROFILE)


def units(encode: Any, records: Sequence[Any]) -> list[dict[str, list[int]]]:
    """Token ids of each pair, as polyalign encodes them: both sides get the same."""
    found = []
    for record in records:
        chosen = encode(record.prompt, record.chosen)
        rejected = encode(record.prompt, record.rejected)
        found.append(
            {
                "prompt_ids": list(chosen.context),
                "chosen_ids": chosen.steps.tolist(),
                "rejected_ids": rejected.steps.tolist(),
            }
        )
    return found


def matmul_rate(seconds: float = 3.0) -> float:
    """Floating-point operations a CPU second of matrix products of the model's shapes, now."""
    x, w = torch.randn(2048, 576), torch.randn(1536, 576)
    torch.nn.functional.linear(x, w)
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        torch.nn.functional.linear(x, w)
        count += 1
    return 2 * x.numel() * len(w) * count / (time.process_time() - start)


def gpu_rate(config: Any, dtype: torch.dtype, seconds: float = 3.0) -> float:
    """Floating-point operations a second of a gated layer's matrix product on the GPU, now."""
    made = {"device": "cuda", "dtype": dtype}
    x = torch.randn(16384, config.hidden_size, **made)
    w = torch.randn(config.intermediate_size, config.hidden_size, **made)

    def rounds() -> float:
        begin = time.perf_counter()
        for _ in range(20):
            torch.nn.functional.linear(x, w)
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    rounds()
    took = [rounds()]
    while sum(took) < seconds:
        took.append(rounds())
    return 2 * x.numel() * len(w) * 20 * len(took) / sum(took)


RANDOM: dict[str, dict[str, int]] = {
    "random-llama-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "random-llama-tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    },
}  # fmt: skip
"""Shapes of models with random weights, with SmolLM2's tokenizer and vocabulary."""


def model_of(name: str) -> str:
    """What a model of that name is loaded by: a folder, made once, for those of random weights."""
    if name not in RANDOM:
        return name
    from transformers import LlamaConfig, LlamaForCausalLM

    from polyalign.policies.language import models

    folder = models.cache_folder() / "benchmarks" / name
    if not (folder / "config.json").exists():
        tokenizer = models.load_tokenizer("smollm2")
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=8192, head_dim=None,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True, **RANDOM[name],
        )  # fmt: skip
        tokenizer.save_pretrained(folder)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def forward_operations(config: Any, context: int, completions: Sequence[int]) -> tuple[int, int]:
    """Operations of one pass over a context and its completions: layers, and output head.

    Each place once, the context shared; causal attention counts only what is seen; the head only
    where a completion's token is predicted.
    """
    c = config
    heads, key_heads = c.num_attention_heads, c.num_key_value_heads
    width = c.hidden_size // heads
    weights = (
        c.num_hidden_layers
        * c.hidden_size
        * (2 * heads * width + 2 * key_heads * width + 3 * c.intermediate_size)
    )
    own = [n - 1 for n in completions]
    places = context + sum(own)
    seen = context * (context + 1) // 2 + sum(n * context + n * (n + 1) // 2 for n in own)
    attention = c.num_hidden_layers * 4 * heads * width * seen
    return 2 * weights * places + attention, 2 * c.hidden_size * c.vocab_size * sum(completions)


def needed(config: Any, rows: Sequence[tuple[int, Sequence[int]]], work: str) -> float:
    """Operations that a work cannot do without, over groups of (context, completion lengths).

    "reference": one pass. "lora": policy and reference passes and the gradient of the states; the
    adapter's own are left out. "full": the weights' gradients too. "alone": "lora" without a
    reference.
    """
    layers = head = 0
    for context, completions in rows:
        a, b = forward_operations(config, context, completions)
        layers, head = layers + a, head + b
    passes = {"reference": (1, 1), "lora": (3, 3), "full": (4, 4), "alone": (2, 2)}[work]
    return float(passes[0] * layers + passes[1] * head)


def model_config(name: str) -> Any:
    """The text configuration of a model by name."""
    from transformers import AutoConfig

    from polyalign.policies.language.models import resolve

    return AutoConfig.from_pretrained(str(resolve(model_of(name)))).get_text_config()
