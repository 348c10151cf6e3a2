"""The calls whose kernels are compiled for the table: every op in the forms the served families use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tercet.kernels import ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)
TOKENS, ROWS, LONGEST = 4096, 16, 512
HEADS, KV_HEADS = 12, 4
PAGES, PAGE_SIZE = 1024, 16
WIDTH, VOCABULARY = 768, 32000

# Options of attention, and the head dims a form is compiled for.
PREFILL_FORMS: dict[str, tuple[set[str], tuple[int, ...]]] = {
    "encoder": (set(), HEAD_DIMS),
    "encoder bias": ({"bias"}, (32, 64, 128)),
    "encoder window": ({"window"}, (64,)),
    "prefill": ({"paged", "causal"}, HEAD_DIMS),
    "prefill bias": ({"paged", "causal", "bias"}, (32, 64, 128)),
    "prefill window": ({"paged", "causal", "window"}, (64, 128)),
}
DECODE_FORMS: dict[str, tuple[set[str], tuple[int, ...]]] = {
    "decode": ({"paged"}, HEAD_DIMS),
    "decode bias": ({"paged", "bias"}, (32, 64, 128)),
    "decode window": ({"paged", "window"}, (64, 128)),
}
# bfloat16 is what GPUs serve with and is compiled in every form; the others differ from it in little.
COMPILED_HEAD_DIMS = {torch.float16: (64, 128), torch.float32: (64,)}


class Call(NamedTuple):
    """One call of an op on tensors of torch's "meta" device."""

    name: str
    dtype: str
    head_dim: int
    """0 where the op has no heads."""
    run: Callable[[], object]


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _ints(*shape: int) -> torch.Tensor:
    return _meta(*shape, dtype=torch.int32)


def _attend(options: set[str], dtype: torch.dtype, head_dim: int, queries: int) -> None:
    tokens = TOKENS if queries > 1 else ROWS
    rows: dict[str, Any] = {name: _ints(ROWS) for name in ("q_start", "q_length", "kv_length")}
    if "paged" in options:
        k = _meta(PAGES, PAGE_SIZE, KV_HEADS, head_dim, dtype=dtype)
        rows["page_table"] = _ints(ROWS, LONGEST // PAGE_SIZE)
    else:
        k = _meta(TOKENS, KV_HEADS, head_dim, dtype=dtype)
        rows["kv_start"] = _ints(ROWS)
    ops.attention(
        _meta(tokens, HEADS, head_dim, dtype=dtype), k, k, **rows, longest_q=queries, longest_kv=LONGEST,
        causal="causal" in options, window=(128, 0) if "window" in options else None,
        bias=_meta(HEADS, 257, dtype=torch.float32) if "bias" in options else None,
    )  # fmt: skip


def _attention_calls(dtype: torch.dtype) -> Iterator[Call]:
    name = str(dtype).removeprefix("torch.")
    for queries, forms in ((LONGEST, PREFILL_FORMS), (1, DECODE_FORMS)):
        for form, (options, head_dims) in forms.items():
            for head_dim in sorted(set(head_dims) & set(COMPILED_HEAD_DIMS.get(dtype, HEAD_DIMS))):

                def run(options: set[str] = options, head_dim: int = head_dim, queries: int = queries) -> None:
                    _attend(options, dtype, head_dim, queries)

                yield Call(f"{form} {name} {head_dim}", name, head_dim, run)


def _row_calls(dtype: torch.dtype) -> Iterator[Call]:
    name = str(dtype).removeprefix("torch.")
    x, weight = _meta(TOKENS, WIDTH, dtype=dtype), _meta(WIDTH, dtype=dtype)
    ids, rows = _ints(TOKENS), _ints(ROWS)
    q, k = _meta(TOKENS, HEADS, 64, dtype=dtype), _meta(TOKENS, KV_HEADS, 64, dtype=dtype)
    pages, angles = _meta(PAGES, PAGE_SIZE, KV_HEADS, 64, dtype=dtype), _meta(2048, 32, dtype=torch.float32)
    runs: dict[str, Callable[[], object]] = {
        "layer_norm residual": lambda: ops.layer_norm(x, weight, weight, eps=1e-5, residual=x),
        "rms_norm residual": lambda: ops.rms_norm(x, weight, eps=1e-5, residual=x),
        "activation gelu bias": lambda: ops.activation(x, "gelu", bias=weight),
        "activation gelu_tanh gated": lambda: ops.activation(x, "gelu_tanh", gated=True),
        "activation silu gated": lambda: ops.activation(x, "silu", gated=True),
        "embedding layer_norm": lambda: ops.embedding(
            ids, x, positions=ids, position=x, type_ids=ids, type=x, weight=weight, bias=weight, eps=1e-5,
            norm="layer_norm",
        ),
        "kv_write rotary": lambda: ops.kv_write(
            q, k, k, k_pages=pages, v_pages=pages, slots=ids, positions=ids, cos=angles, sin=angles
        ),
        "pooling mean": lambda: ops.pooling(x, rows, rows, kind="mean", normalize=True),
        "pad": lambda: ops.pad(x, rows, rows, longest=LONGEST),
        "unpad": lambda: ops.unpad(x, rows, rows, longest=LONGEST, tokens=TOKENS),
    }  # fmt: skip
    for form, run in runs.items():
        yield Call(f"{form} {name}", name, 0, run)


def _sample_call() -> Iterator[Call]:
    floats, ints = _meta(ROWS, dtype=torch.float32), _ints(ROWS)
    logits, seed = _meta(ROWS, VOCABULARY, dtype=torch.float32), _meta(ROWS, dtype=torch.int64)
    yield Call(
        "sample float32", "float32", 0,
        lambda: ops.sample(
            logits, temperature=floats, top_k=ints, top_p=floats, min_p=floats, seed=seed, sample=ints, position=ints
        ),
    )  # fmt: skip


def _calls() -> Iterator[Call]:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield from _attention_calls(dtype)
        yield from _row_calls(dtype)
    yield from _sample_call()


CALLS = {call.name: call for call in _calls()}
