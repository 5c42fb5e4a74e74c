"""Template faults of a tokenizer, and what a length limit takes."""

from __future__ import annotations

from typing import Any

import pytest

from polyalign.errors import OptionError
from polyalign.feedback import check, read

BOS, EOS, PAD = 1, 2, 0


class Letters:
    """A tokenizer of one token a letter; <s> and </s> in a text are special."""

    def __init__(self, template: Any = None, adds_bos: bool = True, pad: int = PAD) -> None:
        self.chat_template = template
        self.adds_bos = adds_bos
        self.bos_token_id, self.eos_token_id, self.pad_token_id = BOS, EOS, pad
        self.all_special_ids = [PAD, BOS, EOS]

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, Any]:
        return {"input_ids": [self.encode(text, add_special_tokens) for text in texts]}

    def encode(self, text: str, special: bool) -> list[int]:
        marked = text.replace("<s>", "\1").replace("</s>", "\2")
        ids = [ord(letter) for letter in marked]
        return [BOS, *ids] if special and self.adds_bos else ids

    def apply_chat_template(
        self, messages: Any, tokenize: bool, add_generation_prompt: bool, chat_template: Any = None
    ) -> str:
        return (chat_template or self.chat_template)(messages, add_generation_prompt)


def good(messages: Any, generate: bool) -> str:
    return (
        "<s>"
        + "".join(f"{m['role'][0]}:{m['content']}</s>" for m in messages)
        + ("a:" if generate else "")
    )


ROWS = [
    {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "hello"}],
        "rejected": [{"role": "assistant", "content": "go"}],
    }
]
PLAIN = [{"prompt": "abc", "completion": "defg"}]


def levels(tokenizer: Letters, rows: list[Any] = ROWS, **options: Any) -> dict[str, str]:
    return {f.code: f.level for f in check(read(rows), tokenizer=tokenizer, **options).findings}


def test_a_good_template_has_only_the_note_that_it_writes_bos() -> None:
    assert levels(Letters(good)) == {"bos-in-text": "note"}
    assert levels(Letters(good, adds_bos=False)) == {}


def test_conversations_without_a_template_are_an_error() -> None:
    assert levels(Letters())["template-missing"] == "error"
    assert "template-missing" not in levels(Letters(), template=good)


def test_a_doubled_bos_is_an_error() -> None:
    tokenizer = Letters(lambda messages, generate: "<s>" + good(messages, generate))
    assert levels(tokenizer)["bos-doubled"] == "error"


def test_a_missing_bos_is_a_warning() -> None:
    tokenizer = Letters(lambda messages, generate: good(messages, generate)[3:])
    assert levels(tokenizer)["bos-missing"] == "warning"


def test_an_answer_without_an_end_is_a_warning() -> None:
    tokenizer = Letters(lambda m, generate: good(m, generate).replace("</s>", "\n"))
    assert levels(tokenizer)["end-missing"] == "warning"


def test_a_template_that_changes_the_prompt_is_an_error() -> None:
    def thinks(messages: Any, generate: bool) -> str:
        return good(messages, generate) + ("<think>" if generate else "")

    assert levels(Letters(thinks))["template-prefix"] == "error"


def test_tokens_that_merge_across_the_boundary_are_a_warning() -> None:
    class Merging(Letters):
        def encode(self, text: str, special: bool) -> list[int]:
            return super().encode(text.replace("cd", "\3"), special)

    assert levels(Merging(), PLAIN)["token-prefix"] == "warning"


def test_a_template_that_refuses_says_why() -> None:
    def strict(messages: Any, generate: bool) -> str:
        raise ValueError("roles must alternate")

    found = check(read(ROWS), tokenizer=Letters(strict)).finding("template-refused")
    assert found.examples[0]["reason"] == "roles must alternate"


def test_pad_equal_to_eos_is_a_note() -> None:
    assert levels(Letters(good, pad=EOS))["pad-is-eos"] == "note"


def test_limits_count_what_is_cut_and_what_is_emptied() -> None:
    # BOS, 3 letters, 4 letters and EOS.
    report = {n: check(read(PLAIN), tokenizer=Letters(), max_length=n) for n in (9, 8, 4)}
    assert report[9].findings == []
    assert report[8].count("truncated") == 1
    assert report[4].count("emptied") == 1
    assert report[4].errors, "nothing at all is left"
    saved = check(read(PLAIN), tokenizer=Letters(), max_length=4, max_prompt_length=2)
    assert saved.count("emptied") == 0
    with pytest.raises(OptionError, match="max_length is 0"):
        check(read(PLAIN), tokenizer=Letters(), max_length=0)


def test_length_bias_is_also_given_in_tokens() -> None:
    facts = check(read(ROWS), tokenizer=Letters(good)).facts
    assert facts["longer answer preferred (tokens)"]["longer_won"] == 1


@pytest.mark.model
def test_the_real_template_has_no_error_on_conversations(smollm2: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(smollm2.path))
    report = check(read(ROWS), tokenizer=tokenizer, max_length=64)
    assert not report.errors
    assert report.count("end-missing") == 0
    tokenizer.chat_template = None
    assert check(read(ROWS), tokenizer=tokenizer).finding("template-missing").level == "error"
