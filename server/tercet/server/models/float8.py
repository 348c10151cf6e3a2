"""Products in 8-bit floats, e4m3 (Micikevicius et al., FP8 Formats for Deep Learning, 2022).

Weights have a scale for each output, inputs one for each token, found as they come: no token's numbers depend on
another's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tercet.server.models.layers import Linear

FLOAT8 = torch.float8_e4m3fn
GREATEST = torch.finfo(FLOAT8).max
LEAST = 1e-30  # what the greatest of a row counts as at least: a row may be zeros
MULTIPLE = 16  # of both sizes of a weight that GPUs multiply
MIN_CAPABILITY = (8, 9)  # of NVIDIA's GPUs


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Makes of x [rows, columns] e4m3, each row's greatest the greatest there is, and the scales, float32 [rows, 1].

    A row that isn't finite stays so.
    """
    greatest = torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True, dtype=torch.float32)
    scale = greatest.clamp(min=LEAST) / GREATEST
    return (x / scale).to(FLOAT8), scale


class Float8Weight(nn.Module):
    """The weight [out, in] of a linear map."""

    scale: Tensor
    """float32 [1, out]"""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.values, scale = quantize(weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.squared_error = float((self.values.float() * scale - weight.float()).square().sum())
        self.squared_norm = float(weight.float().square().sum())

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product, summed in float32: bfloat16 [T, in] -> [T, out]."""
        values, scale = quantize(x)
        return torch.ops.aten._scaled_mm(
            values, self.values.t(), scale_a=scale, scale_b=self.scale, bias=bias, out_dtype=x.dtype
        )


def quantize_layers(transformer: nn.Module) -> float | None:
    """Quantizes the linear maps of all layers; heads, norms and embeddings stay as they are.

    Returns ‖quantized - weights‖ / ‖weights‖ over all of them; None if there is none whose sizes are multiples of 16.
    """
    error = norm = 0.0
    for name, module in list(transformer.named_modules()):
        if not isinstance(module, Linear) or ".layers." not in name or any(n % MULTIPLE for n in module.weight.shape):
            continue
        weight = Float8Weight(module.weight)
        error, norm = error + weight.squared_error, norm + weight.squared_norm
        module.quantize(weight)
    return math.sqrt(error / norm) if norm else None


def refusal(device: torch.device) -> str | None:
    """Why such products can't be computed there, if so."""
    if device.type != "cuda":
        return None
    if torch.version.hip:
        return "AMD's GPUs have another format"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        needed, there = (".".join(map(str, pair)) for pair in (MIN_CAPABILITY, capability))
        return f"it needs a GPU of compute capability {needed}, this one has {there}"
    return None
