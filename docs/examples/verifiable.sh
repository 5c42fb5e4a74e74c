#!/bin/sh
# Example 1: twelve methods, three seeds, on instructions whose following a program checks (the
# demo's task). An hour and a half on a CPU core; run in the repository's root. An interrupted run goes on.
set -e
exec "${POLYALIGN:-polyalign}" compare \
  dpo ipo simpo orpo kto slic cpo apo-zero dpop robust-dpo tdpo bco \
  --model smollm2 --data demo/data/train.jsonl.gz --eval-data demo/data/heldout_new.jsonl.gz \
  --judge verifier --primary score --seeds 3 --budget 16k --batch 4 --lr 2e-4 \
  --prompts 72 --best-of 4 --temperature 0.7 --max-new-tokens 40 --threads 1 \
  --title "12 methods on instructions that a program checks" \
  --output docs/examples/verifiable "$@"
