"""The flags that TRL 0.9 to 1.16 and transformers 4 and 5 know, and those we have no use for.

Facts read from the fields of their configuration classes; defaults are those of TRL 1.16.
"""

from __future__ import annotations

TRAINERS = ("dpo", "kto", "bco", "orpo", "cpo", "tpo", "sft", "grpo")

OTHER_TRAINERS = (
    "distillation", "gkd", "nash_md", "online_dpo", "ppo", "prm", "reward", "rloo", "xpo",
)  # fmt: skip
"""TRL's trainers whose configurations are not read."""

_SPEED = "it concerns speed or memory, which polyalign plans itself; the loss is not touched."
_LOGS = "every step is in metrics.jsonl; the command line shows its own progress."
_HUB = "polyalign uploads nothing; RUN/final is a standard folder that you can upload."
_PROCESSES = "how processes work together is set by the launcher, not in the configuration."
_SAVING = "checkpoints always hold the whole state and are atomic."
_RESUME = "continue a run with polyalign train --resume."
_LOADING = "data are read and kept in order by polyalign itself."
_VLLM = "samples are drawn by polyalign's own sampler."
_TOKENS = "special tokens are those of the tokenizer; masks come from positions."
_PEFT_ADAPTERS = "the reference is the model without the new adapter."
_LOGGED = "logging only; samples before and after are in samples.jsonl."


def _names(text: str) -> set[str]:
    return set(text.split())


def _each(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


UNUSED: dict[str, str] = {
    **_each(
        "per_device_eval_batch_size per_gpu_eval_batch_size eval_accumulation_steps "
        "auto_find_batch_size torch_empty_cache_steps torch_compile torch_compile_backend "
        "torch_compile_mode torchdynamo jit_mode_eval use_liger_kernel use_liger use_liger_loss "
        "liger_kernel_config use_cache tf32 activation_offloading attn_implementation "
        "gradient_checkpointing_kwargs gradient_checkpointing_use_reentrant padding_free "
        "activation_checkpointing_kwargs "
        "pad_to_multiple_of precompute_ref_batch_size use_logits_to_keep use_num_logits_to_keep "
        "cast_lm_head_to_fp32 bnb_4bit_quant_type bnb_4bit_quant_storage use_bnb_nested_quant "
        "bf16_full_eval fp16_full_eval fp16_opt_level fp16_backend half_precision_backend use_ipex "
        "dataset_num_proc dataset_batch_size group_by_length length_column_name "
        "cache_implementation use_transformers_paged use_transformers_continuous_batching "
        "transformers_continuous_batching_config optim_target_modules generation_batch_size "
        "prediction_loss_only eval_do_concat_batches eval_use_gather_object "
        "eval_packing num_of_sequences chars_per_token packing_strategy",
        _SPEED,
    ),
    **_each(
        "logging_dir logging_strategy logging_first_step logging_steps logging_nan_inf_filter "
        "log_level log_level_replica log_on_each_node disable_tqdm run_name project "
        "trackio_space_id trackio_bucket_id trackio_static_space_id include_tokens_per_second "
        "include_num_input_tokens_seen skip_memory_metrics include_for_metrics "
        "include_inputs_for_metrics batch_eval_metrics label_names debug",
        _LOGS,
    ),
    **_each(
        "log_completions log_multimodal log_unique_prompts wandb_log_unique_prompts "
        "num_completions_to_print log_completions_hub_repo generate_during_eval "
        "num_generations_eval",
        _LOGGED,
    ),
    **_each(
        "push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push "
        "hub_revision push_to_hub_model_id push_to_hub_organization push_to_hub_token",
        _HUB,
    ),
    **_each(
        "local_rank ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers "
        "ddp_static_graph ddp_timeout fsdp fsdp_config fsdp_min_num_params "
        "fsdp_transformer_layer_cls_to_wrap deepspeed accelerator_config parallelism_config "
        "average_tokens_across_devices tpu_num_cores tpu_metrics_debug dispatch_batches "
        "split_batches mp_parameters ray_scope ignore_bias_buffers ds3_gather_for_generation "
        "_n_gpu",
        _PROCESSES,
    ),
    **_each(
        "save_only_model save_on_each_node save_safetensors enable_jit_checkpoint "
        "overwrite_output_dir",
        _SAVING,
    ),
    **_each(
        "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint", _RESUME
    ),
    **_each(
        "dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_in_order "
        "dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context remove_unused_columns dataset_streaming streaming "
        "dataset_kwargs shuffle_dataset train_sampling_strategy tools sanity_check data_seed "
        "full_determinism past_index use_legacy_prediction_loop",
        _LOADING,
    ),
    **_each(
        "use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_guided_decoding_regex "
        "vllm_structured_outputs_regex vllm_server_base_url vllm_server_host vllm_server_port "
        "vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length "
        "vllm_max_model_len vllm_tensor_parallel_size vllm_device vllm_dtype "
        "vllm_importance_sampling_correction vllm_importance_sampling_mode "
        "vllm_importance_sampling_cap vllm_importance_sampling_clip_max "
        "vllm_importance_sampling_clip_min",
        _VLLM,
    ),
    **_each(
        "label_pad_token_id padding_value pad_token eos_token is_encoder_decoder lora_task_type",
        _TOKENS,
    ),
    **_each(
        "model_adapter_name ref_adapter_name force_use_ref_model ref_model_init_kwargs "
        "base_model_attribute_name",
        _PEFT_ADAPTERS,
    ),
    **_each("do_train do_eval do_predict env config", "the command says what is done."),
    **_each("use_cpu no_cuda use_mps_device", "choose the device with device=cpu, cuda or mps."),
    **_each("eval_on_start eval_delay", "evaluation is at fixed steps and once before training."),
    **_each("greater_is_better", "the metric's name says which way is better."),
    **_each(
        "chat_template_path chat_template_kwargs",
        "the chat template is the one in the model's folder; put yours there.",
    ),
    **_each("max_target_length max_tool_calling_iterations", "it has no meaning here."),
    **_each("model_init_kwargs", "what it passes to from_pretrained is not read; see dtype."),
    **_each(
        "min_p repetition_penalty generation_kwargs",
        "the sampler has temperature, top_p and top_k only.",
    ),
    **_each(
        "neftune_noise_alpha",
        "no noise is added to the embeddings: less regularisation than there.",
    ),
    **_each("router_aux_loss_coef", "no load-balancing loss is added for mixtures of experts."),
    **_each("optim_args", "the optimizer's other arguments are PyTorch's defaults."),
    **_each("lr_scheduler_kwargs", "the schedules here have no further arguments."),
    **_each("reward_weights", "there is one judge: weigh the rewards inside it."),
    **_each("f_alpha_divergence_coef discopop_tau", "it belongs to a form that is not chosen."),
    **_each(
        "ref_model_mixup_alpha ref_model_sync_steps",
        "it belongs to sync_ref_model: the reference stands still.",
    ),
    **_each(
        "prompt_sample_size min_density_ratio max_density_ratio sapo_temperature_neg "
        "sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg "
        "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target",
        "it belongs to a loss that is not chosen.",
    ),
}  # fmt: skip
"""Flags without a counterpart, each with why nothing (or what) is lost."""

RUN = _names(
    "output_dir per_device_train_batch_size per_gpu_train_batch_size gradient_accumulation_steps "
    "num_train_epochs max_steps learning_rate lr_scheduler_type warmup_steps warmup_ratio optim "
    "adafactor weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm seed "
    "label_smoothing_factor bf16 fp16 gradient_checkpointing activation_checkpointing "
    "eval_strategy evaluation_strategy eval_steps save_strategy save_steps save_total_limit "
    "report_to load_best_model_at_end metric_for_best_model "
    # ModelConfig
    "model_name_or_path model_revision dtype torch_dtype trust_remote_code use_peft lora_r "
    "lora_alpha lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save "
    "use_rslora use_dora load_in_8bit load_in_4bit "
    # ScriptArguments and DatasetMixtureConfig
    "dataset_name dataset_config dataset_train_split dataset_test_split datasets test_split_size "
    "max_length disable_dropout"
)
"""Flags of every trainer that set an option of the run."""

_LENGTHS = "max_prompt_length max_completion_length truncation_mode "

OWN: dict[str, set[str]] = {
    "dpo": _names(
        _LENGTHS + "beta loss_type loss_weights label_smoothing use_weighting ld_alpha "
        "f_divergence_type f_alpha_divergence_coef discopop_tau reference_free rpo_alpha "
        "precompute_ref_log_probs sync_ref_model ref_model_mixup_alpha ref_model_sync_steps"
    ),
    "kto": _names(
        _LENGTHS + "beta loss_type desirable_weight undesirable_weight "
        "precompute_ref_log_probs sync_ref_model ref_model_mixup_alpha ref_model_sync_steps"
    ),
    "bco": _names(_LENGTHS + "beta precompute_ref_log_probs"),
    "orpo": _names(_LENGTHS + "beta"),
    "cpo": _names(_LENGTHS + "beta loss_type label_smoothing cpo_alpha simpo_gamma alpha"),
    "tpo": _names(
        "max_prompt_length truncation_mode beta loss_type label_smoothing tpo_alpha tpo_l_gamma"
    ),
    "sft": _names(
        "loss_type packing max_seq_length completion_only_loss assistant_only_loss "
        "dataset_text_field truncation_mode"
    ),
    "grpo": _names(
        "beta num_generations max_completion_length max_prompt_length temperature top_p top_k "
        "epsilon epsilon_high delta num_iterations steps_per_generation scale_rewards loss_type "
        "importance_sampling_level mask_truncated_completions use_bias_correction_kl "
        "top_entropy_quantile entropy_coef use_adaptive_entropy off_policy_mask_threshold "
        "multi_objective_aggregation reward_funcs reward_model_name_or_path sync_ref_model "
        "ref_model_mixup_alpha ref_model_sync_steps"
    ),
}
"""Flags of one trainer that mean something for its method."""

LOSSES: dict[str, set[str]] = {
    "dpo": _names(
        "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_pair aot_unpaired "
        "apo_zero apo_down discopop sft sigmoid_norm kto_pair"
    ),
    "kto": {"kto", "apo_zero_unpaired", "bco"},
    "bco": set(),
    "orpo": set(),
    "cpo": {"sigmoid", "hinge", "ipo", "simpo", "alphapo", "kto_pair"},
    "tpo": {"sigmoid", "hinge", "ipo", "tpo-l"},
    "sft": {"nll", "chunked_nll", "dft"},
    "grpo": {"grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"},
}
"""The values of ``loss_type``."""

_ONLY: dict[str, tuple[str, ...]] = {
    "grpo": (
        "vllm", "use_vllm", "use_transformers", "transformers_", "log_completions", "log_unique",
        "wandb_log", "log_multimodal", "num_completions", "num_generations", "generation_",
        "cache_implementation", "cast_lm_head", "chat_template_kwargs", "ds3_gather", "min_p",
        "repetition_penalty", "reward_weights", "sapo", "vespo", "entropy_", "max_tool",
    ),
    "sft": (
        "packing", "eval_packing", "chars_per_token", "num_of_sequences", "chat_template_path",
        "eos_token", "dataset_kwargs", "dataset_batch_size",
    ),
}  # fmt: skip
"""Beginnings of flags without a counterpart that only one trainer has."""


def known(trainer: str) -> set[str]:
    """Every flag that a trainer's command accepts."""
    foreign = tuple(p for other, prefix in _ONLY.items() if other != trainer for p in prefix)
    shared = {flag for flag in UNUSED if not flag.startswith(foreign)}
    others = {flag for other, flags in OWN.items() if other != trainer for flag in flags}
    return RUN | OWN[trainer] | (shared - (others - OWN[trainer]))
