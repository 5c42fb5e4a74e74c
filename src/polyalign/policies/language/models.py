"""Bring a language model to this machine, name it, check it, load it.

A model is named by a folder, by a name in the user's cache (``smollm2``) or by a hub id
(``owner/name``). Only safetensors are opened, code that comes with a model runs only when
asked for, and the hub is asked only for what is not here, with a time limit.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from polyalign.errors import ModelError, nearest
from polyalign.policies.language import gguf, hub
from polyalign.policies.language.bring import KNOWN, Known, bring
from polyalign.policies.language.folders import (
    ModelFolder,
    adapter_base,
    cache_folder,
    check_code,
    check_folder,
    has_tokenizer,
    in_cache,
    is_adapter,
    list_models,
)

__all__ = [
    "ModelFolder",
    "cache_folder",
    "check_vocabulary",
    "get_model",
    "list_models",
    "load_model",
    "load_tokenizer",
    "resolve",
]

Source = Literal["auto", "hub", "pypi", "local"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def get_model(
    name_or_path: str,
    *,
    source: Source = "auto",
    trust_remote_code: bool = False,
    say: gguf.Say = lambda line: None,
) -> ModelFolder:
    """Bring a model to this machine, once, and check it; ``say`` hears what takes long.

    ``source="auto"`` takes a folder as it is, and otherwise tries the hub before the package
    index. Raises ModelError with the mend when nothing brings it.
    """
    if source not in ("auto", "hub", "pypi", "local"):
        raise ModelError(
            f"There is no model source {source}.",
            nearest(source, ["auto", "hub", "pypi", "local"]),
        )
    known = KNOWN.get(name_or_path)
    if source == "local" or (known is None and Path(name_or_path).expanduser().is_dir()):
        return _local(name_or_path, trust_remote_code)
    if known is None and source == "pypi":
        raise ModelError(
            f"No package carries the model {name_or_path}.", nearest(name_or_path, KNOWN)
        )
    if known is None and not HUB_ID.fullmatch(name_or_path):
        raise _unknown(name_or_path)
    cached = in_cache(name_or_path)
    if cached is not None and source in ("auto", cached.source):
        return cached
    return bring(name_or_path, known, source, trust_remote_code, say, _ask)


def resolve(name: str | Path, *, download: bool = True, trust_remote_code: bool = False) -> Path:
    """The folder of a model named by folder, cached name or hub id; fetched if it is not here.

    Raises ModelError when there is no such model, or it is not here and ``download`` is off.
    """
    text = str(name)
    if text not in KNOWN and Path(text).expanduser().is_dir():
        return _local(text, trust_remote_code).path
    cached = in_cache(text)
    if cached is not None:
        return cached.path
    if text in KNOWN or HUB_ID.fullmatch(text):
        snapshot = hub.cached_snapshot(text) if text not in KNOWN else None
        if snapshot is not None:
            return _local(str(snapshot), trust_remote_code).path
        if not download:
            raise ModelError(
                f"The model {text} is not on this machine.",
                f"Bring it with `polyalign model get {text}`.",
            )
        return get_model(text, trust_remote_code=trust_remote_code).path
    raise _unknown(text)


def load_model(
    name: str | Path,
    *,
    dtype: Any = "float32",
    device: str = "cpu",
    attn: str | None = None,
    quantize: Literal["4bit", "8bit"] | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a causal language model, or a base model with its `peft` adapter, in evaluation mode.

    ``dtype`` is a torch dtype, its name, or "auto" for that of the file; ``attn`` is an
    attention implementation of `transformers` ("eager", "sdpa", …). ``quantize`` packs the linear
    layers (but the output head) into 4 or 8 bits; an adapter's base is as the adapter was trained.
    Raises ModelError when the folder does not fit, or leaves any weight without a value.
    """
    import torch

    from polyalign.policies.language import quantised

    folder = resolve(name, trust_remote_code=trust_remote_code)
    if isinstance(dtype, str) and dtype != "auto":
        dtype = _dtype(dtype, torch)
    if is_adapter(folder):
        model = load_model(
            adapter_base(folder),
            dtype=dtype,
            device=device,
            attn=attn,
            quantize=quantize or quantised.noted(folder),
            trust_remote_code=trust_remote_code,
        )
        model = _with_adapter(model, folder)
    else:
        options: dict[str, Any] = {} if attn is None else {"attn_implementation": attn}
        method = quantised.method_of(folder)
        if quantize is not None:
            quantised.check(folder, quantize, str(dtype).removeprefix("torch."))
            options |= quantised.options(quantize, dtype, device)
        elif method is not None:
            quantised.check(folder, None)
            options["device_map"] = {"": device}
        model = _whole_model(folder, dtype, options, trust_remote_code)
        if quantize is not None or method == "bitsandbytes":
            quantised.adopt(model)
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The model cannot be moved to {device} ({str(error).splitlines()[0]}).",
            "Use `--device cpu`, or see `polyalign doctor`.",
        ) from error


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model folder (of the base model, where an adapter has none).

    Padding never decides a mask here, so a tokenizer without a padding token gets EOS for it.
    Raises ModelError when there is no tokenizer or it has no EOS.
    """
    from transformers import AutoTokenizer

    folder = resolve(name, trust_remote_code=trust_remote_code)
    if is_adapter(folder) and not has_tokenizer(folder):
        return load_tokenizer(adapter_base(folder), trust_remote_code=trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise ModelError(
            f"The tokenizer in {folder} cannot be loaded ({_brief(error)}).",
            "Save it again with `save_pretrained` of the `transformers` version installed here.",
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer in {folder} names no end-of-sequence token, so answers cannot end.",
            "Set eos_token in its tokenizer_config.json.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raise ModelError unless every id of the tokenizer has an embedding in the model."""
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise ModelError(
            f"The tokenizer has ids up to {highest} but the model embeds only {rows} tokens.",
            "Use the model's own tokenizer, or enlarge the model with `resize_token_embeddings` "
            "and save both together.",
        )


def _whole_model(folder: Path, dtype: Any, options: dict[str, Any], trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with gguf.quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        raise ModelError(
            f"The model in {folder} cannot be loaded ({_brief(error)}).",
            "It must be a causal language model that the installed `transformers` knows.",
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"The weights in {folder} lack {len(missing)} of the model's parameters "
            f"(first: {missing[0]}), which would be random.",
            "Check that config.json belongs to these weights and names a causal language model.",
        )
    return model


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except Exception as error:
        raise ModelError(
            f"The adapter in {folder} does not fit {adapter_base(folder)} ({_brief(error)}).",
            "Check base_model_name_or_path in its adapter_config.json.",
        ) from error


def _dtype(name: str, torch: Any) -> Any:
    valid = ("float32", "bfloat16", "float16", "float64")
    if name not in valid:
        raise ModelError(f"There is no model dtype {name}.", nearest(name, [*valid, "auto"]))
    return getattr(torch, name)


def _local(path: str, trust_remote_code: bool) -> ModelFolder:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise _unknown(path)
    folder = folder.resolve()
    check_folder(folder)
    check_code(folder, trust_remote_code)
    return ModelFolder(folder.name, folder, "local", str(folder))


def _unknown(name: str) -> ModelError:
    """There is neither a folder, nor a cached model, nor a hub id of that name."""
    path = Path(name).expanduser()
    if "/" in name or os.sep in name or name.startswith((".", "~")):
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        siblings = [other.name for other in beside if other.is_dir()]
        mend = nearest(path.name, siblings) if siblings else "Check the path."
        return ModelError(f"There is no folder {name}.", mend)
    names = {*KNOWN, *(model.name for model in list_models())}
    return ModelError(
        f"There is no model {name}: no folder, no cached model, and a hub id is owner/name.",
        nearest(name, names),
    )


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _ask(folder: Path, known: Known) -> None:
    """Generate greedily: a good copy answers the question and stops at EOS."""
    import torch

    tokenizer = load_tokenizer(folder)
    model = load_model(folder)
    check_vocabulary(model, tokenizer)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": known.question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :].tolist()
    text = tokenizer.decode(answer, skip_special_tokens=True)
    if known.answer not in text or answer[-1] != tokenizer.eos_token_id:
        raise ModelError(
            f"The copy of the model is damaged: asked {known.question!r} it said {text!r}.",
            "Try again, or take it from another source (source='hub' or 'pypi').",
        )
