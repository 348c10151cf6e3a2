"""Attention: where keys come from, a batch's own tokens or pages, and the projections around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from tercet import kernels
from tercet.server.models.layers import Linear, Norm

if TYPE_CHECKING:
    from tercet.server.models.batch import DecoderBatch, EncoderBatch, KVCache, Rows, Source
    from tercet.server.models.positions import RelativeBias, Rotary
    from tercet.server.models.spec import StackSpec, Window


class Keys(Protocol):
    """Where a forward pass finds keys and values, and what it knows of its rows."""

    def attend(self, attention: SelfAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rotates q [T, heads, head_dim] and k, v [T, kv_heads, head_dim] and attends: [T, heads, head_dim]."""
        ...

    def attend_source(self, attention: CrossAttention, q: Tensor) -> Tensor:
        """Attention of q [T, heads, head_dim] to the encoded source: [T, heads, head_dim]."""
        ...


class Plans:
    """What attention finds out once for those layers of a batch that see the same, at the first of them."""

    def __init__(self) -> None:
        self._made: dict[tuple[bool, bool, Window | None, bool], object] = {}

    def get(
        self,
        q: Tensor,
        k: Tensor,
        rows: Rows,
        kv_length: Tensor,
        attention: SelfAttention | None = None,
        *,
        page_table: Tensor | None = None,
        key_rows: Tensor | None = None,
    ) -> object:
        """The plan of a layer's attention to its own sequence, or, without `attention`, of that to the source."""
        causal, window, bias = (
            (attention.causal, attention.window, attention.bias) if attention else (False, None, None)
        )
        kind = (attention is None, causal, window, bias is not None)
        if kind not in self._made:
            self._made[kind] = kernels.attention_plan(
                q,
                k,
                q_start=rows.start,
                q_length=rows.length,
                kv_length=kv_length,
                longest_q=rows.longest,
                page_table=page_table,
                key_rows=key_rows,
                causal=causal,
                window=window,
                bias=bias,
            )
        return self._made[kind]


class FlatKeys:
    """Those of whole sequences: the keys of a row are its own tokens, and its source's."""

    def __init__(self, batch: EncoderBatch, source: Source | None = None) -> None:
        self.batch = batch
        self.source = source
        self._plans = Plans()

    def attend(self, attention: SelfAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = self.batch.rows
        if attention.rotary or attention.q_norm:
            attention.write(q, k, v, self.batch.positions)
        return kernels.attention(
            q,
            k,
            v,
            q_start=rows.start,
            q_length=rows.length,
            kv_start=rows.start,
            kv_length=rows.length,
            longest_q=rows.longest,
            longest_kv=rows.longest,
            causal=attention.causal,
            window=attention.window,
            scale=attention.scale,
            bias=attention.bias,
            plan=self._plans.get(q, k, rows, rows.length, attention),
        )

    def attend_source(self, attention: CrossAttention, q: Tensor) -> Tensor:
        if self.source is None:
            raise ValueError("the source is missing that a seq2seq model's decoder attends to")
        k, v = attention.keys_and_values(self.source.hidden)
        rows, source = self.batch.rows, self.source.rows
        return kernels.attention(
            q,
            k,
            v,
            q_start=rows.start,
            q_length=rows.length,
            kv_start=source.start,
            kv_length=source.length,
            longest_q=rows.longest,
            longest_kv=source.longest,
            scale=attention.scale,
            plan=self._plans.get(q, k, rows, source.length),
        )


class PagedKeys:
    """A decoder's: the keys of a row are in its pages of the cache, and new ones are written there first."""

    def __init__(self, batch: DecoderBatch, cache: KVCache) -> None:
        self.batch = batch
        self.cache = cache
        self._plans = Plans()

    def attend(self, attention: SelfAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = self.batch
        k_pages, v_pages = self.cache.k[attention.layer], self.cache.v[attention.layer]
        attention.write(q, k, v, batch.positions, k_pages, v_pages, batch.slots)
        return kernels.attention(
            q,
            k_pages,
            v_pages,
            q_start=batch.rows.start,
            q_length=batch.rows.length,
            kv_length=batch.kv_length,
            longest_q=batch.rows.longest,
            longest_kv=batch.longest_kv,
            page_table=batch.page_table,
            key_rows=batch.key_rows,
            causal=attention.causal,
            window=attention.window,
            scale=attention.scale,
            bias=attention.bias,
            plan=self._plans.get(
                q,
                k_pages,
                batch.rows,
                batch.kv_length,
                attention,
                page_table=batch.page_table,
                key_rows=batch.key_rows,
            ),
        )

    def attend_source(self, attention: CrossAttention, q: Tensor) -> Tensor:
        batch = self.batch
        if batch.cross_page_table is None or batch.cross_length is None:
            raise ValueError("cross_page_table and cross_length are missing from the batch of a seq2seq model")
        k_pages, v_pages = self.cache.k[attention.layer], self.cache.v[attention.layer]
        return kernels.attention(
            q,
            k_pages,
            v_pages,
            q_start=batch.rows.start,
            q_length=batch.rows.length,
            kv_length=batch.cross_length,
            longest_q=batch.rows.longest,
            longest_kv=batch.longest_cross,
            page_table=batch.cross_page_table,
            scale=attention.scale,
            plan=self._plans.get(q, k_pages, batch.rows, batch.cross_length, page_table=batch.cross_page_table),
        )


class SelfAttention(nn.Module):
    """Queries, keys and values from one GEMM, attention, and the projection of its output."""

    def __init__(
        self, spec: StackSpec, layer: int, rotary: Rotary | None = None, relative_bias: RelativeBias | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = spec.head_dim
        self.causal = spec.causal
        self.window: Window | None = spec.windows[layer % len(spec.windows)]
        self.scale = scale_of(spec, layer)
        self.rotary = rotary
        self.relative_bias = relative_bias
        width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.widths = (width, kv_width, kv_width)
        self.qkv = Linear(spec.hidden_size, {"q": width, "k": kv_width, "v": kv_width}, bias=spec.qkv_bias)
        self.output = Linear(width, {"output": spec.hidden_size}, bias=spec.attention_output_bias)
        self.q_norm = Norm(spec.head_dim, "rms_norm", eps=spec.norm_eps, bias=False) if spec.qk_norm else None
        self.k_norm = Norm(spec.head_dim, "rms_norm", eps=spec.norm_eps, bias=False) if spec.qk_norm else None

    @property
    def bias(self) -> Tensor | None:
        """The scores' bias by distance: float32 [heads, 2 * max_distance + 1]."""
        return self.relative_bias.vector if self.relative_bias else None

    def forward(self, x: Tensor, keys: Keys) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        q, k, v = (heads(part, self.head_dim) for part in self.qkv(x).split(self.widths, dim=-1))
        return self.output(keys.attend(self, q, k, v).flatten(1))

    def write(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        k_pages: Tensor | None = None,
        v_pages: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> None:
        """Norms and rotates q and k, and writes keys and values into pages; without pages, k changes in place."""
        kernels.kv_write(
            q,
            k,
            v,
            k_pages=k_pages,
            v_pages=v_pages,
            slots=slots,
            positions=positions,
            cos=self.rotary.cos if self.rotary else None,
            sin=self.rotary.sin if self.rotary else None,
            q_norm=self.q_norm.weight if self.q_norm else None,
            k_norm=self.k_norm.weight if self.k_norm else None,
            eps=self.q_norm.eps if self.q_norm else 0.0,
        )


class CrossAttention(nn.Module):
    """A decoder's attention to the encoded source, whose keys and values were written into pages once."""

    def __init__(self, spec: StackSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = spec.head_dim
        self.scale = scale_of(spec, layer)
        width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.widths = (kv_width, kv_width)
        self.q = Linear(spec.hidden_size, {"q": width}, bias=spec.qkv_bias)
        self.kv = Linear(spec.hidden_size, {"k": kv_width, "v": kv_width}, bias=spec.qkv_bias)
        self.output = Linear(width, {"output": spec.hidden_size}, bias=spec.attention_output_bias)

    def forward(self, x: Tensor, keys: Keys) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        return self.output(keys.attend_source(self, heads(self.q(x), self.head_dim)).flatten(1))

    def keys_and_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """[T, hidden] -> two of [T, kv_heads, head_dim]"""
        k, v = self.kv(encoded).split(self.widths, dim=-1)
        return heads(k, self.head_dim), heads(v, self.head_dim)

    def write(self, encoded: Tensor, slots: Tensor, cache: KVCache) -> None:
        """Writes the keys and values of the encoded tokens [T, hidden] into their slots [T] of this layer's pages."""
        k, v = self.keys_and_values(encoded)
        kernels.kv_write(None, k, v, k_pages=cache.k[self.layer], v_pages=cache.v[self.layer], slots=slots)


def heads(x: Tensor, head_dim: int) -> Tensor:
    """[T, heads * head_dim] -> [T, heads, head_dim], a view."""
    return x.unflatten(-1, (-1, head_dim))


def scale_of(spec: StackSpec, layer: int) -> float:
    """What the scores of a layer are multiplied by."""
    scale = spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale
    return scale / (layer + 1) if spec.scale_by_layer else scale
