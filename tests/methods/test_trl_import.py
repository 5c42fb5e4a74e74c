"""What each of TRL's trainers, losses and flags becomes as a method."""

from __future__ import annotations

import pytest

from polyalign.errors import OptionError
from polyalign.methods.trl import import_config
from tests.methods.trl_kit import dpo, grpo, note

# Losses of the DPO trainer.


def test_sigmoid_is_dpo():
    got = dpo(loss_type="sigmoid", beta=0.2)
    assert got.method == "dpo"
    assert got.options["hyper"] == {"beta": 0.2, "loss": "dpo"}
    assert note(got, "beta").differs is None


def test_label_smoothing_with_sigmoid_is_cdpo_and_says_that_trl_1_ignores_it():
    got = dpo(loss_type=["sigmoid"], label_smoothing=0.1)
    assert got.options["hyper"] == {"beta": 0.1, "loss": "cdpo", "label_smoothing": 0.1}
    assert "TRL 1.x ignores label_smoothing" in note(got, "label_smoothing").differs


def test_robust_is_dpo_with_its_own_loss():
    got = dpo(loss_type="robust", label_smoothing=0.1)
    assert got.method == "dpo"
    assert got.options["hyper"] == {"beta": 0.1, "loss": "robust", "label_smoothing": 0.1}


def test_ipo_averages_over_tokens_and_beta_is_tau():
    got = dpo(loss_type="ipo", beta=0.05)
    assert got.method == "ipo"
    assert got.options["hyper"] == {"tau": 0.05, "length_average": True}
    assert note(got, "beta").became == "tau=0.05"


def test_hinge_is_the_normalised_form_of_slic():
    got = dpo(loss_type="hinge", beta=0.3, label_smoothing=0.1)
    assert (got.method, got.options["hyper"]) == ("slic", {"form": "hinge-norm", "beta": 0.3})
    assert "does not use it" in note(got, "label_smoothing").differs


@pytest.mark.parametrize(
    ("loss", "form"), [("aot", "paired"), ("aot_unpaired", "unpaired"), ("aot_pair", "unpaired")]
)
def test_the_names_of_aot_are_the_forms_that_trl_ran(loss, form):
    got = dpo(loss_type=loss)
    assert got.method == "aot"
    assert got.options["hyper"]["form"] == form
    assert got.options["hyper"]["beta"] == 0.1
    assert ("up to 0.27 called" in note(got, "loss_type").differs) == (loss == "aot_pair")


def test_kto_pair_is_gone_and_the_mend_names_kto():
    with pytest.raises(OptionError, match="removed loss_type=kto_pair") as caught:
        dpo(loss_type="kto_pair")
    assert "trainer kto" in caught.value.mend


def test_a_loss_without_a_counterpart_is_refused():
    with pytest.raises(OptionError, match="loss_type=sppo_hard of TRL's dpo is a method of its"):
        dpo(loss_type="sppo_hard")


def test_bco_pair_says_which_trl_shifted_its_rewards():
    got = dpo(loss_type="bco_pair")
    assert (got.method, got.options["hyper"]["form"]) == ("nca", "biased")
    assert "TRL up to 0.28 shifted" in note(got, "loss_type").differs


def test_a_misspelt_loss_names_the_nearest():
    with pytest.raises(OptionError, match="no loss_type 'sigmod'") as caught:
        dpo(loss_type="sigmod")
    assert "sigmoid" in caught.value.mend


def test_a_mixture_of_losses_is_refused():
    with pytest.raises(OptionError, match="mixes 2 losses"):
        dpo(loss_type=["hinge", "sft"], loss_weights=[0.8, 0.2])


def test_dpo_with_imitation_is_rpo_in_trls_form_up_to_a_factor():
    got = dpo(loss_type=["sigmoid", "sft"], loss_weights=[0.8, 0.2], beta=0.3)
    assert got.method == "rpo"
    assert got.options["hyper"] == {"form": "trl", "eta": 0.25, "beta": 0.3}
    assert "factor of the whole loss" in note(got, "loss_weights").differs
    with pytest.raises(OptionError, match="leaves nothing of the preference"):
        dpo(loss_type=["sigmoid", "sft"], loss_weights=[0, 1])


@pytest.mark.parametrize(
    ("flags", "method", "hyper"),
    [
        ({"sync_ref_model": True}, "tr-dpo",
         {"base": "dpo", "form": "both", "alpha": 0.6, "tau": 512, "beta": 0.1}),
        ({"sync_ref_model": True, "loss_type": "ipo", "ref_model_sync_steps": 8, "beta": 0.2},
         "tr-dpo", {"base": "ipo", "form": "both", "alpha": 0.6, "tau": 8, "beta": 0.2}),
        ({"use_weighting": True, "beta": 0.2}, "wpo", {"beta": 0.2, "clip_max": 1e9}),
        ({"ld_alpha": 0.5}, "ld-dpo", {"beta": 0.1, "alpha": 0.5}),
        ({"rpo_alpha": 1.0}, "rpo", {"form": "trl", "beta": 0.1, "eta": 1.0}),
        ({"reference_free": True}, "cpo", {"alpha": 0.0, "beta": 0.1, "label_smoothing": 0.0}),
        ({"f_divergence_type": "js_divergence"}, "f-dpo", {"beta": 0.1, "divergence": "js"}),
        ({"f_divergence_type": "FDivergenceType.FORWARD_KL"}, "f-dpo",
         {"beta": 0.1, "divergence": "forward_kl"}),
        ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.25}, "f-dpo",
         {"beta": 0.1, "divergence": "alpha", "alpha": 0.75}),
        ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0}, "f-dpo",
         {"beta": 0.1, "divergence": "forward_kl"}),
    ],
)  # fmt: skip
def test_a_flag_that_makes_another_method_is_imported_as_that_method(flags, method, hyper):
    got = dpo(**flags)
    assert (got.method, got.options["hyper"]) == (method, hyper)
    assert {n.flag for n in got.notes if not n.default} == set(flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"ld_alpha": 0.5, "use_weighting": True}, "make two different methods"),
        ({"ld_alpha": 0.5, "sync_ref_model": True}, "the reference follows the policy"),
        ({"ld_alpha": 0.5, "loss_type": "hinge"}, "together with loss_type=hinge is no method"),
        ({"sync_ref_model": True, "loss_type": "robust"}, "the reference follows the policy"),
        ({"f_divergence_type": "chi2"}, "no f_divergence_type 'chi2'"),
        ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 2}, "in .0, 1."),
        ({"loss_type": ["sigmoid", "sft"], "ld_alpha": 0.5}, "changes one of the two losses"),
    ],
)
def test_flags_that_make_no_method_here_are_refused_and_not_dropped(flags, says):
    with pytest.raises(OptionError, match=says):
        dpo(**flags)


def test_the_same_flags_at_their_neutral_values_pass():
    got = dpo(sync_ref_model=False, use_weighting=False, ld_alpha=1.0, rpo_alpha=None,
              f_divergence_type="reverse_kl")  # fmt: skip
    assert got.method == "dpo"
    assert all(n.differs is None for n in got.notes if n.flag in ("ld_alpha", "rpo_alpha"))


# Other trainers.


def test_simpo_of_the_cpo_trainer_keeps_its_margin_and_its_likelihood_term():
    got = import_config({"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0})
    assert got.method == "simpo"
    hyper = got.options["hyper"]
    assert hyper["beta"] * hyper["gamma_beta_ratio"] == pytest.approx(1.0)
    assert hyper["sft_weight"] == 1.0
    assert note(got, "cpo_alpha").default
    assert import_config(
        {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.0}
    ).options["hyper"]["sft_weight"] == 0.0  # fmt: skip


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_cpo_is_imported_with_its_likelihood_by_token(loss):
    got = import_config({"loss_type": loss, "cpo_alpha": 0.5, "beta": 0.2}, trainer="cpo")
    assert got.method == "cpo"
    hyper = {"form": "code", "link": loss, "beta": 0.2, "alpha": 0.5}
    assert got.options["hyper"] == hyper | ({"label_smoothing": 0.0} if loss == "sigmoid" else {})


def test_alphapo_is_imported_and_its_likelihood_left_out_as_the_trainer_does():
    flags = {"alpha": 0.25, "beta": 2.5, "simpo_gamma": 0.1}
    got = import_config({"loss_type": "alphapo", "cpo_alpha": 1.0, **flags})
    hyper = {"alpha": 0.25, "beta": 2.5, "gamma": 0.1, "label_smoothing": 0.0}
    assert (got.method, got.options["hyper"]) == ("alphapo", hyper)
    shaped = import_config({"loss_type": "simpo", "cpo_alpha": 0.3, **flags})
    assert shaped.options["hyper"] == hyper | {"sft_weight": 0.3}
    with pytest.raises(OptionError, match="rewards of another shape"):
        import_config({"loss_type": "hinge", "alpha": 0.25, "cpo_alpha": 1.0})


def test_bco_is_imported_as_its_trainer_computes_it():
    got = import_config({"beta": 0.05, "min_density_ratio": 0.3}, trainer="bco")
    assert (got.method, got.options["hyper"]) == ("bco", {"form": "code", "beta": 0.05})
    assert got.options["lr"] == 5e-7
    assert "p_desirable" in note(got, "min_density_ratio").differs


def test_tpo_is_triple_po_with_the_gold_answer_of_its_column():
    got = import_config({"tpo_alpha": 0.5, "loss_type": "tpo-l", "tpo_l_gamma": 0.3})
    assert got.method == "triple-po"
    assert got.options["hyper"] == {
        "form": "code", "loss": "tpo-l", "gamma": 0.3, "beta": 0.01, "alpha": 0.5,
    }  # fmt: skip
    assert got.options["columns"] == {"gold": "reference"}
    hinge = import_config({"loss_type": "hinge"}, trainer="tpo")
    assert hinge.options["hyper"]["link"] == "hinge"
    with pytest.raises(OptionError, match="loss_type=ipo of TRL's tpo"):
        import_config({"loss_type": "ipo"}, trainer="tpo")
    with pytest.raises(OptionError, match="a smoothed TPO"):
        import_config({"label_smoothing": 0.1}, trainer="tpo")


def test_kto_whose_reference_moves_is_tr_dpo():
    got = import_config({"sync_ref_model": True, "beta": 0.05}, trainer="kto")
    assert got.method == "tr-dpo"
    assert got.options["hyper"]["base"] == "kto"
    with pytest.raises(OptionError, match="weighs both classes alike"):
        import_config({"sync_ref_model": True, "desirable_weight": 2.0}, trainer="kto")


def test_orpo_takes_beta_as_the_weight_of_the_odds():
    got = import_config({"beta": 0.25}, trainer="orpo")
    assert (got.method, got.options["hyper"]) == ("orpo", {"lam": 0.25})
    assert "prompt's tokens" in note(got, "beta").differs


def test_kto_keeps_both_weights():
    got = import_config({"desirable_weight": 1.33, "beta": "0.05"})
    assert got.method == "kto"
    assert got.options["hyper"] == {"beta": 0.05, "lam_D": 1.33, "lam_U": 1.0}


def test_sft_says_what_packing_and_turns_mean():
    got = import_config({"packing": True, "max_seq_length": 512, "assistant_only_loss": True})
    assert got.method == "sft"
    assert got.options["hyper"] == {"reduction": "token"}
    assert got.options["max_length"] == 512
    assert got.options["assistant"] == "all"
    assert got.options["lr"] == 2e-5
    assert "not packed" in note(got, "packing").differs


def test_grpo_flags_become_its_hyper_parameters():
    got = grpo(num_generations=4, epsilon=0.1, epsilon_high=0.28, loss_type="dr_grpo",
               scale_rewards=False, max_completion_length=64, num_iterations=2, beta=0.01,
               mask_truncated_completions=True, temperature=0.7, reward_funcs=["my.rewards.short"],
               per_device_train_batch_size=8, use_vllm=True, vllm_mode="server")  # fmt: skip
    assert got.options["hyper"] == {
        "G": 4, "beta": 0.01, "eps_low": 0.1, "eps_high": 0.28, "aggregation": "dr_grpo",
        "level": "token", "scale": "none", "L_max": 64, "inner_epochs": 2, "drop_truncated": True,
        "kl_correction": True,
    }  # fmt: skip
    assert got.options["judge"] == "my/rewards.py:short"
    assert got.options["batch"] == 8
    assert "temperature 1" in note(got, "temperature").differs
    assert "own sampler" in note(got, "use_vllm").differs


def test_grpo_without_a_word_is_what_trl_defaults_to():
    got = grpo()
    assert got.options["hyper"]["aggregation"] == "dapo"
    assert got.options["hyper"]["beta"] == 0.0
    assert all(n.default for n in got.notes)


def test_cispo_bounds_the_ratio_itself():
    got = grpo(loss_type="cispo", epsilon_high=5.0)
    assert got.options["hyper"]["surrogate"] == "cispo"
    assert got.options["hyper"]["eps_max"] == 5.0
    assert "eps_low" not in got.options["hyper"]


def test_rewards_scaled_by_the_batch_are_refused():
    with pytest.raises(OptionError, match="scale_rewards=batch has no counterpart"):
        grpo(scale_rewards="batch")
