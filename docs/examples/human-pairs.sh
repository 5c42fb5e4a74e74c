#!/bin/sh
# Example 2: six methods, two seeds, on 200 pairs of people's preferences, with no text of the data
# in what is kept. It may well end in "no difference found". The pairs are the first 200 (150 held
# out) of at most 600 characters, so that two CPU cores need an hour rather than half a day. Needs
# the data beside the repository; run in the repository's root. An interrupted run goes on.
set -e
kept="${TMPDIR:-/tmp}/polyalign-human-pairs"
"${PYTHON:-python}" - ../shared/data/human_pairs "$kept" <<'END'
import gzip, itertools, json, pathlib, sys

source, kept = map(pathlib.Path, sys.argv[1:])
kept.mkdir(parents=True, exist_ok=True)
for name, wanted in (("train", 200), ("test", 150)):
    with gzip.open(source / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = ((line, json.loads(line)) for line in lines)
        short = (line for line, row in rows
                 if sum(len(turn["content"]) for part in ("prompt", "chosen", "rejected")
                        for turn in row[part]) <= 600)
        (kept / f"{name}.jsonl").write_text("".join(itertools.islice(short, wanted)), "utf-8")
END
exec "${POLYALIGN:-polyalign}" compare \
  dpo simpo ipo orpo kto apo-zero \
  --model smollm2 --data "$kept/train.jsonl" --eval-data "$kept/test.jsonl" \
  --primary ranking --seeds 2 --budget 40k --batch 8 --lr 2e-4 --no-texts \
  --prompts 16 --best-of 1 --max-new-tokens 64 --threads 1 \
  --title "6 methods on 200 human preference pairs" \
  --output docs/examples/human-pairs "$@"
