"""The tiny language model: built byte by byte, trained by our own loops, kept in the user's cache.

It lies there as an ordinary model folder, so ``--model tiny-lm`` works wherever a model is named.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from polyalign.feedback.records import Demonstration
from polyalign.loops.run import run as run_session
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.methods import get
from polyalign.policies.language.folders import NOTE, cache_folder, read_json
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Sampling
from polyalign.worlds.tiny_lm import TinyLm

NAME = "tiny-lm"


@dataclass(frozen=True)
class Recipe:
    """Size of the model and how it is trained; a changed recipe is trained anew."""

    method: str = "sft"
    hidden: int = 96
    layers: int = 2
    heads: int = 4
    feed_forward: int = 256
    demonstrations: int = 6000
    steps: int = 320
    batch: int = 48
    lr: float = 4e-3
    seed: int = 0

    @property
    def digest(self) -> str:
        """Names the recipe's every number."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def byte_tokenizer() -> Any:
    """A tokenizer whose tokens are the 256 bytes and one end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(["<end>", *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")


def untrained(recipe: Recipe) -> LanguagePolicy:
    """The model with random weights, a function of the recipe's seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(config)
    return LanguagePolicy(model.float(), tokenizer)


class _Counting(Quiet):
    def __init__(self, tell: Callable[[int, int], None] | None, steps: int) -> None:
        super().__init__()
        self.tell, self.steps = tell, steps

    def step(self, session: Session, row: dict[str, Any]) -> None:
        if self.tell:
            self.tell(row["step"], self.steps)


def trained(
    recipe: Recipe = Recipe(), progress: Callable[[int, int], None] | None = None
) -> LanguagePolicy:
    """The model after imitating the corpus, by the declared method for demonstrations."""
    policy = untrained(recipe)
    records = TinyLm().demonstrations(recipe.demonstrations, recipe.seed)
    settings = Settings(
        seed=recipe.seed,
        epochs=1e9,
        max_steps=recipe.steps,
        batch=recipe.batch,
        lr=recipe.lr,
        schedule="cosine",
        warmup=0.05,
    )
    method = get(recipe.method)()
    run_session(
        Session(
            lambda at: method, policy, records, settings, hooks=_Counting(progress, recipe.steps)
        )
    )
    return policy


def folder(recipe: Recipe = Recipe(), progress: Callable[[int, int], None] | None = None) -> Path:
    """The model's folder in the user's cache; it is trained first where it is not there.

    Processes that ask at once wait for the one that trains.
    """
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    place = root / NAME
    with FileLock(str(root / f".{NAME}.lock")):
        note = read_json(place / NOTE) if (place / NOTE).is_file() else {}
        if note.get("recipe") == recipe.digest:
            return place
        made = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=root))
        trained(recipe, progress).save(made)
        note = {"name": NAME, "source": "local", "origin": "trained by polyalign lab",
                "license": "Apache-2.0", "recipe": recipe.digest}  # fmt: skip
        (made / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
    return place


def load(progress: Callable[[int, int], None] | None = None) -> LanguagePolicy:
    """The tiny language model as a policy whose weights all train, in float32."""
    return LanguagePolicy.from_pretrained(folder(progress=progress), dtype="float32", device="cpu")


# What a policy does in this world, from samples.


def gold(policy: LanguagePolicy, n: int = 16, seed: int = 0) -> float:
    """Mean gold reward of ``n`` sampled answers a prompt."""
    world = TinyLm()
    rollout = _sampled(policy, n, seed)
    prompts = [prompt for prompt in world.prompts for _ in range(n)]
    return sum(map(world.reward, prompts, rollout.payloads)) / len(prompts)


def divergence(policy: LanguagePolicy, other: LanguagePolicy, n: int = 16, seed: int = 0) -> float:
    """KL(policy || other) of whole answers in nats, the mean log-ratio of the policy's samples."""
    from polyalign.types import Rows

    rollout = _sampled(policy, n, seed)
    with torch.no_grad():
        logp = other.score(Rows.collate(rollout.rows)).logp
    return float((rollout.logp.sum(-1) - logp.sum(-1).cpu()).mean())


def excess(policy: LanguagePolicy, n: int = 400, seed: int = 1) -> float:
    """KL(corpus || policy) of whole answers in nats, over ``n`` fresh answers of the corpus."""
    from polyalign.types import Rows

    world = TinyLm()
    fresh: list[Demonstration] = world.demonstrations(n, seed)
    rows = Rows.collate([policy.encode(d.prompt, d.completion) for d in fresh])
    with torch.no_grad():
        logp = policy.score(rows).logp.sum(-1).double()
    true = torch.tensor([world.log_probability(d.prompt, d.completion) for d in fresh])
    return float((true - logp.cpu()).mean())


def _sampled(policy: LanguagePolicy, n: int, seed: int) -> Any:
    prompts = TinyLm().prompts
    seeds = [seed * 100_003 + i for i in range(n * len(prompts))]
    return policy.sample(prompts, n, replace(Sampling(), max_steps=64), seeds)
