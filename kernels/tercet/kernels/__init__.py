"""Fused transformer kernels in Triton, each with a naive torch reference and a fast CPU implementation.

`tercet.kernels.ops`, `attention_ops` and `decode_ops` say what each op computes; `tercet.kernels.dispatch` chooses what
runs.
"""

from tercet.kernels import dispatch
from tercet.kernels.attention_ops import SPLIT_KV_QUERIES, attention, attention_plan, paged_attention
from tercet.kernels.decode_ops import BeamLanes, beam_step, decode_inputs, next_tokens, top_logprobs
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
    "BeamLanes",
    "UnsupportedError",
    "activation",
    "attention",
    "attention_plan",
    "beam_step",
    "decode_inputs",
    "dispatch",
    "embedding",
    "head_topk",
    "kv_write",
    "layer_norm",
    "next_tokens",
    "pad",
    "paged_attention",
    "pooling",
    "rms_norm",
    "sample",
    "top_logprobs",
    "unpad",
]
