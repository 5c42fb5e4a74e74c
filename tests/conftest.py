"""Fixtures that every room's tests share: real data, a real small model, a tiny random one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Machines differ and are shared: how long an example takes says nothing about correctness. All
# draw the same examples, so that a change is judged by what it changes; EXPLORE=1 draws new ones.
settings.register_profile(
    "polyalign", deadline=None, max_examples=50, derandomize=not os.environ.get("EXPLORE")
)
settings.load_profile("polyalign")

ROOT = Path(__file__).resolve().parent.parent

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real feedback sets beside the repository; the test is skipped without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data sets in ../shared/data, which are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def smollm2():
    """The real SmolLM2-135M-Instruct as a ``ModelFolder``, brought once to the user's cache.

    ``get_model`` holds a file lock while it downloads, so parallel workers bring it once.
    """
    from polyalign.policies.language.models import get_model

    return get_model("smollm2")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder made here: a random two-layer Llama over bytes, with a chat template."""
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


def make_tiny_llama(folder: Path, *, seed: int = 0, vocabulary: int | None = None) -> Path:
    """Write a random Llama (hidden 32, 2 layers) and a byte-level ChatML tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    pieces = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=vocabulary or len(pieces),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
