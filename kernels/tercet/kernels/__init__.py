"""Fused transformer kernels in Triton, each with a naive torch reference and a fast CPU implementation.

`tercet.kernels.ops` and `attention_ops` say what each op computes; `tercet.kernels.dispatch` chooses what runs.
"""

from tercet.kernels import dispatch
from tercet.kernels.attention_ops import SPLIT_KV_QUERIES, attention, attention_plan, paged_attention
from tercet.kernels.dispatch import UnsupportedError
from tercet.kernels.ops import (
    activation,
    embedding,
    head_topk,
    kv_write,
    layer_norm,
    pad,
    pooling,
    rms_norm,
    sample,
    unpad,
)

__all__ = [
    "SPLIT_KV_QUERIES",
    "UnsupportedError",
    "activation",
    "attention",
    "attention_plan",
    "dispatch",
    "embedding",
    "head_topk",
    "kv_write",
    "layer_norm",
    "pad",
    "paged_attention",
    "pooling",
    "rms_norm",
    "sample",
    "unpad",
]
