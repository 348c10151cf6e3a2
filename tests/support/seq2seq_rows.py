"""Rows for the seq2seq models: encoder and decoder differ in layers, heads and width, and in T5 head_dim in size too.

As many positions are learned as the longest text in the tests has tokens.
"""

from __future__ import annotations

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
SEQ2SEQ = {
    "marian": Row("marian", {**BART, "activation_function": "swish"}),
    "marian-two": Row("marian", {**BART, **TWO_VOCABULARIES}, seed=27),
    "marian-untied": Row(
        "marian", {**BART, **TWO_VOCABULARIES, "tie_word_embeddings": False}, ("MarianMTModel",), seed=27
    ),
    # Positions begin behind the padding's id, which no text has.
    "m2m_100": Row("m2m_100", {**BART, "vocab_size": VOCAB_SIZE + 6, **PADDED_LATE}),
    "bart": Row("bart", BART, seed=22),
    "bart-relu": Row(
        "bart",
        {**BART, "scale_embedding": False, "activation_function": "relu"},
        ("BartForConditionalGeneration",),
        seed=22,
    ),
    "mbart": Row("mbart", {**BART, "activation_function": "gelu_new"}),
    "pegasus": Row("pegasus", BART),
    "t5": Row("t5", {**T5, "feed_forward_proj": "gated-gelu"}),
    "t5-relu": Row(
        "t5", {**T5, "feed_forward_proj": "relu", "tie_word_embeddings": False}, ("T5ForConditionalGeneration",)
    ),
    "mt5": Row("mt5", T5),
    "umt5": Row("umt5", {**T5, "feed_forward_proj": "relu"}),
}
ENCODER_STACKS = {
    f"{name}-encoder": Row(
        name,
        {**T5, "feed_forward_proj": "gated-gelu", "n_positions": 41},
        (f"{title}EncoderModel", f"{title}ForTokenClassification"),
    )
    for name, title in (("t5", "T5"), ("mt5", "MT5"), ("umt5", "UMT5"))
}
