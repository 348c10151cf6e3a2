"""The ops: what they compute, whichever implementation runs.

A batch is rows in flat storage: row `b` is the `length[b]` tokens from `start[b]`. Packed (starts are the running sum
of the lengths) and padded (`start[b] = b * longest`) are the same to every op. Tensors are on one device and
contiguous, except that the q, k and v of attention and kv_write may be column slices of one matrix: a token's heads lie
together, tokens at any distance, the same for k and v. Starts, lengths, page tables, positions, slots and token ids are
int32 or int64. `T` is tokens of storage, `B` rows, `H` heads, `D` the size of a head. On a GPU nothing here waits for
the device. Those of attention are in `attention_ops.py`, those around a step that decodes in `decode_ops.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tercet.kernels import dispatch

if TYPE_CHECKING:
    from torch import Tensor

ActivationKind = Literal["gelu", "gelu_tanh", "silu", "relu"]
NormKind = Literal["layer_norm", "rms_norm"]
PoolingKind = Literal["mean", "cls", "last", "max"]

ACTIVATION_KINDS = ("gelu", "gelu_tanh", "silu", "relu")
NORM_KINDS = ("layer_norm", "rms_norm")
POOLING_KINDS = ("mean", "cls", "last", "max")

MAX_TOP_K = 128  # logits of a row that `head_topk` gives at most


def pad(packed: Tensor, start: Tensor, length: Tensor, *, longest: int, value: float = 0) -> Tensor:
    """Spreads packed rows, any dtype [T, ...], to [B * longest, ...]; every storage row outside is `value`."""
    return dispatch.call("pad", packed, start, length, longest=longest, value=value)


def unpad(padded: Tensor, start: Tensor, length: Tensor, *, longest: int, tokens: int) -> Tensor:
    """The inverse of `pad`: [B * longest, ...] to [tokens, ...]; `start` are the packed starts.

    Storage rows that no row covers (a graph's spare tokens) are zeros.
    """
    return dispatch.call("unpad", padded, start, length, longest=longest, tokens=tokens)


def kv_write(
    q: Tensor | None,
    k: Tensor,
    v: Tensor | None,
    *,
    k_pages: Tensor | None,
    v_pages: Tensor | None,
    slots: Tensor | None,
    positions: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = False,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Norms each head of queries and keys, rotates them by their position (Su et al., RoFormer, eq. 34) and writes keys
    and values into pages.

    - q [T, H, D], changed in place; None when there is nothing to change.
    - k, v [T, H_kv, D]. With pages, k is left as it is; without (`k_pages` None), it is changed in place.
    - k_pages, v_pages [pages, page_size, H_kv, D].
    - slots [T]: page * page_size + offset; -1 skips the token.
    - positions [T]: rows of `cos` and `sin`.
    - cos, sin float32 [positions, rotary_dim / 2]; dims beyond rotary_dim pass unchanged. None rotates nothing.
    - interleaved: pairs are (2i, 2i + 1) as in GPT-J, else (i, i + rotary_dim / 2) as in NeoX and Llama.
    - q_norm, k_norm [D], eps: weights of the RMS norm of each head, as `rms_norm`'s; None norms nothing.
    """
    if (cos is None) != (sin is None) or (cos is not None and positions is None):
        raise ValueError("kv_write needs positions, cos and sin together")
    if k_pages is not None and (v is None or v_pages is None or slots is None):
        raise ValueError("kv_write needs v, v_pages and slots to write into pages")
    if any(norm is not None and norm.shape != k.shape[-1:] for norm in (q_norm, k_norm)):
        raise ValueError(f"q_norm and k_norm must be [{k.shape[-1]}], a weight for each dim of a head")
    dispatch.call(
        "kv_write", k, v, q, k_pages=k_pages, v_pages=v_pages, slots=slots, positions=positions, cos=cos, sin=sin,
        interleaved=interleaved, q_norm=q_norm, k_norm=k_norm, eps=eps, head_dim=k.shape[-1],
    )  # fmt: skip


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Layer norm of each row of x [T, N] (Ba et al., 2016), statistics in float32.

    With `residual` [T, N], that becomes x + residual in place and its norm is returned.
    """
    return dispatch.call("layer_norm", x, weight, bias, eps=eps, residual=residual, out=out)


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """RMS norm of each row of x [T, N] (Zhang and Sennrich, 2019): x / sqrt(mean(x²) + eps) * weight.

    `residual` is as in `layer_norm`.
    """
    return dispatch.call("rms_norm", x, weight, eps=eps, residual=residual, out=out)


def activation(x: Tensor, kind: ActivationKind, *, bias: Tensor | None = None, gated: bool = False) -> Tensor:
    """The activation of x + bias, x [T, N]; "gelu" is exact (erf), "gelu_tanh" the approximation.

    `gated` gives act(x[:, :N/2]) * x[:, N/2:] (Shazeer, GLU variants, 2020), [T, N/2].
    """
    if kind not in ACTIVATION_KINDS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATION_KINDS)}, not {kind!r}")
    if gated and x.shape[1] % 2:
        raise ValueError(f"a gated activation needs an even number of columns, not {x.shape[1]}")
    return dispatch.call("activation", x, kind, bias=bias, gated=gated)


def embedding(
    token_ids: Tensor,
    word: Tensor,
    *,
    positions: Tensor | None = None,
    position: Tensor | None = None,
    type_ids: Tensor | None = None,
    type: Tensor | None = None,
    scale: float = 1.0,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 0.0,
    norm: NormKind | None = None,
) -> Tensor:
    """word[token_ids] * scale + position[positions] + type[type_ids], then the norm: [T, D].

    word [V, D], position [P, D], type [K, D]; what is None is left out (a `type` without `type_ids` is of type 0).
    Ids beyond the tables are undefined: the service checks them.
    """
    if norm is not None and (norm not in NORM_KINDS or weight is None):
        raise ValueError(f"norm must be one of {', '.join(NORM_KINDS)} with a weight, not {norm!r}")
    if position is not None and positions is None:
        raise ValueError("a position table needs positions")
    return dispatch.call(
        "embedding", word, token_ids, positions=positions, position=position, type_ids=type_ids, type_table=type,
        scale=scale, weight=weight, bias=bias, eps=eps, norm=norm,
    )  # fmt: skip


def pooling(hidden: Tensor, start: Tensor, length: Tensor, *, kind: PoolingKind, normalize: bool) -> Tensor:
    """One vector a row of hidden [T, D]: float32 [B, D], of length 1 if `normalize`; zeros for rows of length 0."""
    if kind not in POOLING_KINDS:
        raise ValueError(f"pooling must be one of {', '.join(POOLING_KINDS)}, not {kind!r}")
    return dispatch.call("pooling", hidden, start, length, kind=kind, normalize=normalize)


def sample(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    sample: Tensor,
    position: Tensor,
) -> Tensor:
    """Chooses a token for each row of logits, float32 [N, V]: int64 [N].

    In transformers' order: logits / temperature, top_k (values equal to the k-th stay), top_p (the smallest set of
    likeliest tokens whose mass reaches it, equals in index order), min_p (relative to the likeliest). Then the
    inverse distribution function in index order at one uniform number: word 0 of Philox4x32-10 (Salmon et al., 2011)
    with key `seed` and counter (sample, position, 0, 0), so a draw depends on nothing else in the batch.

    - temperature float32 [N]; 0 takes the likeliest token, the lowest index among equals.
    - top_k int32 [N]; 0 is off. top_p float32 [N]; 1 is off. min_p float32 [N]; 0 is off.
    - seed int64 [N], the bit pattern of an unsigned 64-bit seed; sample, position int32 [N].

    A row whose likeliest logit isn't finite (a NaN anywhere, all -inf, +inf) has no distribution: it gives V, which is
    no token, at temperature 0 too, in every implementation. The caller must reject it.
    """
    return dispatch.call(
        "sample", logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
        sample_index=sample, position=position,
    )  # fmt: skip


def head_topk(hidden: Tensor, weight: Tensor, *, k: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `k` greatest of the logits hidden weightᵀ + bias of each row, and their ids, never holding all of them.

    - hidden [N, D], weight [V, D], bias [V], of one dtype. k is at most V and MAX_TOP_K.

    Returns float32 [N, k], falling, and int32 [N, k]; of equal logits the lower id is first. Products are summed in
    float32 and rounded to the dtype before they are compared, as a head's matrix product rounds them: in half precision
    many are equal. NaN comes first, so a row without a distribution, as `sample` has it, is one whose first logit is
    not finite. Raises `ValueError` for shapes that don't fit or another k.
    """
    if hidden.shape[1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = [list(x.shape) for x in (hidden, weight, bias) if x is not None]
        raise ValueError(f"hidden, weight and bias of shapes {', '.join(map(str, shapes))} don't fit together")
    most = min(len(weight), MAX_TOP_K)
    if not 1 <= k <= most:
        raise ValueError(f"k must be 1 to {most}, not {k}")
    return dispatch.call("head_topk", hidden, weight, k=k, bias=bias)
