"""What distinguishes one transformer from another, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["encoder", "decoder", "seq2seq"]
Norm = Literal["layer_norm", "rms_norm"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]
Window = tuple[int, int]
"""Keys seen to the left and to the right of a query."""


@dataclass(frozen=True, kw_only=True)
class RotarySpec:
    """Rotary position embedding (Su et al., RoFormer, 2021)."""

    theta: float
    """The base of the wavelengths."""
    dim: int
    """Leading dimensions of a head that are rotated."""
    scaling: Literal["default", "linear", "llama3", "factors"] = "default"
    """How frequencies are lowered; "factors" are a tensor of the checkpoint."""
    factor: float = 1.0
    """Divides the frequencies of linear and llama3; the rest is llama3's."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192


@dataclass(frozen=True, kw_only=True)
class RelativeBiasSpec:
    """A learned bias of each head by the bucketed distance of key and query (Raffel et al., T5, 2019)."""

    buckets: int
    max_distance: int
    """From here on all distances share the last bucket."""
    bidirectional: bool
    """Half of the buckets are for keys after the query."""


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """One stack of layers: an encoder's or a decoder's."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    cross_attention: bool = False

    norm: Norm
    norm_place: Literal["pre", "post"]
    """Before each attention and feed-forward, or after its residual sum."""
    norm_eps: float
    norm_bias: bool = False
    embedding_norm: bool = False
    """A norm of the sum of the embeddings."""
    final_norm: bool = False
    """A norm of the last layer's output."""

    embedding_scale: float = 1.0
    token_types: int = 0
    learned_positions: int = 0
    """Rows of the learned position table; 0 is none."""
    rotary: RotarySpec | None = None
    relative_bias: RelativeBiasSpec | None = None
    """One table for all layers."""

    activation: Activation
    gated: bool
    qkv_bias: bool = False
    attention_output_bias: bool = False
    feedforward_bias: bool = False
    attention_scale: float | None = None
    """Of the scores; None is 1 / sqrt(head_dim)."""
    windows: tuple[Window | None, ...] = (None,)
    """The pattern of attention windows, repeated over the layers; None sees everything."""


@dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """Everything an architecture and a config say about a transformer's shape."""

    family: Family
    vocab_size: int
    max_length: int | None
    """Tokens its positions reach; None where they have no limit."""
    default_length: int
    """The maximum length unless the user names another."""
    encoder: StackSpec | None = None
    decoder: StackSpec | None = None
    head: Literal["none", "tied", "linear"] = "none"
    """How hidden states become logits: not at all, by the word embedding, or by a matrix of its own."""
    head_scale: float = 1.0
    """Multiplies what goes into the head."""

    @property
    def stacks(self) -> dict[str, StackSpec]:
        """The stacks there are, by name: "encoder", "decoder"."""
        return {name: stack for name, stack in (("encoder", self.encoder), ("decoder", self.decoder)) if stack}

    @property
    def hidden_size(self) -> int:
        """Of the final hidden states."""
        return list(self.stacks.values())[-1].hidden_size
