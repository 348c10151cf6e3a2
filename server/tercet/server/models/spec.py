"""What distinguishes one transformer from another, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["encoder", "decoder", "seq2seq"]
Norm = Literal["layer_norm", "rms_norm"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]
HeadTask = Literal["generate", "fill_mask", "classify", "tag", "answer"]
HeadActivation = Literal["gelu", "gelu_tanh", "silu", "relu", "tanh"]
Window = tuple[int, int]
"""Keys seen to the left and to the right of a query."""


@dataclass(frozen=True, kw_only=True)
class RotarySpec:
    """Rotary position embedding (Su et al., RoFormer, 2021)."""

    theta: float
    """The base of the wavelengths."""
    dim: int
    """Leading dimensions of a head that are rotated."""
    scaling: Literal["default", "linear", "dynamic", "llama3", "yarn", "factors"] = "default"
    """How frequencies are lowered; "factors" are a tensor of the checkpoint. "dynamic" only does it to longer sequences
    than the checkpoint was trained with, which are not served."""
    factor: float = 1.0
    """Divides the frequencies of linear, llama3 and yarn."""
    low_freq_factor: float = 1.0
    """llama3's."""
    high_freq_factor: float = 4.0
    """llama3's."""
    original_max_length: int = 8192
    """llama3's and yarn's."""
    beta_fast: float = 32.0
    """yarn's."""
    beta_slow: float = 1.0
    """yarn's."""
    attention_factor: float = 1.0
    """Multiplies cosines and sines; yarn's."""
    truncate: bool = True
    """Whether yarn's range of dimensions is rounded to whole ones."""


@dataclass(frozen=True, kw_only=True)
class RelativeBiasSpec:
    """A learned bias of each head by the bucketed distance of key and query (Raffel et al., T5, 2019)."""

    buckets: int
    max_distance: int
    """From here on all distances share the last bucket."""
    bidirectional: bool
    """Half of the buckets are for keys after the query."""
    per_layer: bool = False
    """Whether each layer has a table of its own; else one serves all."""


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What turns hidden states into outputs: an optional dense map with activation and norm, then a linear map."""

    task: HeadTask
    """What the outputs are for. Those of "classify" are one vector a sequence, the others one a token."""
    outputs: int
    """The vocabulary, or labels; 2 (start and end) to answer."""
    reads: Literal["all", "first", "mean", "last"] = "all"
    """The hidden states that are read; "all" unless the task is "classify"."""
    dense: int | None = None
    """Width of the dense map; None is no such map."""
    dense_bias: bool = True
    activation: HeadActivation | None = None
    """After the dense map."""
    norm: Norm | None = None
    """After the activation."""
    norm_eps: float = 1e-12
    norm_bias: bool = True
    tied: bool = False
    """Whether the linear map is the word embedding (the decoder's, where it has its own)."""
    bias: bool = False
    """Of the linear map."""
    scale: float = 1.0
    """Multiplies what goes into the head."""


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
    parallel: bool = False
    """Attention and feed-forward read the same input, each through its own norm before; both are added to it."""
    norm_eps: float
    norm_bias: bool = False
    embedding_norm: bool = False
    """A norm of the sum of the embeddings."""
    first_norm: bool = True
    """Whether the first layer has its norm before attention: without where the embeddings are normed already."""
    final_norm: bool = False
    """A norm of the last layer's output."""
    qk_norm: bool = False
    """An RMS norm over each head of queries and keys, before they are rotated."""

    embedding_scale: float = 1.0
    """Multiplies word embeddings."""
    embedding_size: int | None = None
    """Width of the word embeddings where it is not `hidden_size`; a linear map makes up for it."""
    embedding_map: Literal["words", "sum"] = "sum"
    """What that map reads: word embeddings, before positions are added (OPT), or the normed sum (ELECTRA)."""
    embedding_map_bias: bool = True
    output_map: int | None = None
    """The width that a linear map of the final hidden states gives them; None is no such map."""
    token_types: int = 0
    learned_positions: int = 0
    """Rows of the learned position table, `position_offset` included; 0 is none."""
    sinusoids: Literal["halves", "fairseq"] | None = None
    """Positions by sines in the first half of the dimensions and cosines in the second: with wavelengths as of the
    original Transformer (Vaswani et al., 2017, section 3.5), or with fairseq's, which divide by half the width less
    1."""
    position_offset: int = 0
    """Added to positions before the table is read."""
    rotaries: tuple[RotarySpec | None, ...] = (None,)
    """The pattern of rotary positions, repeated over the layers."""
    relative_bias: RelativeBiasSpec | None = None

    activation: Activation
    gated: bool
    qkv_bias: bool = False
    attention_output_bias: bool = False
    feedforward_bias: bool = False
    attention_scale: float | None = None
    """Of the scores; None is 1 / sqrt(head_dim)."""
    scale_by_layer: bool = False
    """Whether the scores of layer i, counted from 0, are divided by i + 1."""
    windows: tuple[Window | None, ...] = (None,)
    """The pattern of attention windows, repeated over the layers; None sees everything."""

    @property
    def output_size(self) -> int:
        """Of the final hidden states."""
        return self.output_map or self.hidden_size


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
    head: HeadSpec | None = None
    """None of a base model."""
    target_vocab_size: int | None = None
    """Of a seq2seq decoder with a word embedding of its own; None is that it shares the encoder's."""

    @property
    def stacks(self) -> dict[str, StackSpec]:
        """The stacks there are, by name: "encoder", "decoder"."""
        return {name: stack for name, stack in (("encoder", self.encoder), ("decoder", self.decoder)) if stack}

    @property
    def hidden_size(self) -> int:
        """Of the final hidden states."""
        return list(self.stacks.values())[-1].output_size

    @property
    def embedding_size(self) -> int:
        """Of the hidden states that sequences are embedded by: the encoder's, where there is one."""
        return next(iter(self.stacks.values())).output_size
