import json

import pytest
import torch

from polyalign.errors import ModelError
from polyalign.judges.load import load_judge

PROMPTS = ["Say hello", ({"role": "user", "content": "What is two and two, and why so?"},), "?"]
ANSWERS = ["Hello there, friend!", ({"role": "assistant", "content": "4"},), "no"]


@pytest.fixture(scope="module")
def folder(tiny_llama, tmp_path_factory):
    """A random Llama reward model with pad equal to EOS, the case that reads the wrong token."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    path = tmp_path_factory.mktemp("rm") / "tiny-rm"
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.eos_token
    config = LlamaConfig.from_pretrained(tiny_llama, num_labels=1, pad_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_t26_scores_do_not_depend_on_the_batch(folder):
    """Issue 26: reward-model scores changed with the batch size."""
    judge = load_judge(str(folder))
    together = judge(PROMPTS, ANSWERS, [{}] * 3).score
    alone = torch.cat([judge([p], [a], [{}]).score for p, a in zip(PROMPTS, ANSWERS)])
    back = judge(PROMPTS[::-1], ANSWERS[::-1], [{}] * 3).score.flip(0)
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together, back, atol=1e-6)
    assert together.std() > 1e-4


def test_t12_the_score_is_read_at_the_last_real_token_though_pad_is_eos(folder):
    judge = load_judge(folder)
    ids = judge.encode(PROMPTS[0], ANSWERS[0])
    with torch.no_grad():
        hidden = judge.model.base_model(torch.tensor([ids])).last_hidden_state
        expected = judge.model.score(hidden[0, -1]).item()
    assert judge(PROMPTS[:1], ANSWERS[:1], [{}]).score.item() == pytest.approx(expected, abs=1e-6)


def test_t13_the_template_writes_the_only_start_token(folder):
    judge = load_judge(folder)
    text = judge.tokenizer.decode(judge.encode("Say", "no"))
    assert text.startswith("<|im_start|>user\nSay<|im_end|>")
    assert text.count("<|im_start|>") == 2


def test_rows_beyond_the_models_positions_are_abstained_on(folder):
    verdict = load_judge(folder)(["a", "b"], ["x" * 600, "x"], [{}] * 2)
    assert verdict.abstained.tolist() == [True, False]


def test_a_language_model_is_not_taken_for_a_reward_model(tiny_llama):
    with pytest.raises(ModelError, match="LlamaForCausalLM, no reward model"):
        load_judge(str(tiny_llama))


def test_weights_that_can_run_code_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not opened")
    with pytest.raises(ModelError, match="no \\*.safetensors"):
        load_judge(str(tmp_path))


def test_a_head_that_was_never_trained_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"no trained weights for score\.weight"):
        load_judge(str(tmp_path))


def test_a_classifier_with_many_outputs_is_refused(tmp_path, tiny_llama):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig.from_pretrained(tiny_llama, num_labels=3)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny_llama / name).is_file():
            (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    with pytest.raises(ModelError, match="3 outputs"):
        load_judge(str(tmp_path))


def test_an_unreadable_config_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_judge(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ModelError, match="model of unknown kind"):
        load_judge(str(tmp_path))
