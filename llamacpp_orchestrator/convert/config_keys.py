"""The keys of a model's config.json, in all their spellings, and which keys of a GGUF hold what they say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import msgspec

Text = Mapping[str, Any]
OWN, LARGEST = -1, 1e300
INNER = ("text_config", "llm_config", "lm_config", "language_config")


class Rule(msgspec.Struct, frozen=True):
    """Which key of a GGUF holds what any of these keys of a config says, and what the runtime takes where it has none.

    Without `absent` nothing is concluded from a missing key: the runtime demands it, or the shapes of tensors settle it; OWN
    is worked out of other keys.
    """

    to: str
    keys: tuple[str, ...]
    absent: float | None = None


KV_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "kv_n_heads", "multi_query_group_num")
USED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")
RULES = (
    Rule("block_count", ("num_hidden_layers", "n_layer", "n_layers", "num_layers")),
    Rule("embedding_length", ("hidden_size", "n_embd", "d_model", "dim")),
    Rule("feed_forward_length", ("intermediate_size", "n_inner", "d_ff")),
    Rule("attention.head_count", ("num_attention_heads", "n_head", "n_heads", "num_heads")),
    Rule("attention.head_count_kv", KV_HEADS, OWN),
    Rule("attention.key_length", ("head_dim", "d_kv"), OWN),
    Rule("attention.value_length", ("head_dim", "d_kv"), OWN),
    Rule("attention.key_length_mla", ("qk_nope_head_dim",)),
    Rule("attention.value_length_mla", ("v_head_dim",)),
    Rule("attention.q_lora_rank", ("q_lora_rank",)),
    Rule("attention.kv_lora_rank", ("kv_lora_rank",)),
    Rule("rope.dimension_count", ("qk_rope_head_dim",)),
    Rule("expert_count", ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 0),
    Rule("expert_used_count", USED, 0),
    Rule("expert_shared_count", ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")),
    Rule("expert_feed_forward_length", ("moe_intermediate_size",)),
    Rule("expert_shared_feed_forward_length", ("shared_expert_intermediate_size", "shared_intermediate_size")),
    Rule("leading_dense_block_count", ("first_k_dense_replace", "num_dense_layers")),
    Rule("expert_weights_scale", ("routed_scaling_factor", "route_scale"), 1),
    Rule("expert_weights_norm", ("norm_topk_prob",), 0),
    Rule("expert_gating_func", ("scoring_func", "score_function", "score_func", "moe_router_activation_func")),
    Rule("expert_group_count", ("n_group",), 1),
    Rule("expert_group_used_count", ("topk_group",)),
    Rule("interleave_moe_layer_step", ("interleave_moe_layer_step",)),
    Rule("full_attention_interval", ("full_attention_interval",)),
    Rule("attn_logit_softcapping", ("attn_logit_softcapping",), 0),
    Rule("final_logit_softcapping", ("final_logit_softcapping",), 0),
    Rule("logit_scale", ("logit_scale", "logits_scaling", "dim_model_base"), 1),
    Rule("residual_scale", ("residual_multiplier", "scale_depth"), 1),
    Rule("embedding_scale", ("embedding_multiplier", "scale_emb"), 1),
    Rule("attention.scale", ("attention_multiplier",), OWN),
    Rule("attention.clamp_kqv", ("clip_qkv",), 0),
    Rule("attention.max_alibi_bias", ("alibi_bias_max",), 0),
    Rule("attention.shared_kv_layers", ("num_kv_shared_layers",), 0),
    Rule("use_parallel_residual", ("use_parallel_residual",)),
    Rule("attention.relative_buckets_count", ("relative_attention_num_buckets",)),
    Rule("decoder_block_count", ("num_decoder_layers",)),
    Rule("decoder_start_token_id", ("decoder_start_token_id",)),
    Rule("shortconv.l_cache", ("conv_L_cache",)),
    Rule("ssm.conv_kernel", ("mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim")),
    Rule("ssm.group_count", ("mamba_n_groups", "n_groups")),
    Rule("vocab_size", ("vocab_size",)),
    Rule("ssm.state_size", ("mamba_d_state", "state_size", "linear_key_head_dim")),
)
# How experts are chosen, as a GGUF numbers it (gguf-py/gguf/constants.py, ExpertGatingFuncType).
GATES = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}
# Other values of `absent`, by architecture and key of the GGUF (load_arch_hparams of each).
ABSENT = {
    ("gemma2", "attn_logit_softcapping"): 50.0,
    ("gemma2", "final_logit_softcapping"): 30.0,
    ("grok", "final_logit_softcapping"): 30.0,
}
EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
EPSILON_KEYS = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "layernorm_epsilon")

# Checked elsewhere: as tokens, by what the runtime does, as rope, window and head; or all that they decide is which tensors
# there are, of what shape, which the check of tensors tells.
_ELSEWHERE = (
    "activation activation_function hidden_act hidden_activation query_pre_attn_scalar feed_forward_proj rope_parameters "
    "rope_scaling rope_theta rope_local_base_freq rotary_emb_base global_rope_theta local_rope_theta partial_rotary_factor "
    "rotary_pct rotary_dim rope_pct rope_percent original_max_position_embeddings layer_types sliding_window "
    "sliding_window_pattern _sliding_window_pattern global_attn_every_n_layers local_attention use_sliding_window "
    "max_window_layers attention_chunk_size tie_word_embeddings vocab_size vocab_size_per_layer_input max_position_embeddings "
    "max_seq_len n_positions n_ctx type_vocab_size attention_bias attention_out_bias bias lm_head_bias mlp_bias qkv_bias "
    "use_bias use_qkv_bias no_bias norm_bias decoder_bias projectors_bias conv_bias use_conv_bias mamba_conv_bias "
    "mamba_proj_bias classifier_bias use_qk_norm qk_layernorm use_expert_bias ffn_hidden_size expansion_ratio "
    "intermediate_size_mlp multi_query new_decoder_architecture num_ln_in_parallel_attn parallel_attn qk_head_dim "
    "qk_nope_head_dim v_head_dim linear_num_key_heads linear_num_value_heads linear_value_head_dim mamba_d_head mamba_d_ssm "
    "mamba_dt_rank mamba_expand mamba_n_groups mamba_n_heads time_step_rank expand n_groups attn_layer_offset "
    "attn_layer_period expert_layer_offset expert_layer_period decoder_sparse_step mlp_only_layers mlp_layer_types moe_layers "
    "moe_layer_start_index moe_layer_end_index moe_layer_interval moe_layer_freq laurel_rank hidden_size_per_layer_input "
    "block_auto_adjust_ff_dim block_ffn_dim_multiplier block_multiple_of full_attn_idxs is_gated_act dense_act_fn "
    "learned_pos_emb no_rope_layers attn_temperature_tuning alibi position_embedding_type"
)  # fmt: skip
# What no answer depends on: training, memory, names, ids of tokens, other ways to the same numbers.
_INERT = (
    "architectures model_type auto_map dtype torch_dtype transformers_version use_cache tokenizer_class _name_or_path "
    "_attn_implementation _attn_implementation_autoset attn_implementation vision_config audio_config text_config "
    "quantization_config language_model_only chunk_size_feed_forward output_attentions output_hidden_states return_dict "
    "torchscript is_decoder is_encoder_decoder add_cross_attention finetuning_task id2label label2id problem_type num_labels "
    "gradient_checkpointing use_return_dict pretraining_tp initializer_range initializer_factor initializer_cutoff_factor "
    "init_device verbose slow_but_exact seq_aux aux_loss_alpha router_aux_loss_coef output_router_logits router_jitter_noise "
    "input_jitter_noise num_logits_to_keep chunk_size mamba_chunk_size time_step_floor time_step_init_scheme time_step_max "
    "time_step_min time_step_scale rescale_prenorm_residual residual_in_fp32 use_mambapy use_mamba_kernels "
    "use_associative_scan classifier_activation classifier_pooling reorder_and_upcast_attn attention_softmax_in_fp32 "
    "scale_attention_softmax_in_fp32 deterministic_flash_attn repad_logits_with_grad reference_compile "
    "sparse_pred_ignore_index sparse_prediction summary_activation summary_proj_to_labels summary_type summary_use_proj "
    "task_specific_params mm_tokens_per_image rope_interleave num_nextn_predict_layers moe_norm_min use_flash_attn "
    "attention_implementation unsloth_version unsloth_fixed keys_to_ignore_at_inference torch_compile ep_size bos_token "
    "eos_token _commit_hash cache_implementation use_gated_activation use_parallel_block use_parallel_embedding "
    "use_embedding_sharing per_layer_config attn_config ffn_config altup_coef_clip"
)  # fmt: skip
# What is inert with these values, which are those of all models that we know, and may not be with others.
USUAL: dict[str, tuple[Any, ...]] = {
    "topk_method": ("greedy", "noaux_tc"),
    "norm_type": ("low_precision_layernorm", "layer_norm"),
    "mlp_type": ("default",),
    "order_of_interleaved_layers": ("local_attn_first",),
    "rms_norm": (True,),
    "time_step_limit": ([0.0, math.inf], [0.0, {"__float__": "Infinity"}]),
    "attn_impl": ("torch", "flash", "triton"),
    "attn_type": ("multihead_attention",),
    "mamba_norm_before_gate": (True,),
}
ELSEWHERE, INERT = frozenset(_ELSEWHERE.split()), frozenset(_INERT.split())
INERT_ENDS = ("_token_id", "_token_ids", "_token_index", "_dropout", "_dropout_prob", "_pdrop", "dropout_rate", "dropout")


def flat(config: Text) -> dict[str, Any]:
    """A config with that of its language model, which has the last word, at the top; the way of conversion/base.py."""
    nested = (config.get(name) for name in ("attn_config", "ffn_config"))  # MPT, DBRX
    return {key: value for part in (*nested, *parts(config)) if isinstance(part, dict) for key, value in part.items()}


def parts(config: Text) -> tuple[Text, ...]:
    """A config, and behind it that of its language model where it has one within; the places of conversion/base.py."""
    outer = [part for part in (config.get("thinker_config"), config) if isinstance(part, Mapping)]
    inner = (part[name] for part in outer for name in INNER if isinstance(part.get(name), dict))
    return (config, *itertools.islice(inner, 1))


def numbers(value: Any) -> tuple[float, ...]:
    """A number or all of a list of them; () for whatever else stands there."""
    values = value if isinstance(value, list) else [GATES.get(value, value) if isinstance(value, str) else value]
    plain = all(isinstance(each, (bool, int, float)) and abs(each) < LARGEST for each in values)
    return tuple(map(float, values)) if values and plain else ()


def is_off(value: Any) -> bool:
    """Whether a key says that what it names is not there: nothing, no, empty, or a factor of 1; a list of such, too."""
    return all(map(is_off, value)) if isinstance(value, list) else value is not True and (not value or value == 1)


def said(text: Text, keys: tuple[str, ...]) -> dict[str, Any]:
    """Which of these keys a config has, with what they say."""
    return {key: text[key] for key in keys if numbers(text.get(key))}


# Where a GGUF says something else than its source and means the same: what may stand there by the config. None: whatever
# upstream makes of it is not ours to know.
ANY = "*"
ALIKE: dict[tuple[str, str], Callable[[Text], tuple[Any, ...]] | None] = {
    (ANY, "attention.key_length_mla"): lambda text: (text["qk_nope_head_dim"] + text["qk_rope_head_dim"],),
    ("deepseek2", "attention.head_count_kv"): lambda text: (1, text.get("num_key_value_heads")),
    ("deepseek2", "attention.key_length"): lambda text: (
        text["kv_lora_rank"] + text["qk_rope_head_dim"],
        text.get("qk_nope_head_dim", 0) + text["qk_rope_head_dim"],
    ),
    ("deepseek2", "attention.value_length"): lambda text: (text["kv_lora_rank"], text.get("v_head_dim")),
    ("falcon", "attention.head_count_kv"): lambda text: (
        (text["num_kv_heads"],) if text.get("new_decoder_architecture") else (1, text.get("num_kv_heads"))
    ),
    ("falcon", "feed_forward_length"): None,
    ("falcon-h1", "embedding_scale"): None,  # folded into the weights
    ("jamba", "feed_forward_length"): None,
    ("lfm2", "feed_forward_length"): None,  # block_auto_adjust_ff_dim
    ("mamba", "feed_forward_length"): None,
    ("mamba", "attention.key_length"): None,
    ("mamba2", "attention.head_count"): None,  # heads of the state, not of an attention
    ("mamba2", "attention.key_length"): None,
    ("mamba2", "attention.value_length"): None,
    ("llama4", "feed_forward_length"): lambda text: (text["intermediate_size_mlp"],),
    ("minicpm", "residual_scale"): lambda text: (text["scale_depth"] / math.sqrt(text["num_hidden_layers"]),),
    ("minicpm", "logit_scale"): lambda text: (text["hidden_size"] / text["dim_model_base"],),
    ("phi2", "feed_forward_length"): None,
    ("qwen2moe", "feed_forward_length"): None,
}
