"""Rows for the decoders: windows smaller than the texts, three query heads a key head, heads rotated in part."""

from __future__ import annotations

from support.row import VOCAB_SIZE, Row

TOKENS = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
GPT = {**TOKENS, "n_embd": 48, "n_layer": 3, "n_head": 3, "n_positions": 96, "layer_norm_epsilon": 1e-3}
GPT_NEO = {
    **TOKENS,
    "hidden_size": 48,
    "num_layers": 3,
    "num_heads": 3,
    "intermediate_size": 72,
    "max_position_embeddings": 96,
    "attention_types": [[["local", "global"], 1], [["local"], 1]],
    "window_size": 5,
    "layer_norm_epsilon": 1e-3,
}
# A quarter of 20 dimensions is an odd number of them.
GPT_NEOX = {
    **TOKENS,
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 72,
    "max_position_embeddings": 96,
    "layer_norm_eps": 1e-3,
}
OPT = {
    **TOKENS,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "ffn_dim": 72,
    "max_position_embeddings": 96,
}
LLAMA = {
    **TOKENS,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 72,
    "max_position_embeddings": 256,
}
BIASES = {"attention_bias": True, "mlp_bias": True}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32}
MSCALE = {"mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
# Qwen2 has no head_dim of its own.
QWEN = {**{key: value for key, value in LLAMA.items() if key != "head_dim"}, "use_sliding_window": True}
CAUSAL = ("LlamaForCausalLM",)

DECODERS = {
    "openai-gpt": Row("openai-gpt", GPT),
    "gpt2": Row("gpt2", {**GPT, "n_inner": 72, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2-unscaled": Row(
        "gpt2",
        {**GPT, "scale_attn_weights": False, "activation_function": "gelu", "tie_word_embeddings": False},
        ("GPT2LMHeadModel",),
    ),
    "gpt_neo": Row("gpt_neo", GPT_NEO),
    "gpt_neox": Row("gpt_neox", GPT_NEOX),
    "gpt_neox-serial": Row(
        "gpt_neox",
        {
            **GPT_NEOX,
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_fast",
            "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5},
        },
        ("GPTNeoXForCausalLM",),
    ),
    "opt": Row("opt", OPT),
    "opt-350m": Row("opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20}, seed=22),
    "opt-unbiased": Row(
        "opt",
        {**OPT, "enable_bias": False, "_remove_final_layer_norm": True, "activation_function": "gelu"},
        ("OPTForCausalLM",),
    ),
    "llama": Row("llama", {**LLAMA, **BIASES}),
    "llama-tied": Row("llama", {**LLAMA, "tie_word_embeddings": True}, CAUSAL),
    "llama-linear": Row("llama", {**LLAMA, "rope_parameters": LINEAR}, CAUSAL),
    "llama-dynamic": Row("llama", {**LLAMA, "rope_parameters": DYNAMIC}, CAUSAL),
    "llama-llama3": Row("llama", {**LLAMA, "rope_parameters": LLAMA3}, CAUSAL),
    "llama-yarn": Row("llama", {**LLAMA, "rope_parameters": YARN}, CAUSAL),
    "llama-yarn-mscale": Row("llama", {**LLAMA, "rope_parameters": {**YARN, **MSCALE}}, CAUSAL),
    "mistral": Row("mistral", {**LLAMA, "head_dim": 12, "sliding_window": 5}),
    "qwen2": Row("qwen2", {**QWEN, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": Row(
        "qwen3",
        {
            **QWEN,
            "head_dim": 12,
            "attention_bias": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
