"""The one transformer stack, assembled from parts as a spec says; encoders, decoders and seq2seq are made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tercet.server.models.attention import CrossAttention, Keys, SelfAttention
from tercet.server.models.layers import Embedding, FeedForward, Identity, Linear, Norm, TiedHead, Vocabulary
from tercet.server.models.positions import RelativeBias, Rotary

if TYPE_CHECKING:
    from tercet.server.models.batch import KVCache
    from tercet.server.models.spec import StackSpec, TransformerSpec


class Branch(nn.Module):
    """A body between two norm slots of the residual stream; pre- and post-norm models fill different ones."""

    def __init__(self, spec: StackSpec, body: SelfAttention | CrossAttention | FeedForward) -> None:
        super().__init__()
        self.body = body
        self.norm_before = Norm(spec) if spec.norm_place == "pre" else Identity()
        self.norm_after = Norm(spec) if spec.norm_place == "post" else Identity()

    def forward(self, hidden: Tensor, residual: Tensor | None, *keys: Keys) -> tuple[Tensor, Tensor | None]:
        """The residual stream, hidden + residual, before and after this branch."""
        normed, residual = self.norm_before.before(hidden, residual)
        return self.norm_after.after(self.body(normed, *keys), residual)


class Layer(nn.Module):
    """Self-attention, in decoders of seq2seq cross-attention, and feed-forward."""

    def __init__(self, spec: StackSpec, layer: int, rotary: Rotary | None, relative_bias: RelativeBias | None) -> None:
        super().__init__()
        self.attention = Branch(spec, SelfAttention(spec, layer, rotary, relative_bias))
        self.cross_attention = Branch(spec, CrossAttention(spec, layer)) if spec.cross_attention else None
        self.feedforward = Branch(spec, FeedForward(spec))

    def forward(self, hidden: Tensor, residual: Tensor | None, keys: Keys) -> tuple[Tensor, Tensor | None]:
        """The residual stream, hidden + residual, before and after this layer."""
        hidden, residual = self.attention(hidden, residual, keys)
        if self.cross_attention:
            hidden, residual = self.cross_attention(hidden, residual, keys)
        return self.feedforward(hidden, residual)


class Stack(nn.Module):
    """Embedding, layers and the final norm of an encoder or a decoder."""

    def __init__(self, spec: StackSpec, vocabulary: Vocabulary, max_length: int) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = Embedding(spec, vocabulary)
        self.rotary = Rotary(spec.rotary, max_length) if spec.rotary else None
        self.relative_bias = RelativeBias(spec.relative_bias, spec.heads) if spec.relative_bias else None
        self.layers = nn.ModuleList(Layer(spec, i, self.rotary, self.relative_bias) for i in range(spec.layers))
        self.final_norm = Norm(spec) if spec.final_norm else Identity()

    def forward(self, token_ids: Tensor, positions: Tensor, type_ids: Tensor | None, keys: Keys) -> Tensor:
        """int32 [T] each -> final hidden states [T, hidden]"""
        hidden: Tensor = self.embedding(token_ids, positions, type_ids)
        residual: Tensor | None = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, keys)
        return self.final_norm.before(hidden, residual)[0]

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
        self.vocabulary = Vocabulary(spec.vocab_size, spec.hidden_size)
        self.encoder = Stack(spec.encoder, self.vocabulary, max_length) if spec.encoder else None
        self.decoder = Stack(spec.decoder, self.vocabulary, max_length) if spec.decoder else None
        self.head = self._head(spec)

    def _head(self, spec: TransformerSpec) -> TiedHead | Linear | None:
        if spec.head == "tied":
            return TiedHead(self.vocabulary)
        return Linear(spec.hidden_size, {"vocabulary": spec.vocab_size}, bias=False) if spec.head == "linear" else None
