"""From payloads to ids: what is context, what is trained, where it ends."""

from __future__ import annotations

import pytest
import torch

from polyalign.errors import DataError, ModelError
from polyalign.policies.language.template import Template
from polyalign.types import Rows
from tests.policies import tiny


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def template(tokenizer=None, **more) -> Template:
    return Template(tokenizer or tiny.tokenizer(), **more)


def text(template: Template, ids) -> str:
    return template.tokenizer.decode(list(ids))


def trained(template: Template, row) -> str:
    return text(template, row.steps[row.mask].tolist())


def test_text_is_the_prompt_then_the_completion_with_one_end_token():
    made = template()
    row = made.encode("the cat", " sat on the mat").row
    assert text(made, row.context) == "the cat"
    assert trained(made, row) == " sat on the mat<|im_end|>"
    assert row.mask.all()
    again = made.encode("the cat", " sat on the mat<|im_end|>").row
    assert again.steps.equal(row.steps)


@pytest.mark.parametrize("chat", [False, True])
def test_t12_an_end_token_that_equals_the_pad_token_is_trained(chat):
    made = template()
    assert made.tokenizer.pad_token_id == made.tokenizer.eos_token_id
    prompt, completion = ((user("hi"),), (bot("yes"),)) if chat else ("hi", "yes")
    row = made.encode(prompt, completion).row
    assert row.steps[-1] == made.tokenizer.eos_token_id
    assert row.mask[-1]


def test_t13_bos_comes_exactly_once():
    made = template(tiny.tokenizer(bos=True))
    bos = made.tokenizer.bos_token_id
    for prompt in ("the cat", "<s>the cat", "<s><s>the cat"):
        row = made.encode(prompt, " sat").row
        assert row.context[0] == bos
        assert [*row.context, *row.steps.tolist()].count(bos) == 1


def test_t13_bos_written_by_a_template_is_not_doubled_and_not_added():
    tokenizer = tiny.tokenizer("{{ bos_token }}" + tiny.TEMPLATE, bos=True)
    made = template(tokenizer)
    row = made.encode((user("hi"),), (bot("yes"),)).row
    assert row.context.count(tokenizer.bos_token_id) == 1
    bare = template(tiny.tokenizer(bos=True))
    row = bare.encode((user("hi"),), (bot("yes"),)).row
    assert row.context.count(bare.tokenizer.bos_token_id) == 0


def test_t13_a_tokenizer_without_bos_gets_none():
    made = template()
    assert made.tokenizer.bos_token_id is None
    assert made.encode("the cat", " sat").row.context == tuple(made.ids("the cat"))


def test_t13_bos_survives_truncation_of_the_prompt():
    made = template(tiny.tokenizer(bos=True), max_prompt_length=4)
    encoded = made.encode("the cat ran after the dog over there", " sat")
    assert len(encoded.row.context) == 4
    assert encoded.row.context[0] == made.tokenizer.bos_token_id
    assert text(made, encoded.row.context).endswith("there")
    assert encoded.cut_context > 0


def test_t14_prompts_lose_their_beginning_and_completions_their_end():
    made = template(max_prompt_length=3, max_length=5)
    encoded = made.encode("the cat ran after the dog", " sat on the mat")
    whole = template().encode("the cat ran after the dog", " sat on the mat").row
    assert encoded.row.context == whole.context[-3:]
    assert encoded.row.steps.equal(whole.steps[:2])
    assert encoded.cut_context == len(whole.context) - 3
    assert encoded.cut_steps == len(whole.steps) - 2


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_t14_a_completion_cut_to_nothing_is_reported_and_never_wraps_around(limit):
    made = template(max_length=limit)
    encoded = made.encode("the cat ran after the dog", " sat on the mat")
    assert encoded.emptied
    assert len(encoded.row.context) == limit
    assert len(encoded.row.steps) == 0
    assert encoded.cut_steps > 0


def test_t14_a_row_cut_to_nothing_scores_to_zero_and_not_to_nan():
    policy = tiny.policy(max_length=2)
    rows = Rows.collate([policy.encode("the cat ran after", " sat")])
    assert policy.score(rows).logp.sum() == 0


def test_an_empty_completion_still_has_its_end_to_learn():
    made = template()
    assert trained(made, made.encode("the cat", "").row) == "<|im_end|>"
    assert trained(made, made.encode((user("hi"),), (bot(""),)).row) == "<|im_end|>"


def test_an_empty_prompt_has_a_state_to_predict_from():
    made = template()
    assert made.encode("", "the cat").row.context == (made.tokenizer.eos_token_id,)
    with_bos = template(tiny.tokenizer(bos=True))
    assert with_bos.encode("", "the cat").row.context == (with_bos.tokenizer.bos_token_id,)


def test_t15_an_empty_thinking_block_keeps_the_answer_trained():
    """The generation prompt opens a thinking block that finished turns do not keep."""
    tokenizer = tiny.tokenizer(
        tiny.TEMPLATE.replace("assistant\n{% endif", "assistant\n<t>{% endif")
    )
    made = template(tokenizer)
    encoded = made.encode((user("hi"),), (bot("the answer"),))
    assert trained(made, encoded.row) == "the answer<|im_end|>"
    assert text(made, encoded.row.context).endswith("assistant\n")
    assert "generation prompt is not a prefix" in encoded.faults[0]


def test_t15_a_thinking_block_that_templates_write_themselves_is_context_or_trained_once():
    tokenizer = tiny.tokenizer(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}<t></t>{% endif %}{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<t></t>{% endif %}"
    )
    encoded = template(tokenizer).encode((user("hi"),), (bot("the answer"),))
    assert trained(template(tokenizer), encoded.row) == "the answer<|im_end|>"
    assert encoded.faults == ()


def test_t16_masks_are_boolean_and_never_made_from_ids():
    made = template(assistant="all")
    prompt = (user("hi <|im_end|> <|im_start|>"),)
    row = made.encode(prompt, (bot("a<|im_end|>"), user("<|im_end|>"), bot("the cat"))).row
    assert row.mask.dtype == torch.bool
    assert trained(made, row) == "a<|im_end|>the cat<|im_end|>"


def test_t17_a_token_over_the_boundary_is_cut_there_and_recorded():
    made = template()
    assert made.ids("the cat")[: len(made.ids("the c"))] != made.ids("the c")
    encoded = made.encode("the c", "at is here")
    assert text(made, encoded.row.context) == "the c"
    assert trained(made, encoded.row) == "at is here<|im_end|>"
    assert encoded.faults == ("a token reaches over the boundary of prompt and completion",)


def test_t17_without_a_fault_the_ids_are_those_of_the_whole_text():
    made = template()
    encoded = made.encode("the cat", " sat on the mat")
    whole = made.ids("the cat sat on the mat")
    assert [*encoded.row.context, *encoded.row.steps.tolist()[:-1]] == whole
    assert encoded.faults == ()


def test_a_pairs_answers_have_equal_contexts():
    made = template()
    for prompt in ("the cat", "the c", (user("hi"),)):
        contexts = {made.encode(prompt, answer).row.context for answer in ("at", " sat", "\n\nno")}
        assert len(contexts) == 1


def test_a_conversation_trains_the_turn_and_its_end_but_no_newline_after():
    made = template()
    row = made.encode((user("hi"),), (bot("the answer is here"),)).row
    assert text(made, row.context) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert text(made, row.steps.tolist()) == "the answer is here<|im_end|>"
    assert row.segment is None


def test_a_conversation_template_without_an_end_token_gets_one():
    made = template(tiny.tokenizer("{% for m in messages %}{{ m['content'] }}\n{% endfor %}"))
    row = made.encode((user("hi"),), (bot("yes"),)).row
    assert row.steps[-1] == made.tokenizer.eos_token_id
    assert (row.steps == made.tokenizer.eos_token_id).sum() == 1


TURNS = (bot("yes"), user("why"), bot("the answer is here"))


def test_assistant_last_trains_the_last_turn_only():
    made = template(assistant="last")
    row = made.encode((user("hi"),), TURNS).row
    assert trained(made, row) == "the answer is here<|im_end|>"
    assert text(made, row.steps.tolist()).startswith("yes<|im_end|>\n<|im_start|>user\nwhy")


def test_assistant_all_trains_each_turn_with_its_end_and_numbers_them():
    made = template(assistant="all")
    row = made.encode((user("hi"),), TURNS).row
    assert trained(made, row) == "yes<|im_end|>the answer is here<|im_end|>"
    assert row.segment is not None
    assert text(made, row.steps[row.mask & (row.segment == 1)].tolist()).startswith("the answer")


def test_a_turn_after_the_assistants_last_is_not_part_of_the_row():
    made = template()
    row = made.encode((user("hi"),), (bot("yes"), user("thanks"))).row
    assert text(made, row.steps.tolist()) == "yes<|im_end|>"


def test_text_beside_messages_is_one_turn():
    made = template()
    messages = made.encode((user("hi"),), (bot("yes"),)).row
    for prompt, completion in (("hi", (bot("yes"),)), ((user("hi"),), "yes")):
        row = made.encode(prompt, completion).row
        assert row.context == messages.context
        assert row.steps.equal(messages.steps)


def test_parts_of_text_are_joined_and_images_refused():
    made = template()
    parts = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
    assert trained(made, made.encode((user("hi"),), (parts,)).row) == "yes<|im_end|>"
    image = {"role": "user", "content": [{"type": "image", "url": "x"}]}
    with pytest.raises(DataError, match="type 'image'.*text only"):
        made.encode((image,), (bot("yes"),))


def test_a_conversation_without_a_template_says_what_to_do():
    with pytest.raises(ModelError, match="no chat template.*instruct model"):
        template(tiny.tokenizer(template=None)).encode((user("hi"),), (bot("yes"),))


def test_a_conversation_the_template_refuses_names_its_roles():
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="user, assistant.*roles must alternate"):
        template(tiny.tokenizer(strict)).encode((user("hi"),), (bot("yes"),))


def test_a_completion_without_an_assistant_is_refused():
    with pytest.raises(DataError, match="no turn of the assistant"):
        template().encode((user("hi"),), (user("why"),))


def test_a_template_that_rewrites_earlier_turns_is_refused_rather_than_guessed():
    rewriting = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if not loop.last and m['role'] == 'assistant' %}short{% else %}{{ m['content'] }}"
        "{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    made = template(tiny.tokenizer(rewriting), assistant="all")
    with pytest.raises(DataError, match="differently once"):
        made.encode((user("hi"),), TURNS)


def test_a_prompt_alone_is_a_row_without_steps():
    row = template().encode("the cat", None).row
    assert len(row.steps) == 0
    assert row.cost == len(row.context)


def test_a_sampled_completion_is_given_back_as_the_prompts_sort():
    made = template()
    ids = [*made.ids("the answer"), made.tokenizer.eos_token_id]
    assert made.payload("hi", ids) == "the answer"
    assert made.payload((user("hi"),), ids) == (bot("the answer"),)
    assert made.encode((user("hi"),), made.payload((user("hi"),), ids)).row.steps.tolist() == ids


def test_the_fingerprint_changes_with_all_that_decides_ids():
    base = template().fingerprint
    assert template().fingerprint == base
    others = [
        template(tiny.tokenizer(bos=True)),
        template(tiny.tokenizer(template=None)),
        template(max_length=7),
        template(max_prompt_length=7),
        template(assistant="all"),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 6
