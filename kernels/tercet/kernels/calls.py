"""The calls whose kernels are compiled for the table: every op in the forms the served families use."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tercet.kernels import attention_ops, decode_ops, ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)
TOKENS, ROWS, LONGEST, CHUNK = 4096, 16, 512, 8
HEADS, KV_HEADS = 12, 4
PAGES, PAGE_SIZE = 1024, 16
WIDTH, VOCABULARY = 768, 32000

# Options of attention, and the head dims a form is compiled for. T5's forms, with a bias or across, have a key head for
# each head; the others have groups.
FORMS: dict[str, tuple[int, set[str], tuple[int, ...]]] = {
    "encoder": (LONGEST, set(), HEAD_DIMS),
    "encoder bias": (LONGEST, {"bias"}, (32, 64, 128)),
    "encoder window": (LONGEST, {"window"}, (64,)),
    "prefill": (LONGEST, {"paged", "causal"}, HEAD_DIMS),
    "prefill bias": (LONGEST, {"paged", "causal", "bias"}, (32, 64, 128)),
    "prefill window": (LONGEST, {"paged", "causal", "window"}, (64, 128)),
    "prefill across": (LONGEST, {"paged", "across"}, (64, 128)),
    "decode": (1, {"paged", "causal"}, HEAD_DIMS),
    "decode bias": (1, {"paged", "causal", "bias"}, (32, 64, 128)),
    "decode window": (1, {"paged", "causal", "window"}, (64, 128)),
    "decode across": (1, {"paged", "across"}, (64, 128)),
    "chunk": (CHUNK, {"paged", "causal"}, (64, 128)),
    "chunk bias": (CHUNK, {"paged", "causal", "bias"}, (64,)),
    "decode beams": (1, {"paged", "causal", "key_rows"}, HEAD_DIMS),
    "decode beams bias": (1, {"paged", "causal", "key_rows", "bias"}, (32, 64, 128)),
    "decode beams window": (1, {"paged", "causal", "key_rows", "window"}, (64, 128)),
    "chunk beams": (CHUNK, {"paged", "causal", "key_rows"}, (64,)),
    "prefill beams": (LONGEST, {"paged", "causal", "key_rows"}, (64, 128)),
    "prefill beams bias": (LONGEST, {"paged", "causal", "key_rows", "bias"}, (64,)),
    "prefill beams window": (LONGEST, {"paged", "causal", "key_rows", "window"}, (128,)),
}
PLAIN = ("encoder", "prefill", "decode")
# The head dims of the plain forms and of the rest; bfloat16 is what GPUs serve with and is compiled in every form.
COMPILED_HEAD_DIMS = {
    "bfloat16": (HEAD_DIMS, HEAD_DIMS), "float16": (HEAD_DIMS, (128,)), "float32": ((64, 128), ()), "tf32": ((64,), ()),
}  # fmt: skip
DTYPES = {
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32,
    "tf32": torch.float32,  # multiplied in TF32
}  # fmt: skip


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


def _attend(queries: int, options: set[str], dtype: torch.dtype, head_dim: int) -> None:
    tokens = TOKENS if queries > 1 else ROWS
    kv_heads = HEADS if options & {"bias", "across"} else KV_HEADS
    rows: dict[str, Any] = {name: _ints(ROWS) for name in ("q_start", "q_length", "kv_length")}
    # Slices of one product, as the models have them.
    qkv = _meta(tokens, HEADS + 2 * kv_heads, head_dim, dtype=dtype)
    q, k, _ = qkv.split((HEADS, kv_heads, kv_heads), dim=1)
    if "paged" in options:
        k = _meta(PAGES, PAGE_SIZE, kv_heads, head_dim, dtype=dtype)
        rows["page_table"] = _ints(ROWS, LONGEST // PAGE_SIZE)
        if "key_rows" in options:
            rows["key_rows"] = _ints(ROWS, LONGEST)
    else:
        rows["kv_start"] = _ints(ROWS)
    attention_ops.attention(
        q, k, k, **rows, longest_q=queries, longest_kv=LONGEST,
        causal="causal" in options, window=(128, 0) if "window" in options else None,
        bias=_meta(HEADS, 257, dtype=torch.float32) if "bias" in options else None,
    )  # fmt: skip


def _attention_calls(name: str) -> Iterator[Call]:
    plain, others = COMPILED_HEAD_DIMS[name]
    for form, (queries, options, head_dims) in FORMS.items():
        for head_dim in sorted(set(head_dims) & set(plain if form in PLAIN else others)):
            run = partial(_attend, queries, options, DTYPES[name], head_dim)
            yield Call(f"{form} {name} {head_dim}", name, head_dim, run)


def _row_calls(name: str) -> Iterator[Call]:
    dtype = DTYPES[name]
    x, weight = _meta(TOKENS, WIDTH, dtype=dtype), _meta(WIDTH, dtype=dtype)
    ids, rows = _ints(TOKENS), _ints(ROWS)
    q, k = _meta(TOKENS, HEADS, 64, dtype=dtype), _meta(TOKENS, KV_HEADS, 64, dtype=dtype)
    pages, angles = _meta(PAGES, PAGE_SIZE, KV_HEADS, 64, dtype=dtype), _meta(2048, 32, dtype=torch.float32)
    paged: dict[str, Any] = {"k_pages": pages, "v_pages": pages, "slots": ids}
    rotary: dict[str, Any] = {"positions": ids, "cos": angles, "sin": angles}
    runs: dict[str, Callable[[], object]] = {
        "layer_norm residual": lambda: ops.layer_norm(x, weight, weight, eps=1e-5, residual=x),
        "rms_norm": lambda: ops.rms_norm(x, weight, eps=1e-5),
        "rms_norm residual": lambda: ops.rms_norm(x, weight, eps=1e-5, residual=x),
        "activation gelu bias": lambda: ops.activation(x, "gelu", bias=weight),
        "activation relu": lambda: ops.activation(x, "relu"),
        "activation gelu_tanh gated": lambda: ops.activation(x, "gelu_tanh", gated=True),
        "activation silu gated": lambda: ops.activation(x, "silu", gated=True),
        "embedding": lambda: ops.embedding(ids, x),
        "embedding layer_norm": lambda: ops.embedding(
            ids, x, positions=ids, position=x, type_ids=ids, type=x, weight=weight, bias=weight, eps=1e-5,
            norm="layer_norm",
        ),
        "kv_write": lambda: ops.kv_write(None, k, k, **paged),
        "kv_write rotary": lambda: ops.kv_write(q, k, k, **paged, **rotary),
        "kv_write norm rotary": lambda: ops.kv_write(
            q, k, k, **paged, **rotary, q_norm=weight[:64], k_norm=weight[:64], eps=1e-6
        ),
        "kv_write partly rotary": lambda: ops.kv_write(
            q, k, k, **paged, positions=ids, cos=angles[:, :16].contiguous(), sin=angles[:, :16].contiguous()
        ),
        "rotary": lambda: ops.kv_write(q, k, k, k_pages=None, v_pages=None, slots=None, **rotary),
        "pad": lambda: ops.pad(x, rows, rows, longest=LONGEST),
        "unpad": lambda: ops.unpad(x, rows, rows, longest=LONGEST, tokens=TOKENS),
    }  # fmt: skip
    for kind in ops.POOLING_KINDS:
        runs[f"pooling {kind}"] = partial(ops.pooling, x, rows, rows, kind=kind, normalize=True)
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


def _decode_step_calls() -> Iterator[Call]:
    ints, table, keys = _ints(ROWS), _ints(ROWS, LONGEST // PAGE_SIZE), _ints(ROWS, LONGEST)
    logits, places = _meta(ROWS, 1, dtype=torch.float32), _meta(ROWS, dtype=torch.int64)
    inputs = partial(decode_ops.decode_inputs, ints, ints, table, page_size=PAGE_SIZE)
    next_tokens = partial(decode_ops.next_tokens, vocabulary=VOCABULARY, last_token=ints)
    floats = _meta(ROWS, dtype=torch.float32)
    lanes = decode_ops.BeamLanes(
        ints, ints, ints, ints, floats, floats, ints, keys, _ints(ROWS, 1024), _ints(ROWS, 7)
    )  # fmt: skip
    likely, logits_of_all = (_meta(ROWS, size, dtype=torch.float32) for size in (32, VOCABULARY))
    runs: dict[str, Callable[[], object]] = {
        "beam step": lambda: decode_ops.beam_step(
            likely, _ints(ROWS, 32), row=ints, heads=ints, active=ints, lanes=lanes, beams=8, candidates=32, ends=15,
            longest=LONGEST,
        ),
        "top log probabilities": lambda: decode_ops.top_logprobs(logits_of_all, k=32),
        "decode inputs": inputs,
        "decode inputs across beams": partial(inputs, cross_length=ints, head=ints, holders=keys),
        "next tokens greedy": lambda: next_tokens(logits, _ints(ROWS, 1), active=ints),
        "next tokens of few": lambda: next_tokens(places, _ints(ROWS, ops.MAX_TOP_K), active=ints),
        "next tokens of lanes": lambda: next_tokens(places, lanes=ints),
    }  # fmt: skip
    for form, run in runs.items():
        yield Call(form, "", 0, run)


# Rows, and how many of the best: tiles of few rows and of many, merges in one step and in several.
HEAD_FORMS = {
    "bfloat16": ((16, 1), (128, 1), (16, ops.MAX_TOP_K), (32, ops.MAX_TOP_K)), "float16": (), "float32": ((16, 1),),
    "tf32": (),
}  # fmt: skip


def _head_calls(name: str) -> Iterator[Call]:
    weight = _meta(VOCABULARY, WIDTH, dtype=DTYPES[name])
    for rows, k in HEAD_FORMS[name]:
        run = partial(ops.head_topk, _meta(rows, WIDTH, dtype=DTYPES[name]), weight, k=k)
        yield Call(f"head top {k} {rows} rows {name}", name, 0, run)


def _calls() -> Iterator[Call]:
    for name in DTYPES:
        yield from _attention_calls(name)
        if name != "tf32":  # these multiply no matrices
            yield from _row_calls(name)
        yield from _head_calls(name)
    yield from _sample_call()
    yield from _decode_step_calls()


CALLS = {call.name: call for call in _calls()}
