"""Constants of a policy, its parameters by name, and what is saved of it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from polyalign.errors import ModelError, OptionError
from polyalign.policies.language import adapters
from polyalign.policies.language.adapters import LoraSpec, changes_nothing
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Sampling
from polyalign.types import Rows
from tests.conftest import make_tiny_llama
from tests.policies import tiny

LORA = LoraSpec(r=2, alpha=4)
PAIRS = [("the cat", " sat"), ("the cat", " ran after the dog"), ("a", "b")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "tiny", seed=3)


def rows_of(policy) -> Rows:
    return Rows.collate([policy.encode(*pair) for pair in PAIRS])


def logp_of(policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.score(rows_of(policy)).logp


def moved(policy, seed=0):
    torch.manual_seed(seed)
    policy.load({n: p + 0.3 * torch.randn_like(p) for n, p in policy.tensors().items()})
    return policy


def starts(base, folder):
    """Every way to begin: whole weights, a new adapter, a trained adapter loaded from a folder."""
    yield "whole", LanguagePolicy.from_pretrained(base)
    yield "new adapter", LanguagePolicy.from_pretrained(base, lora=LORA)
    trained = moved(LanguagePolicy.from_pretrained(base, lora=LORA))
    yield "moved adapter", trained
    trained.save(folder)
    yield "loaded adapter", LanguagePolicy.from_pretrained(folder)


def test_t34_the_reference_is_the_start_in_every_start_mode(base, tmp_path):
    """Every log-ratio is zero, so DPO's first loss is log 2; then the policy moves off."""
    for name, policy in starts(base, tmp_path):
        reference = policy.freeze()
        before = logp_of(reference)
        assert torch.equal(before, logp_of(policy)), name
        moved(policy, seed=1)
        assert torch.equal(logp_of(reference), before), name
        assert (logp_of(policy) - before).abs().max() > 1e-3, name


def test_t34_a_loaded_adapters_reference_is_not_the_bare_base(base, tmp_path):
    *_, (_, policy) = starts(base, tmp_path)
    bare = LanguagePolicy.from_pretrained(base, frozen=True)
    assert (logp_of(policy.freeze()) - logp_of(bare)).abs().max() > 1e-3


def test_a_new_adapters_constant_shares_the_base_and_computes_without_adapter(base):
    policy = LanguagePolicy.from_pretrained(base, lora=LORA)
    reference = policy.freeze()
    ours = dict(policy.model.named_parameters())
    theirs = dict(reference.model.named_parameters())
    assert all((ours[n] is theirs[n]) == ("lora_" not in n) for n in ours)
    assert all(m._disable_adapters for m in reference.model.modules() if hasattr(m, "lora_A"))
    assert not any(m._disable_adapters for m in policy.model.modules() if hasattr(m, "lora_A"))


def test_t35_scoring_a_constant_between_two_passes_changes_nothing(base):
    policy = moved(LanguagePolicy.from_pretrained(base, lora=LORA))
    reference = policy.freeze()
    rows = rows_of(policy)
    parameters = list(policy.trainable().values())
    alone = torch.autograd.grad(policy.score(rows).logp.sum(), parameters)
    logp = policy.score(rows).logp
    reference.score(rows)
    between = torch.autograd.grad(logp.sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(alone, between))
    assert all(p.requires_grad for p in parameters)
    assert reference.trainable() == {}
    assert not reference.score(rows).logp.requires_grad


def test_t35_scores_are_a_function_of_parameters_and_rows(base):
    policy = LanguagePolicy.from_pretrained(base, lora=LORA)
    assert not any(module.training for module in policy.model.modules())
    assert torch.equal(policy.score(rows_of(policy)).logp, policy.score(rows_of(policy)).logp)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_a_constants_constant_moves_alone(base, lora):
    policy = LanguagePolicy.from_pretrained(base, lora=lora)
    start = policy.freeze()
    moving = start.freeze()
    before = logp_of(start)
    moved(moving)
    assert torch.equal(logp_of(start), before)
    assert torch.equal(logp_of(policy), before)
    assert (logp_of(moving) - before).abs().max() > 1e-3
    moving.load(policy.tensors())
    assert torch.equal(logp_of(moving), before)


def test_constants_leave_memory_when_nobody_holds_them(base):
    policy = moved(LanguagePolicy.from_pretrained(base, lora=LORA))
    gone = weakref.ref(policy.freeze().model)
    gc.collect()
    assert gone() is None


def test_adapters_are_a_function_of_the_seed(base):
    one, two, other = (
        LanguagePolicy.from_pretrained(base, lora=LORA, seed=seed).tensors() for seed in (5, 5, 6)
    )
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


def test_loading_an_adapter_leaves_the_random_state_alone(base):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    policy = LanguagePolicy.from_pretrained(base, lora=LORA)
    moved_on = torch.rand(1)
    assert changes_nothing(policy.model)
    assert torch.equal(expected, moved_on)


def test_what_trains_is_float32_though_the_base_is_bfloat16(base):
    policy = LanguagePolicy.from_pretrained(base, lora=LORA, dtype="bfloat16")
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    assert policy.model.dtype == torch.bfloat16
    assert logp_of(policy).dtype == torch.float32
    whole = LanguagePolicy.from_pretrained(base, dtype="bfloat16")
    assert {p.dtype for p in whole.trainable().values()} == {torch.float32}
    exact = LanguagePolicy.from_pretrained(base)
    gap = (logp_of(whole) - logp_of(exact)).abs().max()
    assert 0 < gap < 0.1


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_parameters_go_out_and_in_by_stable_names(base, lora):
    one = LanguagePolicy.from_pretrained(base, lora=lora)
    other = moved(LanguagePolicy.from_pretrained(base, lora=lora, seed=9))
    assert list(one.trainable()) == list(other.trainable())
    one.load({n: t.clone() for n, t in other.tensors().items()})
    assert torch.equal(logp_of(one), logp_of(other))


def test_parameters_that_do_not_fit_are_named(base):
    policy = LanguagePolicy.from_pretrained(base, lora=LORA)
    tensors = policy.tensors()
    name = next(iter(tensors))
    with pytest.raises(ModelError, match="no parameter .*Did you mean"):
        policy.load(tensors | {name + "x": tensors[name]})
    with pytest.raises(ModelError, match="has shape.*same adapter rank"):
        policy.load(tensors | {name: tensors[name][:1]})
    with pytest.raises(ModelError, match="1 parameters are missing"):
        policy.load({n: t for n, t in tensors.items() if n != name})


def test_lora_options_that_do_not_fit_are_refused(base, tmp_path):
    with pytest.raises(ModelError, match="q_prjo are not modules.*q_proj"):
        LanguagePolicy.from_pretrained(base, lora=LoraSpec(targets=("q_prjo",)))
    LanguagePolicy.from_pretrained(base, lora=LORA).save(tmp_path)
    with pytest.raises(ModelError, match="is an adapter already.*polyalign model merge"):
        LanguagePolicy.from_pretrained(tmp_path, lora=LORA)


def test_a_router_that_is_linear_by_its_class_alone_has_no_adapter():
    from transformers import PhimoeConfig, PhimoeForCausalLM

    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    torch.manual_seed(0)
    model = PhimoeForCausalLM(PhimoeConfig(**size, **heads)).eval()
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    adapted = adapters.attach(model, LoraSpec(r=2), 0, "phimoe")
    torch.testing.assert_close(adapted(ids).logits, before, rtol=0, atol=1e-6)
    names = adapters.adapter_parameters(adapted)
    assert any("q_proj" in name for name in names)
    assert not any("router" in name for name in names)


@pytest.mark.parametrize("family", ["Mamba", "FalconMamba"])
def test_state_spaces_take_adapters_where_they_act_and_are_sampled_with_them(family):
    import transformers

    size = {"vocab_size": 340, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    config = getattr(transformers, f"{family}Config")(**size, time_step_rank=4, expand=2)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for target in ("dt_proj", "out_proj"):
        with pytest.raises(ModelError, match=f"on {target} would not act.*Leave it out"):
            adapters.attach(model, LoraSpec(r=2, targets=("in_proj", target)), 0, "tiny")
    peft = adapters.attach(model, LoraSpec(r=2), 0, "tiny")
    for name, parameter in adapters.adapter_parameters(peft).items():
        assert "dt_proj" not in name
        assert "out_proj" not in name
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    policy = LanguagePolicy(peft.get_base_model(), tiny.tokenizer(), peft=peft)
    drawn = policy.sample(["Why?"], 2, Sampling(max_steps=4), [1, 2])
    rows = Rows.collate(drawn.rows)
    with torch.no_grad():
        again = policy.score(rows).logp
    torch.testing.assert_close(again[rows.mask], drawn.old[rows.mask], rtol=0, atol=1e-4)


def test_a_whole_model_saved_loads_in_transformers_and_says_the_same(base, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = moved(LanguagePolicy.from_pretrained(base))
    policy.save(tmp_path)
    assert not [f for f in tmp_path.iterdir() if f.suffix in (".bin", ".pt", ".pkl")]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logp_of(LanguagePolicy(model, tokenizer)), logp_of(policy))


def test_an_adapter_saved_loads_in_peft_and_says_the_same(base, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = moved(LanguagePolicy.from_pretrained(base, lora=LORA))
    policy.save(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    }
    whole = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(whole, tmp_path).eval().get_base_model()
    assert torch.equal(logp_of(LanguagePolicy(model, policy.tokenizer)), logp_of(policy))


def test_t36_a_merged_adapter_says_the_same(base, tmp_path):
    from polyalign.policies.language.merge import merge

    policy = moved(LanguagePolicy.from_pretrained(base, lora=LORA))
    policy.save(tmp_path / "adapter")
    assert merge(tmp_path / "adapter", tmp_path / "merged") < 1e-4
    merged = LanguagePolicy.from_pretrained(tmp_path / "merged", frozen=True)
    assert merged.peft is None
    torch.testing.assert_close(logp_of(merged), logp_of(policy), rtol=0, atol=1e-4)
    with pytest.raises(ModelError, match="not empty"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(ModelError, match="is not an adapter"):
        merge(base, tmp_path / "other")


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("trunk", ["copy", "shared-frozen"])
def test_a_value_starts_at_zero_learns_and_leaves_the_policy_alone(base, lora, trunk):
    policy = LanguagePolicy.from_pretrained(base, lora=lora)
    rows, before = rows_of(policy), logp_of(policy)
    value = policy.build("value", {"trunk": trunk})
    values = value(rows)
    assert values.shape == rows.mask.shape
    assert values.eq(0).all()
    optimizer = torch.optim.Adam(value.parameters(), lr=0.01)
    target = torch.linspace(-1, 1, rows.mask.numel()).reshape(rows.mask.shape) * rows.mask
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = ((value(rows) - target) ** 2).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert value(rows)[~rows.mask].eq(0).all()
    assert torch.equal(logp_of(policy), before)
    assert all(p.grad is None for p in policy.trainable().values())


def test_a_values_state_holds_what_it_trains_and_no_more(base):
    policy = LanguagePolicy.from_pretrained(base, lora=LORA)
    value = policy.build("value", {})
    assert set(value.state_dict()) == {n for n, _ in value.named_parameters()}
    assert all(p.requires_grad for p in value.parameters())
    assert sum(p.numel() for p in value.parameters()) < 0.5 * sum(
        p.numel() for p in policy.model.parameters()
    )
    frozen = policy.build("value", {"trunk": "shared-frozen"})
    assert set(frozen.state_dict()) == {"head.weight", "head.bias"}


def test_modules_and_trunks_that_do_not_exist_name_the_nearest():
    policy = tiny.policy()
    with pytest.raises(OptionError, match="no module 'valeu'.*value"):
        policy.build("valeu", {})
    with pytest.raises(OptionError, match="no trunk 'copied'.*copy"):
        policy.build("value", {"trunk": "copied"})
