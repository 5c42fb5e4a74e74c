#!/bin/sh
# Example 2: six methods, two seeds, on 200 pairs of people's preferences, with no text of the data
# in what is kept. It may well end in "no difference found". Needs the data beside the repository.
set -e
exec "${POLYALIGN:-polyalign}" compare \
  dpo simpo ipo orpo kto apo-zero \
  --model smollm2 --data ../shared/data/human_pairs/train.jsonl.gz --limit 250 --test 0.2 \
  --primary ranking --seeds 2 --budget 120k --batch 8 --max-length 512 --no-texts \
  --prompts 16 --best-of 1 --max-new-tokens 64 \
  --title "6 methods on 200 human preference pairs" \
  --output docs/examples/human-pairs "$@"
