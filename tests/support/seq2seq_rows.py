"""Rows for the seq2seq models: encoder and decoder differ in layers, heads and width, and in T5 head_dim in size too.

As many positions are learned as the longest text in the tests has tokens.
"""

from __future__ import annotations

from typing import Any

from support.row import VOCAB_SIZE, Row

TOKENS = {"vocab_size": VOCAB_SIZE, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
BART = {
    **TOKENS,
    "d_model": 48,
    "encoder_layers": 3,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 72,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 88,
    "max_position_embeddings": 41,
    "scale_embedding": True,
    "forced_eos_token_id": None,
}
# M2M100's positions begin behind the padding's id, which no text has.
PADDED_LATE = {"pad_token_id": VOCAB_SIZE + 3, "max_position_embeddings": VOCAB_SIZE + 4}
TWO_VOCABULARIES = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": VOCAB_SIZE + 70}
T5 = {
    **TOKENS,
    "d_model": 40,
    "d_kv": 16,
    "d_ff": 72,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 20,
}
# Feed-forwards lead from token to token; attention, which would lead all to the same one, weighs less.
BART_GAINS = {"shared": 0.25, "embed_tokens": 0.25, "embed_positions": 2, "v_proj": 0.5, "out_proj": 0.1, "fc2": 3}
T5_GAINS = {"shared": 1.6, "o": 0.25, "wo": 3}


def bart(architecture: str, *heads: str, seed: int = 20, text_seed: int = 20, **config: Any) -> Row:
    """One of BART's kin."""
    return Row(architecture, BART | config, heads, seed, text_seed, BART_GAINS)


def t5(architecture: str, *heads: str, text_seed: int = 20, **config: Any) -> Row:
    """One of T5's kin."""
    return Row(architecture, T5 | config, heads, text_seed=text_seed, text_gains=T5_GAINS)


SEQ2SEQ = {
    "marian": bart("marian", text_seed=23, activation_function="swish"),
    "marian-two": bart("marian", seed=27, text_seed=22, **TWO_VOCABULARIES),
    "marian-untied": bart("marian", "MarianMTModel", seed=27, **TWO_VOCABULARIES, tie_word_embeddings=False),
    "m2m_100": bart("m2m_100", text_seed=21, vocab_size=VOCAB_SIZE + 6, **PADDED_LATE),
    "bart": bart("bart", seed=22),
    "bart-relu": bart(
        "bart", "BartForConditionalGeneration", seed=22, scale_embedding=False, activation_function="relu"
    ),
    "mbart": bart("mbart", activation_function="gelu_new"),
    "pegasus": bart("pegasus"),
    "t5": t5("t5", text_seed=22, feed_forward_proj="gated-gelu"),
    "t5-relu": t5("t5", "T5ForConditionalGeneration", feed_forward_proj="relu", tie_word_embeddings=False),
    "mt5": t5("mt5", text_seed=22),
    "umt5": t5("umt5", text_seed=25, feed_forward_proj="relu"),
}
# The heads of encoders alone.
ENCODER_STACKS = {
    f"{name}-encoder": t5(name, f"{title}EncoderModel", f"{title}ForTokenClassification", n_positions=41)
    for name, title in (("t5", "T5"), ("mt5", "MT5"), ("umt5", "UMT5"))
}
