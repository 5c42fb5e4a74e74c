"""Short instructions about everyday topics whose following a program can check.

Every instruction is a row: ``id``, ``kind``, ``prompt`` (one user turn) and ``spec`` (what
``polyalign.judges.verifiers.verify`` checks). Trained and held-out instructions share no topic
and no word that an instruction asks for; kinds in ``NEVER_TRAINED`` are only ever held out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Draft = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Pool:
    """What the instructions of one side are made from; the two sides share none of it."""

    topics: tuple[str, ...]
    endings: tuple[str, ...]
    openings: tuple[str, ...]
    inclusions: tuple[tuple[str, str], ...]
    forbidden: tuple[str, ...]
    sentences: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(";") if item.strip())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((a, b) for a, b in (item.split("+") for item in _list(text)))


TRAIN = Pool(
    topics=_list(
        "rain; coffee; cats; the moon; bread; bicycles; winter; the sea; music; gardens; trains;"
        "honey; books; football; mountains; apples; clocks; birds; soup; the sun; shoes; trees;"
        "cheese; dancing; rivers; paper; chess; snow; horses; bridges; salt; painting; bees;"
        "breakfast; the wind; boats; roses; pencils; markets; sleep; dogs; windows; kites; rice;"
        "libraries; camping; umbrellas; lemons; trucks; islands; swimming; candles; potatoes;"
        "schools; stars; blankets; cooking; frogs; airports; gloves; carrots; movies; spring;"
        "buses; pizza; forests; hats; fishing; mirrors; ice cream; owls; beaches"
    ),
    endings=_list("today; forever; again; home; together; always; now; life; people; world"),
    openings=_list(
        "Many people; In the morning; Sometimes; Every day; Most of us; When I was young;"
        "It is easy; Long ago; Nobody; My friend"
    ),
    inclusions=_pairs(
        "happy+quiet; fresh+cold; small+bright; family+weekend; simple+useful; old+friend;"
        "warm+evening; color+shape; careful+slow; morning+light"
    ),
    forbidden=_list("the; and; is; of; a; are; to; in"),
)

HELDOUT = Pool(
    topics=_list(
        "tea; elephants; the desert; autumn; guitars; cakes; lighthouses; running; tomatoes;"
        "newspapers; clouds; butterflies; skiing; castles; pillows; oranges; buttons; penguins;"
        "theaters; cameras; thunder; sandwiches; lakes; farmers; balloons; chocolate; whales;"
        "museums; summer; keys; onions; tigers; singing; hotels; baskets; fog"
    ),
    endings=_list("tomorrow; everywhere; away; friends; joy; everyone; night; beautiful"),
    openings=_list(
        "Few things; At night; Usually; Once a year; Some children; On Sundays; Everyone; Of course"
    ),
    inclusions=_pairs(
        "soft+sweet; big+strong; travel+summer; clean+water; strange+story; city+noise;"
        "young+brave; dark+sky"
    ),
    forbidden=_list("it; with; that; for; can; you"),
    sentences=_list(
        "The baker sells warm rolls on Sunday.; A gray cat watched the rain.;"
        "They walked home under the stars.; Tom lost his left shoe.;"
        "The new teacher speaks four languages.; Dinner will be ready at seven.;"
        "Two birds built a nest above the porch.; I put the letter on the kitchen table.;"
        "Her brother works in a bakery.; We planted an oak behind the house.;"
        "The phone rang twice.; A cold wind came from the north.;"
        "My uncle drives a yellow taxi.; The soup was too hot.;"
        "Children played in the park until dark."
    ),
    questions=_list(
        "Is water wet?; Can elephants fly?; Is grass green?; Do snakes have legs?;"
        "Is lemon sour?; Can horses swim?; Is a stone soft?; Do bees make honey?; Is honey sweet?;"
        "Can a chair walk?; Is the night dark?; Do ducks swim?; Is glass made of wood?;"
        "Can babies drive?; Is a feather heavy?"
    ),
)


Kind = Callable[[random.Random, Pool], Draft]
KINDS: dict[str, Kind] = {}


def kind(build: Kind) -> Kind:
    """Register a kind of instruction under its function's name."""
    KINDS[build.__name__] = build
    return build


def _topic(rng: random.Random, pool: Pool) -> str:
    return rng.choice(pool.topics)


@kind
def at_most_words(rng: random.Random, pool: Pool) -> Draft:
    n = rng.choice((8, 10, 12, 14))
    text = f"Describe {_topic(rng, pool)} in one sentence of at most {n} words."
    return text, {"kind": "at_most_words", "n": n}


@kind
def at_least_words(rng: random.Random, pool: Pool) -> Draft:
    n = rng.choice((18, 20, 22, 24))
    text = f"Describe {_topic(rng, pool)} in one sentence of at least {n} words."
    return text, {
        "kind": "all_of",
        "of": [{"kind": "at_least_words", "n": n}, {"kind": "one_sentence"}],
    }


@kind
def ends_with(rng: random.Random, pool: Pool) -> Draft:
    word = rng.choice(pool.endings)
    text = f'Write one short sentence about {_topic(rng, pool)}. The last word must be "{word}".'
    return text, {"kind": "ends_with", "phrase": word}


@kind
def begins_with(rng: random.Random, pool: Pool) -> Draft:
    phrase = rng.choice(pool.openings)
    text = f'Write one short sentence about {_topic(rng, pool)} that begins with "{phrase}".'
    return text, {"kind": "begins_with", "phrase": phrase}


@kind
def first_letter(rng: random.Random, pool: Pool) -> Draft:
    letter = rng.choice("ABCFHLMPSTW")
    topic = _topic(rng, pool)
    text = f'Write one short sentence about {topic} that starts with the letter "{letter}".'
    return text, {"kind": "begins_with_letter", "letter": letter}


@kind
def numbered(rng: random.Random, pool: Pool) -> Draft:
    n = rng.randint(2, 4)
    text = f"Give a numbered list of {n} words about {_topic(rng, pool)}."
    return text, {"kind": "numbered", "n": n}


@kind
def avoid(rng: random.Random, pool: Pool) -> Draft:
    a, b = rng.sample(pool.forbidden, 2)
    text = f'Describe {_topic(rng, pool)} in one sentence. Do not use the words "{a}" and "{b}".'
    return text, {"kind": "avoid", "phrases": [a, b]}


@kind
def no_comma(rng: random.Random, pool: Pool) -> Draft:
    text = f"Describe {_topic(rng, pool)} in one sentence. Do not use any commas."
    return text, {"kind": "avoid_characters", "characters": ","}


@kind
def include(rng: random.Random, pool: Pool) -> Draft:
    a, b = rng.choice(pool.inclusions)
    text = f'Write one short sentence about {_topic(rng, pool)} with the words "{a}" and "{b}".'
    return text, {"kind": "include", "phrases": [a, b]}


@kind
def repeat(rng: random.Random, pool: Pool) -> Draft:
    sentence = rng.choice(pool.sentences)
    return f"Copy this sentence word for word: {sentence}", {"kind": "repeat", "sentence": sentence}


@kind
def question(rng: random.Random, pool: Pool) -> Draft:
    return f"Write one short question about {_topic(rng, pool)}.", {"kind": "question"}


@kind
def yes_no(rng: random.Random, pool: Pool) -> Draft:
    text = f"{rng.choice(pool.questions)} Answer with one word, yes or no."
    return text, {"kind": "one_of", "options": ["yes", "no"]}


@kind
def two_sentences(rng: random.Random, pool: Pool) -> Draft:
    text = f"Describe {_topic(rng, pool)} in exactly two short sentences."
    return text, {"kind": "exact_sentences", "n": 2}


@kind
def because(rng: random.Random, pool: Pool) -> Draft:
    text = (
        f'Why do people like {_topic(rng, pool)}? Answer in one sentence with the word "because".'
    )
    return text, {
        "kind": "all_of",
        "of": [{"kind": "include", "phrases": ["because"]}, {"kind": "one_sentence"}],
    }


TRAINED = (
    "at_most_words", "at_least_words", "ends_with", "begins_with", "include", "avoid", "no_comma",
    "numbered", "question", "because",
)  # fmt: skip
NEVER_TRAINED = ("first_letter", "repeat", "yes_no", "two_sentences")


def instructions(name: str, pool: Pool, n: int, seed: int) -> Iterator[Row]:
    """``n`` different instructions of a kind, the same for the same seed."""
    rng = random.Random(f"{seed} {name} {pool.topics[0]}")
    seen: set[str] = set()
    for _ in range(100 * n):
        prompt, spec = KINDS[name](rng, pool)
        if prompt not in seen:
            seen.add(prompt)
            number = len(seen)
            yield {
                "id": f"{name}-{number:03d}",
                "kind": name,
                "prompt": [{"role": "user", "content": prompt}],
                "spec": spec,
            }
            if number == n:
                return
    raise ValueError(f"There are only {len(seen)} different instructions of kind {name}, not {n}.")


def ordinary() -> list[Row]:
    """Ordinary requests without any instruction about wording."""
    return [
        {"id": f"ordinary-{i:03d}", "prompt": [{"role": "user", "content": text}]}
        for i, text in enumerate(ORDINARY, start=1)
    ]


ORDINARY = _list(
    "What is the capital of France?; Why is the sky blue?; How do I boil an egg?;"
    "Tell me about the history of Rome.; What do plants need to grow?; How does a bicycle work?;"
    "Give me an idea for dinner.; What is a good hobby for a rainy day?; Who wrote Hamlet?;"
    "How can I sleep better?; What is photosynthesis?; Why do leaves change color?;"
    "How do I write a thank-you letter?; What is the largest ocean?; Explain gravity to a child.;"
    "How do I plant a tomato?; What makes bread rise?; How far away is the moon?;"
    "What should I pack for a beach trip?; Why is exercise important?; What is a volcano?;"
    "How do bees make honey?; What is the water cycle?; How do I clean a window?;"
    "What is a computer?; Tell me a fact about dolphins.; How do airplanes fly?;"
    "What is the difference between a frog and a toad?; How do I learn a new language?;"
    "What causes thunder?; Why do we dream?; How can I save money?; What is jazz?;"
    "How do I make tea?; What is a balanced diet?; Tell me about penguins.;"
    "How does a refrigerator keep food cold?; What is democracy?; How can I make new friends?;"
    "What is the fastest land animal?"
)
