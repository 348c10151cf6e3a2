"""The parts a transformer is assembled from; a `StackSpec` says which."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from tercet import kernels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tercet.server.models.float8 import Float8Weight
    from tercet.server.models.spec import Activation, StackSpec
    from tercet.server.models.spec import Norm as NormKind

# Activations worth ending a product in, as oneDNN calls them.
EPILOGUES = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
# Those that cuBLAS's products with a bias can end in: whether it is GELU, which is the approximation there.
CUBLAS_EPILOGUES = {"gelu_tanh": True, "relu": False}


def parameter(*shape: int) -> nn.Parameter:
    """A parameter without storage; loading a checkpoint gives it some."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


def packable(weight: Tensor, device: torch.device) -> bool:
    """Whether oneDNN multiplies by a reordered copy of this weight."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class Prepared(nn.Module):
    """A module that makes something of its weights once they are there."""

    @abstractmethod
    def prepare(self, device: torch.device) -> None:
        """Makes it, on `device`."""


class Linear(Prepared):
    """x Wᵀ + b, several products of one input in one GEMM; `weight` is [out, in]."""

    def __init__(self, in_features: int, parts: Mapping[str, int], *, bias: bool) -> None:
        """`parts`: the products' names and widths, in order."""
        super().__init__()
        self.parts = dict(parts)
        out_features = sum(parts.values())
        self.weight = parameter(out_features, in_features)
        self.bias = parameter(out_features) if bias else None
        self.packed: Tensor | None = None
        self.float8: Float8Weight | None = None

    def prepare(self, device: torch.device) -> None:
        """On a CPU, packs a bfloat16 weight: the plain one would be reordered in every product."""
        if self.weight.dtype == torch.bfloat16 and packable(self.weight, device):
            self.pack()

    def pack(self) -> None:
        """Reorders the weight for oneDNN, whose products can end in an activation; the plain weight is dropped."""
        if self.packed is not None:
            return
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        self.weight = nn.Parameter(self.weight.to("meta"), requires_grad=False)

    def quantize(self, weight: Float8Weight) -> None:
        """Multiplies by that from now on; the plain weight is dropped."""
        self.float8 = weight
        counted = torch.empty(self.weight.shape, dtype=weight.values.dtype, device="meta")
        self.weight = nn.Parameter(counted, requires_grad=False)

    def forward(self, x: Tensor, epilogue: tuple[str, str] = ("none", "")) -> Tensor:
        """[T, in] -> [T, out]; packed ones can apply an epilogue (oneDNN's activation and its algorithm)."""
        if self.float8 is not None:
            return self.float8(x, self.bias)
        if self.packed is None:
            return functional.linear(x, self.weight, self.bias)
        activation, algorithm = epilogue
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, activation, [], algorithm)

    def activated(self, x: Tensor, *, gelu: bool) -> Tensor:
        """GELU or ReLU of the product with a bias, [T, in] -> [T, out], as cuBLAS ends it."""
        return torch.ops.aten._addmm_activation(self.bias, x, self.weight.t(), use_gelu=gelu)


class Norm(nn.Module):
    """A norm; in a slot of the residual stream, of the sum of `hidden` and, unless that is None, `residual`."""

    def __init__(self, width: int, kind: NormKind, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.kind: NormKind = kind
        self.eps = eps
        self.weight = parameter(width)
        self.bias = parameter(width) if bias else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The norm of x [T, width], or of x + residual, to which `residual` changes in place."""
        if self.kind == "rms_norm":
            return kernels.rms_norm(x, self.weight, eps=self.eps, residual=residual)
        return kernels.layer_norm(x, self.weight, self.bias, eps=self.eps, residual=residual)

    def before(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """What a branch reads, the norm of the stream, and the stream itself."""
        return self(hidden, residual), hidden if residual is None else residual

    def after(self, branch: Tensor, residual: Tensor) -> tuple[Tensor, None]:
        """The stream once the branch is added: the norm of the sum."""
        return self(branch, residual), None


class Identity(nn.Module):
    """A norm slot without a norm."""

    def before(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stream, summed up, twice."""
        stream = hidden if residual is None else residual.add_(hidden)
        return stream, stream

    def after(self, branch: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The stream, its sum left to the next norm."""
        return branch, residual


def norm_slot(spec: StackSpec, *, filled: bool) -> Norm | Identity:
    """A slot of the residual stream of a stack."""
    if not filled:
        return Identity()
    return Norm(spec.hidden_size, spec.norm, eps=spec.norm_eps, bias=spec.norm_bias)


class Vocabulary(nn.Module):
    """The word embedding [vocab, hidden]."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = parameter(vocab_size, hidden_size)


class Embedding(Prepared):
    """Words, positions and token types, summed and normed, and the linear map of narrower ones to the hidden size."""

    def __init__(self, spec: StackSpec, vocabulary: Vocabulary, max_length: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.scale = spec.embedding_scale
        self.offset = spec.position_offset
        self.sinusoids = spec.sinusoids
        self.maps_words = spec.embedding_map == "words"
        words = spec.embedding_size or spec.hidden_size
        self.width = spec.hidden_size if self.maps_words else words
        self.max_length = max_length
        self.position = parameter(spec.learned_positions, self.width) if spec.learned_positions else None
        self.token_type = parameter(spec.token_types, self.width) if spec.token_types else None
        self.norm = Norm(self.width, spec.norm, eps=spec.norm_eps, bias=spec.norm_bias) if spec.embedding_norm else None
        self.map = (
            Linear(words, {"hidden": spec.hidden_size}, bias=spec.embedding_map_bias) if spec.embedding_size else None
        )
        self.register_buffer("sines", None)

    def prepare(self, device: torch.device) -> None:
        """Makes the table of sines."""
        if self.sinusoids:
            positions = torch.arange(self.offset, self.offset + self.max_length)
            table = sinusoids(positions, self.width, fairseq=self.sinusoids == "fairseq")
            self.sines = table.to(device, self.vocabulary.weight.dtype)

    @property
    def positions(self) -> Tensor | None:
        """The table from position 0 on: [positions, width]."""
        return self.sines if self.position is None else self.position[self.offset :]

    def forward(self, token_ids: Tensor, positions: Tensor, type_ids: Tensor | None) -> Tensor:
        """int32 [T] each -> [T, hidden]"""
        words, norm = self.vocabulary.weight, self.norm
        if self.map and self.maps_words:
            words = self.map(kernels.embedding(token_ids, words))
            token_ids = torch.arange(len(token_ids), dtype=torch.int32, device=token_ids.device)
        summed = kernels.embedding(
            token_ids,
            words,
            positions=positions,
            position=self.positions,
            type_ids=None if self.token_type is None else type_ids,
            type=self.token_type,
            scale=self.scale,
            weight=norm.weight if norm else None,
            bias=norm.bias if norm else None,
            eps=norm.eps if norm else 0.0,
            norm=norm.kind if norm else None,
        )
        return self.map(summed) if self.map and not self.maps_words else summed


def sinusoids(positions: Tensor, width: int, *, fairseq: bool) -> Tensor:
    """Sines of the positions' angles, then cosines (Vaswani et al., 2017, section 3.5): float32 [positions, width].

    An odd column is a sine, of fairseq's layout 0. Its wavelengths, too, are of float32, as they were trained with.
    """
    half = width // 2
    if fairseq:
        rates = torch.exp(torch.arange(half).float() * -(math.log(10_000) / (half - 1)))
        angles = torch.outer(positions.float(), rates)
        return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))
    angles = torch.outer(positions.double(), 10_000 ** (-torch.arange(0, width, 2).double() / width))
    return torch.cat([angles.sin(), angles[:, :half].cos()], dim=1).float()


class FeedForward(Prepared):
    """Two linear maps around an activation; gated ones compute gate and value in one GEMM."""

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.activation: Activation = spec.activation
        self.gated = spec.gated
        self.epilogue = None if spec.gated else EPILOGUES.get(spec.activation)
        self.ends_in_gelu: bool | None = None
        width = spec.intermediate_size
        parts = {"gate": width, "up": width} if spec.gated else {"inner": width}
        self.up = Linear(spec.hidden_size, parts, bias=spec.feedforward_bias)
        self.down = Linear(width, {"down": spec.hidden_size}, bias=spec.feedforward_bias)

    def prepare(self, device: torch.device) -> None:
        """Finds whether the first map's product can end in the activation, which saves a pass over memory.

        On a CPU, its weight is packed for that.
        """
        if self.epilogue and packable(self.up.weight, device):
            self.up.pack()
        if device.type != "cpu" and not self.gated and self.up.bias is not None and self.up.float8 is None:
            self.ends_in_gelu = CUBLAS_EPILOGUES.get(self.activation)

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        if self.epilogue and self.up.packed is not None and kernels.dispatch.selected(x.device) == "cpu":
            return self.down(self.up(x, self.epilogue))
        if self.ends_in_gelu is not None:
            return self.down(self.up.activated(x, gelu=self.ends_in_gelu))
        return self.down(kernels.activation(self.up(x), self.activation, gated=self.gated))
