"""Make the demo's feedback: sample the base model, judge with verifiers, pair, write.

    python -m demo.make_feedback            # about a quarter of an hour on 2 CPU cores

SmolLM2-135M-Instruct answers each training instruction eight times; a verifier says which
answers follow it; answers that do are paired with answers that do not. Held-out instructions
are written without answers. An interrupted run continues where it stopped: finished answers
lie in ``--work``. Everything is a function of the seed (up to rounding in a batch).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from demo.instructions import HELDOUT, NEVER_TRAINED, TRAIN, TRAINED, instructions, ordinary

Row = dict[str, Any]

SEED = 20
TEMPERATURE = 0.7
ANSWERS = 8
MAX_TOKENS = 48
PER_KIND = 24
HELDOUT_PER_KIND = 10
NEVER_TRAINED_PER_KIND = 15
PAIRS_PER_PROMPT = 2
BATCH = 8
DATA = Path(__file__).parent / "data"


def training_rows() -> list[Row]:
    return [row for kind in TRAINED for row in instructions(kind, TRAIN, PER_KIND, SEED)]


def heldout_rows() -> tuple[list[Row], list[Row]]:
    """New instructions of trained kinds, and instructions of kinds never trained."""
    new = [r for k in TRAINED for r in instructions(k, HELDOUT, HELDOUT_PER_KIND, SEED)]
    kinds = [
        r for k in NEVER_TRAINED for r in instructions(k, HELDOUT, NEVER_TRAINED_PER_KIND, SEED)
    ]
    return new, kinds


def sample_all(rows: list[Row], file: Path) -> list[Row]:
    """Eight answers to each instruction, from ``file`` where an earlier run has written them."""
    import torch

    from demo.sampling import sample, uniforms
    from polyalign.policies.language.models import load_model, load_tokenizer

    done = {row["id"]: row for row in read(file)} if file.is_file() else {}
    todo = [row for row in rows if row["id"] not in done]
    if todo:
        model, tokenizer = load_model("smollm2"), load_tokenizer("smollm2")
    started, tokens = time.monotonic(), 0
    for i in range(0, len(todo), BATCH):
        batch = todo[i : i + BATCH]
        draws = torch.stack(
            [
                torch.stack(
                    [uniforms(SEED, f"{row['id']} {k}", MAX_TOKENS) for k in range(ANSWERS)]
                )
                for row in batch
            ]
        )
        prompts = [row["prompt"] for row in batch]
        answers = sample(model, tokenizer, prompts, draws, temperature=TEMPERATURE)
        with file.open("a", encoding="utf-8") as out:
            for row, told in zip(batch, answers):
                done[row["id"]] = {"id": row["id"], "answers": told}
                out.write(json.dumps(done[row["id"]], ensure_ascii=False) + "\n")
                tokens += sum(n for _, n, _ in told)
        spent = time.monotonic() - started
        print(
            f"{i + len(batch)}/{len(todo)} instructions, {tokens / spent:.0f} tokens/s", flush=True
        )
    return [row | {"answers": done[row["id"]]["answers"]} for row in rows]


def stamp(rows: list[Row]) -> str:
    """A digest of all that answers depend on, so that a run never continues a different one."""
    settings = [rows, SEED, TEMPERATURE, ANSWERS, MAX_TOKENS]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]


def pairs_of(row: Row) -> list[Row]:
    """At most two pairs of an answer that follows and one that does not, each answer used once.

    Only answers that ended by themselves take part: training on a cut-off one would teach where
    to cut. Each following answer takes the failing one nearest to it in length, so that length
    tells as little as possible about which is better.
    """
    from polyalign.judges.verifiers import verify

    answers = {text.strip(): n for text, n, finished in row["answers"] if finished and text.strip()}
    right = [text for text in answers if verify(row["spec"], text)]
    wrong = [text for text in answers if not verify(row["spec"], text)]
    random.Random(f"{SEED} {row['id']}").shuffle(right)
    pairs: list[Row] = []
    for chosen in right[:PAIRS_PER_PROMPT]:
        if not wrong:
            break
        rejected = min(wrong, key=lambda text: abs(answers[text] - answers[chosen]))
        wrong.remove(rejected)
        pairs.append(
            {
                "id": f"{row['id']}-{len(pairs)}",
                "kind": row["kind"],
                "prompt": row["prompt"],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "spec": row["spec"],
            }
        )
    return pairs


def base_rates(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """For each kind, the shares of answers that follow, and that end by themselves."""
    from polyalign.judges.verifiers import verify

    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for text, _, finished in row["answers"]:
            found[row["kind"]].append((verify(row["spec"], text) * finished, float(finished)))
    return {
        kind: (sum(f for f, _ in seen) / len(seen), sum(e for _, e in seen) / len(seen))
        for kind, seen in found.items()
    }


def ordinary_rows(file: Path) -> list[Row]:
    """Ordinary prompts with the base model's own greedy answers: what alignment may not lose."""
    import torch

    from demo.sampling import sample
    from polyalign.policies.language.models import load_model, load_tokenizer

    if file.is_file():
        return read(file)
    model, tokenizer = load_model("smollm2"), load_tokenizer("smollm2")
    rows = ordinary()
    made = []
    for i in range(0, len(rows), 20):
        part = rows[i : i + 20]
        draws = torch.zeros(len(part), 1, MAX_TOKENS, dtype=torch.float64)
        told = sample(model, tokenizer, [row["prompt"] for row in part], draws, temperature=0)
        for row, [(text, _, finished)] in zip(part, told):
            # A long answer is cut after its last whole sentence, where it could have ended.
            ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)]
            kept = text if finished or not ends else text[: ends[-1]]
            made.append(row | {"completion": [{"role": "assistant", "content": kept.strip()}]})
    write(file, made)
    return made


def read(file: Path) -> list[Row]:
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write(file: Path, rows: Iterable[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    # No time stamp, so that the same rows are the same file.
    file.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=Path(".cache/demo-feedback"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = sample_all(training_rows(), options.work / f"answers-{stamp(training_rows())}.jsonl")
    pairs = [pair for row in rows for pair in pairs_of(row)]
    write(options.output / "train.jsonl.gz", pairs)
    new, kinds = heldout_rows()
    write(options.output / "heldout_new.jsonl.gz", new)
    write(options.output / "heldout_kinds.jsonl.gz", kinds)
    write(
        options.output / "ordinary.jsonl.gz",
        ordinary_rows(options.work / f"ordinary-{stamp(ordinary())}.jsonl"),
    )
    print(f"\n{'kind':16} {'followed':>8} {'ended':>6} {'pairs':>6} {'chosen longer':>14}")
    for kind, (followed, ended) in base_rates(rows).items():
        own = [pair for pair in pairs if pair["kind"] == kind]
        lengths = [[len(pair[s][0]["content"]) for s in ("chosen", "rejected")] for pair in own]
        longer = sum((c > r) + (c == r) / 2 for c, r in lengths) / max(1, len(own))
        print(f"{kind:16} {followed:8.2f} {ended:6.2f} {len(own):6d} {longer:14.2f}")
    print(f"{len(pairs)} pairs, {len(new)} + {len(kinds)} held-out instructions")


if __name__ == "__main__":
    main()
