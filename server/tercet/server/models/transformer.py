"""The one transformer stack, assembled from parts as a spec says; encoders, decoders and seq2seq are made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tercet.server.models.attention import CrossAttention, Keys, SelfAttention
from tercet.server.models.heads import Head
from tercet.server.models.layers import Embedding, FeedForward, Linear, Vocabulary, norm_slot
from tercet.server.models.positions import RelativeBias, Rotary

if TYPE_CHECKING:
    from tercet.server.models.batch import KVCache
    from tercet.server.models.spec import StackSpec, TransformerSpec


class Branch(nn.Module):
    """A body between two norm slots of the residual stream; pre- and post-norm models fill different ones."""

    def __init__(
        self, spec: StackSpec, body: SelfAttention | CrossAttention | FeedForward, *, first: bool = False
    ) -> None:
        """`first`: whether the branch is the first of its stack."""
        super().__init__()
        self.body = body
        self.norm_before = norm_slot(spec, filled=spec.norm_place == "pre" and (spec.first_norm or not first))
        self.norm_after = norm_slot(spec, filled=spec.norm_place == "post")

    def forward(self, hidden: Tensor, residual: Tensor | None, *keys: Keys) -> tuple[Tensor, Tensor | None]:
        """The residual stream, hidden + residual, before and after this branch."""
        normed, residual = self.norm_before.before(hidden, residual)
        return self.norm_after.after(self.body(normed, *keys), residual)


class Layer(nn.Module):
    """Self-attention, in decoders of seq2seq cross-attention, and feed-forward."""

    def __init__(self, spec: StackSpec, layer: int, rotary: Rotary | None, relative_bias: RelativeBias | None) -> None:
        super().__init__()
        self.parallel = spec.parallel
        self.attention = Branch(spec, SelfAttention(spec, layer, rotary, relative_bias), first=layer == 0)
        self.cross_attention = Branch(spec, CrossAttention(spec, layer)) if spec.cross_attention else None
        self.feedforward = Branch(spec, FeedForward(spec))

    def forward(self, hidden: Tensor, residual: Tensor | None, keys: Keys) -> tuple[Tensor, Tensor | None]:
        """The residual stream, hidden + residual, before and after this layer."""
        if self.parallel:
            normed, residual = self.attention.norm_before.before(hidden, residual)
            attended = self.attention.body(normed, keys)
            normed, residual = self.feedforward.norm_before.before(residual, None)
            return attended + self.feedforward.body(normed), residual
        hidden, residual = self.attention(hidden, residual, keys)
        if self.cross_attention:
            hidden, residual = self.cross_attention(hidden, residual, keys)
        return self.feedforward(hidden, residual)


class Stack(nn.Module):
    """Embedding, layers and the final norm of an encoder or a decoder."""

    def __init__(self, spec: StackSpec, vocabulary: Vocabulary, max_length: int) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = Embedding(spec, vocabulary, max_length)
        tables = {rotary: Rotary(rotary, max_length) for rotary in spec.rotaries if rotary}  # equal ones are one
        self.rotaries = nn.ModuleList(tables.values())
        bias = spec.relative_bias
        self.relative_bias = RelativeBias(bias, spec.heads) if bias and not bias.per_layer else None
        self.layers = nn.ModuleList()
        for i in range(spec.layers):
            rotary = spec.rotaries[i % len(spec.rotaries)]
            own_bias = RelativeBias(bias, spec.heads) if bias and bias.per_layer else self.relative_bias
            self.layers.append(Layer(spec, i, rotary and tables[rotary], own_bias))
        self.final_norm = norm_slot(spec, filled=spec.final_norm)
        width = spec.output_map
        self.output_map = Linear(spec.hidden_size, {"output": width}, bias=False) if width else None

    def forward(self, token_ids: Tensor, positions: Tensor, type_ids: Tensor | None, keys: Keys) -> Tensor:
        """int32 [T] each -> final hidden states [T, hidden]"""
        hidden: Tensor = self.embedding(token_ids, positions, type_ids)
        residual: Tensor | None = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, keys)
        hidden = self.final_norm.before(hidden, residual)[0]
        return self.output_map(hidden) if self.output_map else hidden

    def write_source(self, encoded: Tensor, slots: Tensor, cache: KVCache) -> None:
        """Writes the keys and values of encoded tokens [T, hidden] for every layer's cross-attention."""
        for module in self.modules():
            if isinstance(module, CrossAttention):
                module.write(encoded, slots, cache)


class Transformer(nn.Module):
    """The stacks of a spec and its head; every parameter is without storage until a checkpoint is loaded."""

    def __init__(self, spec: TransformerSpec, max_length: int) -> None:
        """`max_length`: positions that tables are made for."""
        super().__init__()
        widths = {name: stack.embedding_size or stack.hidden_size for name, stack in spec.stacks.items()}
        own = spec.target_vocab_size
        self.vocabulary = Vocabulary(spec.vocab_size, next(iter(widths.values())))
        self.target_vocabulary = Vocabulary(own, widths["decoder"]) if own else None
        decoded = self.target_vocabulary or self.vocabulary
        self.encoder = Stack(spec.encoder, self.vocabulary, max_length) if spec.encoder else None
        self.decoder = Stack(spec.decoder, decoded, max_length) if spec.decoder else None
        self.head = Head(spec.head, spec.hidden_size, decoded) if spec.head else None
