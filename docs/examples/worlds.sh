#!/bin/sh
# Example 3: every method that learns from pairs or prompts, in an exact world, two seeds.
# Run in the repository's root; further options are passed on. An interrupted run goes on.
set -e
exec "${POLYALIGN:-polyalign}" compare \
  dpo alphapo aot apo-down apo-zero asft bco brain cal-dpo cpo daa-blur discopop dpop dro exo \
  f-dpo grpo h-dpo implicit-reward-sft infonca ipo kto ld-dpo lipo ln-dpo mipo mmpo nca oreo orpo \
  pro r-dpo robust-dpo rpo rrhf sampo sdpo sera sft sigmoid-norm simpo slic tdpo tr-dpo wpo \
  --world bandit --seeds 2 --budget 24k \
  --title "45 methods in a world whose best answers are known" \
  --output docs/examples/worlds "$@"
