"""Heads: what turns final hidden states into logits, of tokens, labels or places."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tercet import kernels
from tercet.kernels.ops import MAX_TOP_K
from tercet.server.models.layers import Linear, Norm, Prepared, Vocabulary, packable, parameter

if TYPE_CHECKING:
    from tercet.server.models.spec import HeadActivation, HeadSpec

# Most rows of which the k greatest outputs are found by `kernels.head_topk`, by implementation and k. On a CPU that is
# none: oneDNN multiplies by its reordered copy of the weight faster, and passes over outputs are cheap there.
TOPK_ROWS: dict[str, dict[int, int]] = {
    "triton": {1: 256, MAX_TOP_K: 64},
    "cpu": {MAX_TOP_K: 0},
    "reference": {MAX_TOP_K: 1 << 16},
}


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
        return self.output(self._mapped(hidden))

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The `k` greatest outputs of each row, as `kernels.head_topk` gives them."""
        weight = self._weight
        if weight is None:
            raise ValueError("the head's weight is packed, so that it gives all outputs alone")
        return kernels.head_topk(self._mapped(hidden), weight, k=k, bias=self.output.bias)

    def topk_refusals(self, rows: int, k: int) -> list[str]:
        """Why the `k` greatest outputs of so many rows are better found among all of them."""
        weight = self._weight
        if weight is None:
            return ["the head's weight is packed"]
        implementation = kernels.dispatch.selected(weight.device)
        most = TOPK_ROWS[implementation][min(size for size in TOPK_ROWS[implementation] if size >= k)]
        reasons = [f"{implementation} is quicker with all outputs of more than {most} rows"] if rows > most else []
        return reasons + kernels.dispatch.unsupported_reasons(
            "head_topk", implementation, device=weight.device, dtype=weight.dtype
        )

    @property
    def _weight(self) -> Tensor | None:
        """[outputs, width]; None where only a reordered copy is left."""
        if isinstance(self.output, TiedOutput):
            return self.output.vocabulary.weight
        return self.output.weight if self.output.packed is None else None

    def _mapped(self, hidden: Tensor) -> Tensor:
        """What the map to the outputs reads."""
        x = hidden if self.scale == 1 else hidden * self.scale
        if self.dense:
            x = self.dense(x)
        if self.activation:
            x = x.tanh() if self.activation == "tanh" else kernels.activation(x, self.activation)
        return self.norm(x) if self.norm else x


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
