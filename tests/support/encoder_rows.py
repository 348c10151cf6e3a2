"""The rows of encoders."""

from __future__ import annotations

from support.row import VOCAB_SIZE, Row

# [CLS] 0, [SEP] 1, [PAD] 2: the padding token's id is not 0, and RoBERTa's positions begin at row 3.
BERT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 88,
    "max_position_embeddings": 96,
    "layer_norm_eps": 0.1,
    "pad_token_id": 2,
}
ENCODER_MODELS = {
    "bert": Row("bert", {**BERT, "type_vocab_size": 2}),
    "bert-tanh": Row("bert", {**BERT, "hidden_act": "gelu_new"}, ("BertForMaskedLM",)),
    "roberta": Row("roberta", {**BERT, "type_vocab_size": 2, "hidden_size": 60}),
    "xlm-roberta": Row("xlm-roberta", {**BERT, "type_vocab_size": 1, "hidden_act": "gelu_new"}),
    "camembert": Row("camembert", {**BERT, "pad_token_id": 5}),
    "electra": Row("electra", {**BERT, "embedding_size": 20, "hidden_act": "relu"}),
    "electra-wide": Row(
        "electra", {**BERT, "embedding_size": 48, "tie_word_embeddings": False}, ("ElectraForMaskedLM",)
    ),
    # Texts reach beyond the distance from which biases are the same.
    "mpnet": Row("mpnet", {**BERT, "max_position_embeddings": 160, "pad_token_id": 1}),
    "distilbert": Row(
        "distilbert",
        {
            "vocab_size": VOCAB_SIZE,
            "dim": 48,
            "n_layers": 3,
            "n_heads": 3,
            "hidden_dim": 88,
            "max_position_embeddings": 96,
            "activation": "relu",
            "pad_token_id": 2,
        },
    ),
}
MODERNBERT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 60,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 90,
    "norm_eps": 0.1,
    "local_attention": 9,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
    },
    "bos_token_id": 0,
    "cls_token_id": 0,
    "eos_token_id": 1,
    "sep_token_id": 1,
    "pad_token_id": 2,
}
ENCODER_MODELS |= {
    "modernbert": Row("modernbert", MODERNBERT),
    "modernbert-biases": Row(
        "modernbert",
        {
            **MODERNBERT,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
            "num_hidden_layers": 4,
            "hidden_activation": "silu",
            "classifier_activation": "relu",
            "classifier_pooling": "mean",
            **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True),
            "decoder_bias": False,
        },
        ("ModernBertForMaskedLM", "ModernBertForSequenceClassification"),
    ),
}
