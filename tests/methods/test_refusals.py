# ruff: noqa: E501  (a case is one line, however long)
"""What each method's card says to refuse is refused, and what it says to warn of is warned of.

One line a case: a method, what is wrong, and what is said. Three kinds of mistakes are made through
the three places where they are found: ``hyper`` (the signature's types), arrays (what an objective
needs, and the one check of numbers), and ``run`` (what only records and policies show).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyalign import objective
from polyalign.methods.build_index import headers
from tests.methods.refusals import (
    ALONE,
    COUNTED_LISTS,
    GOOD,
    INF,
    LABEL,
    LISTS,
    NAN,
    OPTIONS,
    PLAIN,
    RATIO_LISTS,
    SIZE,
    STEPS,
    SUMS,
    WORLD,
    Case,
    but,
    first,
    quadruple,
    rows,
    trained,
)

# Mistakes that the cards of all methods of a family share.

SUMMED = ("dpo", "ipo", "slic", "simpo", "orpo", "aot", "tdpo", "tr-dpo", "sdpo",
          "spo-sequential", "modpo", "apo-zero", "apo-down", "cal-dpo", "asft", "h-dpo",
          "robust-dpo", "reward-augmented", "mmpo", "osp", "bvpo")  # fmt: skip
"""Methods that compare a chosen and a rejected answer."""

WITH_REFERENCE = ("dpo", "ipo", "aot", "tdpo", "tr-dpo", "sdpo", "spo-sequential", "modpo",
                  "apo-zero", "apo-down", "cal-dpo", "h-dpo", "robust-dpo", "reward-augmented",
                  "mmpo", "osp", "bvpo")  # fmt: skip

BY_STEP = ("wpo", "sampo", "bmc")
"""Methods that look at single tokens."""

SHARED = [
    case
    for id in BY_STEP
    for case in (
        Case(id, "sums alone", f"{id} looks at single steps", arrays=PLAIN),
        Case(id, "no reference", "needs the array 'ref_w'", arrays=but(id, ref_w=None)),
        Case(id, "an empty response", "Example 0 has no step that counts", arrays=but(id, mask_l=np.array([[0] * 4, [1] * 4]))),
        Case(id, "a token's logp infinite", "'logp_l' is not finite", arrays=but(id, logp_l=first(STEPS[2], -INF))),
    )
] + [
    case
    for id in SUMMED
    for case in (
        Case(id, "lp_w not a number", "'lp_w' is not finite", arrays=but(id, lp_w=first(SUMS["lp_w"], NAN))),
        Case(id, "lp_l infinite", "'lp_l' is not finite", arrays=but(id, lp_l=first(SUMS["lp_l"], -INF))),
        Case(id, "sides of two axes", r"'lp_w' has shape \[5, 2\]", arrays=but(id, lp_w=np.ones((5, 2)))),
        Case(id, "an empty completion", "Example 0 has length 0", arrays=but(id, n_w=[0, 1, 1, 1, 1], n_l=[1] * 5)),
        Case(id, "no log-probabilities", "needs the array 'lp_l'", arrays=but(id, lp_l=None)),
    )
] + [
    case
    for id in WITH_REFERENCE
    for case in (
        Case(id, "no reference", "needs the array 'rf_w'", arrays=but(id, rf_w=None)),
        Case(id, "a reference of another size", "'rf_w' has shape", arrays=but(id, rf_w=[-1.0])),
        Case(id, "a reference that is no number", "'rf_l' is not finite", arrays=but(id, rf_l=first(SUMS["rf_l"], INF))),
    )
] + [
    Case(id, f"{name} of 0", f"{name}=0 is not allowed", hyper={name: 0})
    for id, name in [("dpo", "beta"), ("ipo", "tau"), ("slic", "beta"), ("slic", "delta"), ("simpo", "beta"), ("aot", "beta"),
                     ("tdpo", "beta"), ("kto", "beta"), ("iopo", "beta"), ("oreo", "beta"), ("sera", "beta"), ("tr-dpo", "beta"),
                     ("sdpo", "beta"), ("spo-sequential", "beta"), ("modpo", "beta"), ("apo-zero", "beta"), ("apo-down", "beta"),
                     ("cal-dpo", "beta"), ("bco", "beta"), ("nca", "beta"), ("nca", "T"), ("infonca", "beta"), ("infonca", "T"),
                     ("exo", "beta_pi"), ("exo", "beta_r"), ("exo", "eps"), ("lipo", "beta"), ("brain", "g"), ("dro", "tau"),
                     ("wpo", "beta"), ("h-dpo", "alpha"), ("h-dpo", "beta"), ("bvpo", "beta"), ("sampo", "beta"), ("bmc", "beta"),
                     ("robust-dpo", "beta"), ("mmpo", "beta"), ("osp", "beta"), ("dpo-kernels", "kappa"), ("implicit-reward-sft", "b"),
                     ("reward-augmented", "beta"), ("offline-rlhf", "temperature"), ("offline-rlhf", "keep_ratio")]
] + [
    case
    for id in (*RATIO_LISTS, *COUNTED_LISTS)
    for case in (
        Case(id, "a list of one", "Example 0 has fewer than two answers", arrays={k: ALONE.get(k, [[1, 0]]) for k in GOOD[id]}),
        Case(id, "no scores", "needs the array 'reward'", arrays=but(id, r=None)),
        Case(id, "a score that is no number", r"'reward' is not finite at \[0, 0\]", arrays=but(id, r=first(LISTS["r"], NAN))),
        Case(id, "lp infinite", "'lp' is not finite", arrays=but(id, lp=first(LISTS["lp"], -INF))),
        Case(id, "one axis", r"'lp' has shape \[2\]", arrays=but(id, lp=[-1.0, -2.0])),
    )
] + [
    Case(id, "no reference", "needs the array 'rf'", arrays=but(id, rf=None)) for id in RATIO_LISTS
] + [
    Case(id, "label smoothing of a half", "label_smoothing=0.5 is not allowed", hyper={"label_smoothing": 0.5})
    for id in ("dpo", "simpo", "iopo", "aot")
]  # fmt: skip

OWN = [
    Case("dpo", "identical answers", "look identical in example 0", warns=True,
         arrays=but("dpo", lp_l=first(SUMS["lp_l"], SUMS["lp_w"][0]), rf_l=first(SUMS["rf_l"], SUMS["rf_w"][0]))),
    Case("dpo", "smoothing that nothing reads", "label_smoothing has no place in loss=dpo", hyper={"label_smoothing": 0.1}),
    Case("slic", "beta in the paper's form", "beta has no place", hyper={"beta": 0.3}),
    Case("slic", "delta in TRL's hinge", "delta has no place", hyper={"form": "hinge-norm", "delta": 2.0}),
    Case("slic", "lam in TRL's hinge", "lam has no place", hyper={"form": "hinge-norm", "lam": 0.2}),
    Case("slic", "negative lam", "lam=-1 is not allowed", hyper={"lam": -1}),
    Case("simpo", "a negative margin", "asks chosen answers to be worse", hyper={"gamma_beta_ratio": -0.1}, warns=True),
    Case("orpo", "negative lam", "lam=-1 is not allowed", hyper={"lam": -1}),
    Case("orpo", "an average of 0", "is not below 0, so it has no odds", arrays=but("orpo", lp_w=first(SUMS["lp_w"], 0.0))),
    Case("aot", "one pair", "one pair has nothing to sort against", warns=True, arrays={k: v[:1] for k, v in PLAIN.items()}),
    Case("aot", "sets of two sizes, paired", "sides of different sizes", arrays=but("aot", lp_l=SUMS["lp_l"][:4], rf_l=SUMS["rf_l"][:4])),
    Case("tdpo", "alpha of the other variant", "alpha has no place in variant=tdpo1", hyper={"variant": "tdpo1", "alpha": 0.3}),
    Case("tdpo", "negative alpha", "alpha=-1 is not allowed", hyper={"alpha": -1}),
    Case("tdpo", "taken tokens only", "which tokens alone do not give", arrays=but("tdpo", D_w=None)),
    Case("tdpo", "a reference without mass on a token", "'ref_logits_w' is not finite",
         arrays={"logits_w": np.zeros((1, 2, 3)), "logits_l": np.zeros((1, 2, 3)), "tokens_w": [[0, 1]], "tokens_l": [[0, 1]],
                 "ref_logits_w": first(np.zeros((1, 2, 3)), -INF), "ref_logits_l": np.zeros((1, 2, 3))}),
    Case("wpo", "an unknown alignment", "alignment='lazy' is not allowed", hyper={"alignment": "lazy"}),
    Case("wpo", "log-probabilities of taken tokens only", "needs the array 'log_collision_w'", arrays=but("wpo", log_collision_w=None)),
    Case("sampo", "no random numbers", "needs the array 'u_l'", arrays=but("sampo", u_l=None)),
    Case("sampo", "numbers that are no draws", r"'u_w' holds numbers outside \[0, 1\)", arrays=but("sampo", u_w=np.ones((2, 4)))),
    Case("sampo", "an end that nothing drops", "no place in form=averaged", hyper={"form": "averaged", "keep_eos": True}),
    Case("bmc", "a negative delta", "delta=-1 is not allowed", hyper={"delta": -1}),
    Case("bmc", "no token ids", "needs the array 'tokens_l'", arrays=but("bmc", tokens_l=None)),
    Case("bmc", "a policy that knows no words", "needs 'stop_word'", run=trained("bmc", WORLD.pairs())),
    Case("robust-dpo", "a flip rate of a half", "eps=0.5 is not allowed", hyper={"eps": 0.5}),
    Case("robust-dpo", "a negative flip rate", "eps=-0.1 is not allowed", hyper={"eps": -0.1}),
    Case("mmpo", "a negative gamma", "gamma=-1 is not allowed", hyper={"gamma": -1}),
    Case("mmpo", "no scores", "needs the array 'score_rejected'", arrays=but("mmpo", s_l=None)),
    Case("mmpo", "records without scores", "needs the number 'score_", run=trained("mmpo", [replace(p, fields={}) for p in WORLD.pairs()])),
    Case("osp", "a strength above 1", "'strength' holds numbers outside", arrays=but("osp", p=[1.5] * SIZE)),
    Case("osp", "records of a strength above 1", "its strength 1.5", run=trained("osp", [replace(p, fields={"strength": 1.5}) for p in WORLD.pairs()])),
    Case("bvpo", "a share above 1", "a=1.5 is not allowed", hyper={"a": 1.5}),
    Case("bvpo", "one kind of pairs", "No pair has trace=0", run=trained("bvpo", [replace(p, fields={"trace": 1.0}) for p in WORLD.pairs()])),
    Case("bvpo", "pairs of no kind", "does not say whether it is of the first kind", run=trained("bvpo", WORLD.pairs())),
    Case("bvpo", "kinds about different prompts", "about different prompts", warns=True,
         run=trained("bvpo", [replace(p, fields={"trace": float(p.prompt)}) for p in WORLD.pairs()])),
    Case("dpo-kernels", "no embeddings", "needs the array 'd", arrays=but("dpo-kernels", e_x=None, e_w=None, e_l=None)),
    Case("dpo-kernels", "records without embeddings", "has no 'embedding_prompt'", run=trained("dpo-kernels", WORLD.pairs(), encoder="given")),
    Case("dpo-kernels", "a policy without states", "Only a language model has states", run=trained("dpo-kernels", WORLD.pairs())),
    Case("dpo-kernels", "a covariance that is none", "not symmetric and positive definite", hyper={"kernel": "mahalanobis"},
         arrays=GOOD["dpo-kernels"] | {"S": -np.eye(3)}),
    Case("dpo-kernels", "a negative alpha", "alpha=-1 is not allowed", hyper={"alpha": -1}),
    Case("dpo-kernels", "an order of 0", "renyi_alpha=0 is not allowed", hyper={"divergence": "renyi", "renyi_alpha": 0}),
    Case("dpo-kernels", "an order of 1", "renyi_alpha=1 is kl", hyper={"divergence": "renyi", "renyi_alpha": 1}),
    Case("dpo-kernels", "an unknown divergence", "divergence='chi2' is not allowed", hyper={"divergence": "chi2"}),
    Case("implicit-reward-sft", "no reference", "needs the array 'rf'", arrays=but("implicit-reward-sft", rf=None)),
    Case("implicit-reward-sft", "a reward outside the domain", "lie outside the divergence's domain", warns=True,
         hyper={"f": "hellinger", "b": 1}, arrays={"lp": [-9.0], "rf": [-1.0]}),
    Case("reward-augmented", "pairs without scores", "has no 'score_chosen'", run=trained("reward-augmented", [replace(p, fields={}) for p in WORLD.pairs()])),
    Case("reward-augmented", "a score outside the scale", "is no score from 1 to 10",
         run=trained("reward-augmented", [replace(p, fields={"score_chosen": 11.0, "score_rejected": 2.0}) for p in WORLD.pairs()])),
    Case("reward-augmented", "equal scores alone", "No example is left",
         run=trained("reward-augmented", [replace(p, fields={"score_chosen": 2.0, "score_rejected": 2.0}) for p in WORLD.pairs()])),
    Case("reward-augmented", "a goal outside the scale", "goal=11 lies outside the scale", hyper={"goal": 11}),
    Case("offline-rlhf", "a share above 1", "keep_ratio=1.5 is not allowed", hyper={"form": "filter", "keep_ratio": 1.5}),
    Case("offline-rlhf", "a score that is no number", "has a score that is not finite",
         run=trained("offline-rlhf", [replace(s, scores=(NAN,)) for s in WORLD.scored()], form="rwr", standardise=False)),
    Case("offline-rlhf", "no rewards", "needs the array 'reward'", hyper={"form": "rwr"}, arrays=GOOD["offline-rlhf"]),
    Case("offline-rlhf", "prompts that keep no answer", "have no answer among the best", warns=True,
         run=trained("offline-rlhf", [replace(s, scores=(float(s.prompt),)) for s in WORLD.scored()], form="filter")),
    Case("offline-rlhf", "an option of another form", "clip has no place in form=filter", hyper={"form": "filter", "clip": 2}),
    Case("kto", "a single example", "over several examples, and there is one", arrays={k: v[:1] for k, v in GOOD["kto"].items()}),
    Case("kto", "no labels", "needs the array 'label'", arrays=but("kto", label=None)),
    Case("kto", "one class of labels", "all examples have one label", arrays=but("kto", label=[1] * 5), warns=True),
    Case("kto", "negative lam_D", "lam_D=-1 is not allowed", hyper={"lam_D": -1}),
    Case("kto", "no mismatched answers", "needs the array 'lpK'", arrays=but("kto", lpK=None)),
    Case("kto", "one prompt for all", "at least two different prompts", run=trained("kto", [b for b in WORLD.binary() if b.prompt == 0])),
    Case("bco", "one class of labels", "all examples have one label", arrays=but("bco", label=[1] * 5), warns=True),
    Case("bco", "w_min above w_max", "w_min=3 exceeds w_max=2", hyper={"matching": True, "w_min": 3, "w_max": 2}),
    Case("bco", "a probability above 1", r"'p_desirable' holds numbers outside", hyper={"matching": True}, arrays=GOOD["bco"] | {"p": [1.5] * 5}),
    Case("bco", "records without a probability", "needs the number 'p_desirable'", run=trained("bco", WORLD.binary(), matching=True)),
    Case("asft", "negative lam", "lam=-1 is not allowed", hyper={"lam": -1}),
    Case("asft", "an average of 0", "is not below 0, so it has no odds", arrays=but("asft", lp_l=first(SUMS["lp_l"], 0.0))),
    Case("cal-dpo", "a negative weight", "cal_weight=-1 is not allowed", hyper={"cal_weight": -1}),
    Case("nca", "a temperature that nothing reads", "T has no place in form=pair", hyper={"form": "pair", "T": 1}),
    Case("exo", "eps of a half", "eps=0.5 is not allowed", hyper={"form": "pref", "eps": 0.5}),
    Case("exo", "eps that nothing reads", "eps has no place in form=rw", hyper={"eps": 0.1}),
    Case("lipo", "labels above 1", "'reward' holds numbers outside", hyper={"variant": "point-sigmoid"}, arrays=but("lipo", r=first(LISTS["r"], 2.0))),
    Case("lipo", "negative labels", "'reward' holds numbers outside", hyper={"variant": "softmax"}, arrays=but("lipo", r=first(LISTS["r"], -1.0))),
    Case("lipo", "labels that are all 0", "sum to 0", hyper={"variant": "softmax"}, arrays=but("lipo", r=[[0.0] * 3, [0.0] * 3])),
    Case("pro", "a negative weight", "sft_weight=-1 is not allowed", hyper={"sft_weight": -1}),
    Case("pro", "a zero-length answer", "length 0", arrays=but("pro", n=[[1, 0, 3], [2, 2, 0]])),
    Case("rrhf", "a negative weight", "rrhf_weight=-1 is not allowed", hyper={"rrhf_weight": -1}),
    Case("rrhf", "a zero-length answer", "length 0", arrays=but("rrhf", n=[[1, 0, 3], [2, 2, 0]])),
    Case("brain", "no law that drew", "needs the array 'proposal'", hyper={"proposal": "given"}, arrays=LISTS),
    Case("infonca", "records of one answer", "it has one answer", run=trained("infonca", WORLD.scored())),
    Case("dro", "no reward", "needs the array 'reward'", arrays=but("dro", r=None)),
    Case("dro", "a reward that is no number", "'reward' is not finite", arrays=but("dro", r=first(LABEL, NAN))),
    Case("dro", "a reference that gives no probability", "'rf' is not finite", arrays=but("dro", rf=first(GOOD["dro"]["rf"], -INF))),
    Case("dro", "constant rewards", "scores are equal", run=trained("dro", [replace(s, scores=(1.0,)) for s in WORLD.scored()])),
    Case("iopo", "one of the four missing", "needs the array 'lp_21'", arrays=but("iopo", lp_21=None)),
    Case("iopo", "equal prompts", "prompt_2 is the same as prompt_1", run=rows(quadruple(prompt_2="a"))),
    Case("iopo", "equal answers", "completion_2 is the same as completion_1", run=rows(quadruple(completion_2="b"))),
    Case("sft", "an empty completion", "Example 0 has no step that counts", arrays=but("sft", mask=np.array([[0] * 4, [1] * 4]))),
    Case("sft", "a mask of another shape", "'mask' has shape", arrays=but("sft", mask=np.ones((2, 3)))),
    Case("sft", "not a number", "'logp' is not finite", arrays=but("sft", logp=first(STEPS[0], NAN))),
    Case("sft", "an unknown reduction", "reduction='tokens' is not allowed", hyper={"reduction": "tokens"}),
    Case("oreo", "no reward", "needs the array 'reward'", arrays=but("oreo", reward=None)),
    Case("oreo", "no reference", "needs the array 'ref'", arrays=but("oreo", ref=None)),
    Case("oreo", "no values", "needs the array 'value'", arrays=but("oreo", value=None)),
    Case("oreo", "an empty response", "Example 1 has no step that counts", arrays=but("oreo", mask=np.array([[1] * 4, [0] * 4]))),
    Case("oreo", "records without a reward", "needs the number 'reward'", run=trained("oreo", WORLD.demonstrations(WORLD.start))),
    Case("grpo", "one completion a prompt", "G=1 is not allowed", hyper={"G": 1}),
    Case("grpo", "an unknown aggregation", "aggregation='mean' is not allowed", hyper={"aggregation": "mean"}),
    Case("grpo", "an unknown level", "level='word' is not allowed", hyper={"level": "word"}),
    Case("grpo", "eps_low of 1", "eps_low=1 is not allowed", hyper={"eps_low": 1}),
    Case("grpo", "no rewards", "needs the array 'advantage'", arrays=but("grpo", rewards=None)),
    Case("grpo", "a budget below a completion", "more than L_max=2", hyper={"aggregation": "dr_grpo", "L_max": 2}, arrays=GOOD["grpo"]),
    Case("sac", "a negative temperature", "alpha=-1 is not allowed", hyper={"alpha": -1}),
    Case("sera", "a share of 0", "keep_ratio=0 is not allowed", hyper={"keep_ratio": 0}),
    Case("sera", "a share above 1", "keep_ratio=1.5 is not allowed", hyper={"keep_ratio": 1.5}),
    Case("sera", "one sample a prompt", "one sample makes no pair", hyper={"n_generate": 1}),
    Case("sera", "an ensemble weight above 1", "ensemble_gamma=1.5 is not allowed", hyper={"ensemble_gamma": 1.5}),
    Case("sera", "nothing to learn from", "No example is left", run=trained("sera", [], n_iter=1)),
    Case("tr-dpo", "alpha of 0", "alpha=0 is not allowed", hyper={"alpha": 0}),
    Case("tr-dpo", "alpha above 1", "alpha=1.5 is not allowed", hyper={"alpha": 1.5}),
    Case("tr-dpo", "tau below 1", "tau=0 is not allowed", hyper={"tau": 0}),
    Case("sdpo", "no stage", "stages=0 is not allowed", hyper={"stages": 0}),
    Case("sdpo", "fewer pairs than stages", "1 examples cannot be cut into 2", run=trained("sdpo", WORLD.pairs()[:1])),
    Case("spo-sequential", "negative lam", "lam=-0.1 is not allowed", hyper={"lam": -0.1}),
    Case("spo-sequential", "a lam too few", "lam has 2 numbers", hyper={"rounds": 4, "lam": "0.1,0.2"}),
    Case("spo-sequential", "no earlier policy", "needs the array 'pi0_l'", arrays=but("spo-sequential", pi0_l=None)),
    Case("spo-sequential", "pairs of no dimension", "has no 'dimension'", run=trained("spo-sequential", WORLD.pairs())),
    Case("modpo", "no weight on the own objective", "own objective has weight 0", hyper={"w": "0,1"}),
    Case("modpo", "a negative weight", "the weight -0.5 is negative", hyper={"w": "1.5,-0.5"}),
    Case("modpo", "a weight too many", "w has 3 weights for 2 objectives", hyper={"w": "0.5,0.3,0.2"}),
    Case("modpo", "a margin that is no number", "'m_w' is not finite", arrays=but("modpo", m_w=first(np.ones(5), NAN))),
    Case("modpo", "a margin that is missing", "needs the array 'm_l'", arrays=but("modpo", m_l=None)),
    Case("modpo", "a pair without rewards", "needs the number 'm_l'", run=trained("modpo", WORLD.pairs())),
    Case("modpo", "weights off the simplex", "add up to 1.5", hyper={"w": "1,0.5"}, warns=True),
]  # fmt: skip

CASES = [*SHARED, *OWN]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.id}: {c.what}")
def test_what_a_card_refuses_is_refused_and_what_it_warns_of_is_warned_of(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("id", GOOD)
def test_what_the_cases_change_was_right_before(id: str) -> None:
    result = objective(id, **OPTIONS.get(id, {}))(GOOD[id])
    assert np.isfinite(result.value)


def test_each_method_has_a_case() -> None:
    first_room = {"aot", "dpo", "grpo", "iopo", "ipo", "kto", "oreo", "orpo", "sac", "sera", "sft",
                  "simpo", "slic", "tdpo", "tr-dpo", "sdpo", "spo-sequential", "modpo", "apo-zero", "apo-down",
                  "asft", "bco", "cal-dpo", "dro", *RATIO_LISTS, *COUNTED_LISTS, "wpo", "h-dpo",
                  "bvpo", "sampo", "bmc", "robust-dpo", "mmpo", "osp", "dpo-kernels",
                  "implicit-reward-sft", "reward-augmented", "offline-rlhf"}  # fmt: skip
    assert first_room <= {case.id for case in CASES}
    assert first_room <= set(headers())
