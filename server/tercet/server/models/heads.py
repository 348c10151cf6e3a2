"""Heads: what turns final hidden states into logits, of tokens, labels or places."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tercet import kernels
from tercet.server.models.layers import Linear, Norm, Prepared, Vocabulary, packable, parameter

if TYPE_CHECKING:
    from tercet.server.models.spec import HeadActivation, HeadSpec


class Head(nn.Module):
    """A dense map, its activation and norm, each where the spec has one, and the map to the outputs."""

    def __init__(self, spec: HeadSpec, hidden_size: int, vocabulary: Vocabulary) -> None:
        """`vocabulary`: the word embedding that a tied head multiplies by."""
        super().__init__()
        self.scale = spec.scale
        self.activation: HeadActivation | None = spec.activation
        width = spec.dense or hidden_size
        self.dense = Linear(hidden_size, {"dense": width}, bias=spec.dense_bias) if spec.dense else None
        self.norm = Norm(width, spec.norm, eps=spec.norm_eps, bias=spec.norm_bias) if spec.norm else None
        self.output = (
            TiedOutput(vocabulary, bias=spec.bias)
            if spec.tied
            else Linear(width, {"output": spec.outputs}, bias=spec.bias)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, hidden] -> [N, outputs]"""
        x = hidden if self.scale == 1 else hidden * self.scale
        if self.dense:
            x = self.dense(x)
        if self.activation:
            x = x.tanh() if self.activation == "tanh" else kernels.activation(x, self.activation)
        if self.norm:
            x = self.norm(x)
        return self.output(x)


class TiedOutput(Prepared):
    """Logits by the word embedding.

    On a CPU a copy of it, reordered for oneDNN, is read faster by a batch. In float32 a few rows stay with the plain
    one: their time is that of reading it.
    """

    PACKED_ROWS: ClassVar = {torch.float32: 4, torch.bfloat16: 1}  # from here on the copy wins

    def __init__(self, vocabulary: Vocabulary, *, bias: bool) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.bias = parameter(len(vocabulary.weight)) if bias else None
        self.register_buffer("packed", None)

    def prepare(self, device: torch.device) -> None:
        """Makes the copy."""
        if packable(self.vocabulary.weight, device):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.vocabulary.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[N, width] -> [N, vocab]"""
        if self.packed is None or len(x) < self.PACKED_ROWS[x.dtype]:
            return functional.linear(x, self.vocabulary.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
