"""Norms, activations and sampling against torch's own operators; all are bound by memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from benchmarks.kernels.contest import OURS, contest
from benchmarks.rows import Row
from tercet.kernels import activation, layer_norm, rms_norm

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.rows import Device, Result, Settings

EPS = 1e-5
TORCH = "torch"
Pair = tuple["Callable[[], Tensor]", "Callable[[], Tensor]", "Callable[[], Tensor]"]


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Pair:
    ours, theirs = torch.zeros_like(x), torch.zeros_like(x)  # residuals, updated in place

    def torch_norm() -> Tensor:
        theirs.add_(x)
        return functional.layer_norm(theirs, x.shape[-1:], weight, bias, EPS)

    def truth() -> Tensor:
        return functional.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), EPS)

    # The norm of a multiple of x is that of x: the growing residuals do not change the answer (EPS apart).
    return lambda: layer_norm(x, weight, bias, eps=EPS, residual=ours), torch_norm, truth


def _rms_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Pair:
    del bias
    return (
        lambda: rms_norm(x, weight, eps=EPS),
        lambda: functional.rms_norm(x, x.shape[-1:], weight, EPS),
        lambda: functional.rms_norm(x.double(), x.shape[-1:], weight.double(), EPS),
    )


def _gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Pair:
    del weight
    return (
        lambda: activation(x, "gelu", bias=bias),
        lambda: functional.gelu(x + bias),
        lambda: functional.gelu(x.double() + bias.double()),
    )


def _gated_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Pair:
    del weight, bias
    gate, up = x.chunk(2, dim=-1)
    return (
        lambda: activation(x, "silu", gated=True),
        lambda: functional.silu(gate) * up,
        lambda: functional.silu(gate.double()) * up.double(),
    )


# Op -> how it is made, and the passes over x that it cannot do without (reads and writes of x's size).
OPS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Pair], float]] = {
    "layer_norm + residual": (_layer_norm, 4),
    "rms_norm": (_rms_norm, 2),
    "gelu + bias": (_gelu, 2),
    "gated silu": (_gated_silu, 1.5),
}


@dataclass(frozen=True)
class Case:
    """One op on x [tokens, width]."""

    op: str
    device: Device
    dtype: torch.dtype
    tokens: int
    width: int

    def small(self) -> Case:
        """The same in small, on a CPU."""
        return replace(self, device="cpu", tokens=7, width=64)


def _measure(case: Case, settings: Settings) -> Result:
    torch.set_num_threads(settings.threads)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(case.device, case.dtype)
        for shape in ((case.tokens, case.width), (case.width,), (case.width,))
    )
    make, passes = OPS[case.op]
    ours, theirs, truth = make(x, weight, bias)
    right = truth()
    return contest(
        f"{case.op} of [{case.tokens}, {case.width}] {case.dtype}; the bytes that it cannot do without",
        {OURS: ours, TORCH: theirs},
        row=row_name(case),
        truth=lambda answer: (answer, right),
        judge=TORCH,
        device=x.device,
        dtype=case.dtype,
        amount=passes * x.numel() * x.element_size() / 1e9,
        unit="GB/s",
        bars={},
        settings=settings,
        prebuilt=(TORCH,),
        limit=lambda chip: chip.bandwidth / 1e9,
    )


def row_name(case: Case) -> str:
    """As the report has it."""
    return f"kernels/{'gpu' if case.device == 'cuda' else 'cpu'}/{case.op}"


CASES = tuple(
    case
    for op in OPS
    for case in (Case(op, "cuda", torch.bfloat16, 16384, 2048), Case(op, "cpu", torch.float32, 1024, 1536))
)
ROWS = tuple(
    Row(
        row_name(case),
        functools.partial(_measure, case),
        device=case.device,
        priority=2,
        small=functools.partial(_measure, case.small()),
    )
    for case in CASES
)
