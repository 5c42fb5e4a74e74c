"""Rows of every shape, what they are taken for, and the records they make."""

from __future__ import annotations

from typing import Any

from polyalign.feedback import (
    Binary,
    Demonstration,
    Pair,
    Prompt,
    Quadruple,
    Scored,
    Steps,
    Votes,
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


Q, A, B = user("2+2?"), says("4"), says("5")

SHAPES: list[tuple[dict[str, Any], str, type[Any], dict[str, Any]]] = [
    (
        {"text": "Once upon"},
        "TRL language modeling, plain text",
        Demonstration,
        {"prompt": "", "completion": "Once upon"},
    ),
    (
        {"messages": [Q, A, user("sure?"), says("yes")]},
        "TRL language modeling, conversational",
        Demonstration,
        {"prompt": (Q, A, user("sure?")), "completion": (says("yes"),)},
    ),
    ({"prompt": "2+2="}, "TRL prompt-only, plain text", Prompt, {"prompt": "2+2="}),
    ({"prompt": [Q]}, "TRL prompt-only, conversational", Prompt, {"prompt": (Q,)}),
    (
        {"prompt": "2+2=", "completion": " 4"},
        "TRL prompt-completion, plain text",
        Demonstration,
        {"prompt": "2+2=", "completion": " 4"},
    ),
    (
        {"prompt": [Q], "completion": [A]},
        "TRL prompt-completion, conversational",
        Demonstration,
        {"prompt": (Q,), "completion": (A,)},
    ),
    (
        {"prompt": "2+2=", "chosen": " 4", "rejected": " 5"},
        "TRL preference, plain text, explicit prompt",
        Pair,
        {"prompt": "2+2=", "chosen": " 4", "rejected": " 5"},
    ),
    (
        {"prompt": [Q], "chosen": [A], "rejected": [B]},
        "TRL preference, conversational, explicit prompt",
        Pair,
        {"prompt": (Q,), "chosen": (A,), "rejected": (B,)},
    ),
    (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        "TRL preference, plain text, implicit prompt",
        Pair,
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    ),
    (
        {"chosen": [Q, A], "rejected": [Q, B]},
        "TRL preference, conversational, implicit prompt",
        Pair,
        {"prompt": (Q,), "chosen": (A,), "rejected": (B,)},
    ),
    (
        {"prompt": "2+2?", "chosen": [Q, A], "rejected": [Q, B]},
        "TRL preference, conversational, explicit prompt",
        Pair,
        {"prompt": (Q,), "chosen": (A,), "rejected": (B,)},
    ),
    (
        {"prompt": "2+2=", "completion": " 4", "label": True},
        "TRL unpaired preference, plain text",
        Binary,
        {"label": True},
    ),
    (
        {"prompt": [Q], "completion": [A], "label": False},
        "TRL unpaired preference, conversational",
        Binary,
        {"completion": (A,), "label": False},
    ),
    (
        {"prompt": "9.11 > 9.8?", "completions": ["11 > 8", "yes"], "labels": [True, False]},
        "TRL stepwise supervision, plain text",
        Steps,
        {"steps": ("11 > 8", "yes"), "labels": (True, False)},
    ),
    (
        {"prompt": [Q], "steps": ["a", "b", "c"], "labels": [True, False]},
        "Steps with labels",
        Steps,
        {"steps": ("a", "b"), "labels": (True, False), "meta": {"unlabelled_steps": ["c"]}},
    ),
    (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Go",
        },
        "HH transcripts, implicit prompt",
        Pair,
        {"prompt": (user("Hi"),), "chosen": (says("Hello"),), "rejected": (says("Go"),)},
    ),
    (
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello", "rejected": " Go"},
        "HH transcripts, explicit prompt",
        Pair,
        {"prompt": (user("Hi"),), "chosen": (says("Hello"),), "rejected": (says("Go"),)},
    ),
    (
        {"prompt": [Q], "responses": ["4", "5", "four"], "scores": [1, 0.5, 1]},
        "Scored responses",
        Scored,
        {"completions": ((A,), (B,), (says("four"),)), "scores": (1.0, 0.5, 1.0)},
    ),
    (
        {"prompt": "q", "completions": ["a", "b"], "ranks": [2, 1]},
        "Scored responses",
        Scored,
        {"completions": ("a", "b"), "scores": (-2.0, -1.0)},
    ),
    (
        {
            "prompt": "q",
            "responses": [
                {"content": "a", "scores": {"clear": 1, "overall": 3}},
                {"content": "b", "scores": {"clear": 2, "overall": 3}},
            ],
        },
        "Responses that carry their scores",
        Scored,
        {"scores": (3.0, 3.0), "aspects": {"clear": (1.0, 2.0), "overall": (3.0, 3.0)}},
    ),
    (
        {
            "prompt": "q",
            "responses": [{"content": "a", "correct": True}, {"content": "b", "correct": False}],
        },
        "Responses with correctness",
        Scored,
        {"scores": (1.0, 0.0)},
    ),
    (
        {"prompt": "q", "completion": "a", "reward": 0.25},
        "Scored completions",
        Scored,
        {"completions": ("a",), "scores": (0.25,)},
    ),
    (
        {
            "prompt": "q",
            "responses": ["a", "b"],
            "annotations": [
                {"annotator": "w1", "label": "a"},
                {"annotator": "w2", "label": "b"},
                {"annotator": "w3", "label": "tie"},
            ],
        },
        "Votes of several annotators",
        Votes,
        {"votes": (("w1", 0, 1, 1.0), ("w2", 0, 1, 0.0), ("w3", 0, 1, 0.5))},
    ),
    (
        {
            "prompt": "q",
            "responses": ["a", "b", "c"],
            "pairwise": [{"first": 0, "second": 2, "label": "b"}],
        },
        "Pairwise comparisons of several responses",
        Votes,
        {"votes": (("0", 0, 2, 0.0),)},
    ),
    (
        {"prompt": "q", "response_a": "a", "response_b": "b", "winner": "model_b"},
        "Two responses and a winner",
        Votes,
        {"votes": (("0", 0, 1, 0.0),)},
    ),
    (
        {
            "history": "q",
            "human_ref_A": "a",
            "human_ref_B": "b",
            "labels": 0,
            "score_A": 2,
            "score_B": 9,
        },
        "SHP",
        Pair,
        {
            "prompt": (user("q"),),
            "chosen": (says("b"),),
            "fields": {"score_chosen": 9.0, "score_rejected": 2.0},
        },
    ),
    (
        {
            "instruction": "q",
            "completions": [
                {
                    "response": "a",
                    "annotations": {"helpfulness": {"Rating": "4"}, "honesty": {"Rating": "N/A"}},
                    "overall_score": 8.5,
                },
                {
                    "response": "b",
                    "annotations": {"helpfulness": {"Rating": "2"}},
                    "overall_score": 3,
                },
            ],
        },
        "UltraFeedback",
        Scored,
        {"scores": (8.5, 3.0), "aspects": {"helpfulness": (4.0, 2.0)}},
    ),
    (
        {"prompt": "q", "response": "a", "helpfulness": 3, "verbosity": 1},
        "HelpSteer",
        Scored,
        {"scores": (3.0,), "aspects": {"helpfulness": (3.0,), "verbosity": (1.0,)}},
    ),
    (
        {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -2},
        "HelpSteer preference",
        Scored,
        {"scores": (0.0, -2.0)},
    ),
    (
        {"instruction": "Add", "input": "2 2", "output": "4", "system": "Be brief"},
        "LLaMA-Factory alpaca",
        Demonstration,
        {
            "prompt": ({"role": "system", "content": "Be brief"}, user("Add\n2 2")),
            "completion": (A,),
        },
    ),
    (
        {"instruction": "Add", "input": "", "output": "4", "kto_tag": False},
        "LLaMA-Factory alpaca with a thumb",
        Binary,
        {"prompt": (user("Add"),), "label": False},
    ),
    (
        {"instruction": "Add", "input": "", "chosen": "4", "rejected": "5"},
        "LLaMA-Factory alpaca preference",
        Pair,
        {"prompt": (user("Add"),), "chosen": (A,), "rejected": (B,)},
    ),
    (
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        "LLaMA-Factory sharegpt",
        Demonstration,
        {"prompt": (Q,), "completion": (A,)},
    ),
    (
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        "LLaMA-Factory sharegpt preference",
        Pair,
        {"prompt": (Q,), "chosen": (A,), "rejected": (B,)},
    ),
    (
        {"messages": [Q, A], "label": True},
        "Conversations with a label",
        Binary,
        {"prompt": (Q,), "completion": (A,), "label": True},
    ),
    (
        {"prompt": "2+2=", "chosen": "4", "rejected": "5", "gold": "four", "source": "web"},
        "TRL preference, plain text, explicit prompt and further answers",
        Pair,
        {"chosen": "4", "others": {"gold": "four"}, "meta": {"source": "web"}},
    ),
    (
        {"prompt": [Q], "chosen": [A], "rejected": [B], "source_chosen": [Q, A]},
        "TRL preference, conversational, explicit prompt and further answers",
        Pair,
        {"chosen": (A,), "others": {"source_chosen": (A,)}},
    ),
    (
        {"prompt": "2+2=", "chosen": "4", "rejected": "5", "gold": 0.5},
        "TRL preference, plain text, explicit prompt",
        Pair,
        {"others": {}, "fields": {"gold": 0.5}},
    ),
    (
        {"prompt_1": "a", "prompt_2": "b", "completion_1": "A", "completion_2": "B"},
        "Two prompts and two completions (iopo)",
        Quadruple,
        {"prompts": ("a", "b"), "completions": ("A", "B")},
    ),
]
