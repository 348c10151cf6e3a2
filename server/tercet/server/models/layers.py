"""The parts a transformer is assembled from; a `StackSpec` says which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from tercet import kernels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tercet.server.models.spec import Activation, StackSpec
    from tercet.server.models.spec import Norm as NormKind

# Activations worth ending a product in, as oneDNN calls them.
EPILOGUES = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


def parameter(*shape: int) -> nn.Parameter:
    """A parameter without storage; loading a checkpoint gives it some."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


def packable(weight: Tensor, device: torch.device) -> bool:
    """Whether oneDNN multiplies by a reordered copy of this weight."""
    return device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


class Linear(nn.Module):
    """x Wᵀ + b, several products of one input in one GEMM; `weight` is [out, in]."""

    def __init__(self, in_features: int, parts: Mapping[str, int], *, bias: bool) -> None:
        """`parts`: the products' names and widths, in order."""
        super().__init__()
        self.parts = dict(parts)
        out_features = sum(parts.values())
        self.weight = parameter(out_features, in_features)
        self.bias = parameter(out_features) if bias else None
        self.packed: Tensor | None = None

    def pack(self) -> None:
        """Reorders the weight for oneDNN, whose products can end in an activation; the plain weight is dropped."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        self.weight = nn.Parameter(self.weight.to("meta"), requires_grad=False)

    def forward(self, x: Tensor, epilogue: tuple[str, str] = ("none", "")) -> Tensor:
        """[T, in] -> [T, out]; packed ones can apply an epilogue (oneDNN's activation and its algorithm)."""
        if self.packed is None:
            return functional.linear(x, self.weight, self.bias)
        activation, algorithm = epilogue
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, activation, [], algorithm)


class Norm(nn.Module):
    """A norm in a slot of the residual stream, which is the sum of `hidden` and, unless that is None, `residual`."""

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.kind: NormKind = spec.norm
        self.eps = spec.norm_eps
        self.weight = parameter(spec.hidden_size)
        self.bias = parameter(spec.hidden_size) if spec.norm_bias else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The norm of x [T, hidden], or of x + residual, to which `residual` changes in place."""
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
        """The stream, twice; the norm of the branch before has summed it up."""
        del residual
        return hidden, hidden

    def after(self, branch: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The stream, its sum left to the next norm."""
        return branch, residual


class Vocabulary(nn.Module):
    """The word embedding [vocab, hidden]."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = parameter(vocab_size, hidden_size)


class TiedHead(nn.Module):
    """Logits by the word embedding.

    On a CPU a copy of it, reordered for oneDNN, halves the time of a batch. A few rows stay with the plain one: their
    time is that of reading it.
    """

    PACKED_ROWS = 4  # from here on the copy wins

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.register_buffer("packed", None)

    def prepare(self, device: torch.device) -> None:
        """Makes the copy."""
        if packable(self.vocabulary.weight, device):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.vocabulary.weight.detach())

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, hidden] -> [N, vocab]"""
        if self.packed is None or len(hidden) < self.PACKED_ROWS:
            return functional.linear(hidden, self.vocabulary.weight)
        return torch.ops.mkldnn._linear_pointwise(hidden, self.packed, None, "none", [], "")


class Embedding(nn.Module):
    """Words, positions and token types, summed and normed."""

    def __init__(self, spec: StackSpec, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.scale = spec.embedding_scale
        self.position = parameter(spec.learned_positions, spec.hidden_size) if spec.learned_positions else None
        self.token_type = parameter(spec.token_types, spec.hidden_size) if spec.token_types else None
        self.norm = Norm(spec) if spec.embedding_norm else None

    def forward(self, token_ids: Tensor, positions: Tensor, type_ids: Tensor | None) -> Tensor:
        """int32 [T] each -> [T, hidden]"""
        norm = self.norm
        return kernels.embedding(
            token_ids,
            self.vocabulary.weight,
            positions=positions,
            position=self.position,
            type_ids=type_ids,
            type=self.token_type,
            scale=self.scale,
            weight=norm.weight if norm else None,
            bias=norm.bias if norm else None,
            eps=norm.eps if norm else 0.0,
            norm=norm.kind if norm else None,
        )


class FeedForward(nn.Module):
    """Two linear maps around an activation; gated ones compute gate and value in one GEMM."""

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.activation: Activation = spec.activation
        self.gated = spec.gated
        width = spec.intermediate_size
        parts = {"gate": width, "up": width} if spec.gated else {"inner": width}
        self.up = Linear(spec.hidden_size, parts, bias=spec.feedforward_bias)
        self.down = Linear(width, {"down": spec.hidden_size}, bias=spec.feedforward_bias)

    def prepare(self, device: torch.device) -> None:
        """On a CPU, packs the first map where its product can end in the activation and saves a pass over memory."""
        if self.activation in EPILOGUES and not self.gated and packable(self.up.weight, device):
            self.up.pack()

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        if self.up.packed is not None and kernels.dispatch.selected(x.device) == "cpu":
            return self.down(self.up(x, EPILOGUES[self.activation]))
        return self.down(kernels.activation(self.up(x), self.activation, gated=self.gated))
