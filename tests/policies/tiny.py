"""Tiny random language models and a tokenizer with merges, made on the spot."""

from __future__ import annotations

from typing import Any

import torch

F64 = torch.float64
TEXT = [
    "the cat sat on the mat and the dog ran after the cat",
    "a prompt ends here and the answer begins there: yes or no, now or never",
    "Question: what is the answer? Answer: the answer is here",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str | None = TEMPLATE, bos: bool = False, pad: bool = True) -> Any:
    """A byte-level BPE tokenizer; ``bos`` lets it begin every text with <s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<|im_end|>", "<|im_start|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TEXT * 4,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>" if bos else None,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>" if pad else None,
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = template
    return made


def config(family: str, vocabulary: int = 340) -> Any:
    import transformers
    from transformers import CohereConfig, Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config

    size: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "eos_token_id": 1,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "initializer_range": 0.3,
    }
    if family == "llama":
        return LlamaConfig(**size)
    if family == "qwen2":
        return Qwen2Config(**size, tie_word_embeddings=True)
    if family == "gemma2":
        return Gemma2Config(
            **size, head_dim=4, sliding_window=5, final_logit_softcapping=3.0,
            query_pre_attn_scalar=4,
        )  # fmt: skip
    if family == "cohere":
        return CohereConfig(**size, logit_scale=0.25)
    if family == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=4, n_positions=128, eos_token_id=1,
            bos_token_id=1, initializer_range=0.3,
        )  # fmt: skip
    if family == "gemma3":
        return transformers.Gemma3TextConfig(
            **size, head_dim=4, sliding_window=5, query_pre_attn_scalar=4,
            layer_types=["sliding_attention", "full_attention"],
        )  # fmt: skip
    if family == "mistral":
        return transformers.MistralConfig(**size, sliding_window=6)
    if family == "mixtral":
        return transformers.MixtralConfig(
            **size, num_local_experts=4, num_experts_per_tok=2, sliding_window=None,
            experts_implementation="eager",  # the grouped product knows no float64
        )  # fmt: skip
    if family == "qwen3":
        return transformers.Qwen3Config(**size, head_dim=4)
    named = {
        "gpt_neox": transformers.GPTNeoXConfig,
        "phi": transformers.PhiConfig,
        "olmo": transformers.OlmoConfig,
        "olmo2": transformers.Olmo2Config,
    }
    if family in named:
        return named[family](**size)
    raise ValueError(family)


def model(family: str = "llama", dtype: torch.dtype = F64, seed: int = 0, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config(family), **more)
    return made.to(dtype).eval()


def policy(family: str = "llama", dtype: torch.dtype = F64, lora: Any = None, **more: Any) -> Any:
    """A whole or LoRA policy over a tiny model, in memory."""
    from polyalign.policies.language import adapters
    from polyalign.policies.language.policy import LanguagePolicy

    base = model(family, dtype)
    if lora is None:
        return LanguagePolicy(base, tokenizer(), **more)
    peft = adapters.attach(base, lora, 0, "tiny")
    return LanguagePolicy(peft.get_base_model(), tokenizer(), peft=peft, **more)
