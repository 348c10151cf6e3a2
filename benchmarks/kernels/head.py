"""The output head and its best tokens, without writing the logits, against a product and top-k of all of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from benchmarks.kernels.contest import OURS, contest
from benchmarks.rows import Row
from tercet.kernels import head_topk

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.rows import Device, Result, Settings

PRODUCT = "matrix product + topk"


@dataclass(frozen=True)
class Case:
    """The `k` best of `vocabulary` tokens for each of `rows` hidden states."""

    name: str
    device: Device
    dtype: torch.dtype
    rows: int
    width: int
    vocabulary: int
    k: int

    def small(self) -> Case:
        """The same in small, on a CPU."""
        return replace(self, device="cpu", rows=3, width=32, vocabulary=501, k=min(self.k, 4))


def _measure(case: Case, settings: Settings) -> Result:
    torch.set_num_threads(settings.threads)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(shape, generator=generator).to(case.device, case.dtype)
        for shape in ((case.rows, case.width), (case.vocabulary, case.width))
    )
    right = (hidden.double() @ weight.double().T).topk(case.k).values
    title = (
        f"the {case.k} best of {case.vocabulary} tokens for {case.rows} rows of {case.width}, {case.dtype}; "
        "bytes of the weights"
    )

    def product() -> Tensor:
        return (hidden @ weight.T).float().topk(case.k).values

    return contest(
        title,
        {OURS: lambda: head_topk(hidden, weight, k=case.k)[0], PRODUCT: product},
        row=row_name(case),
        truth=lambda answer: (answer, right),
        judge=PRODUCT,
        device=hidden.device,
        dtype=case.dtype,
        amount=weight.numel() * weight.element_size() / 1e9,
        unit="GB/s",
        bars={PRODUCT: 1.0},
        settings=settings,
        limit=lambda chip: chip.bandwidth / 1e9,
        graphs=True,
        prebuilt=(PRODUCT,),
    )


def row_name(case: Case) -> str:
    """As the report has it."""
    return f"kernels/{'gpu' if case.device == 'cuda' else 'cpu'}/head {case.name}"


CASES = (
    Case("64 rows GPT-2 greedy", "cuda", torch.bfloat16, 64, 768, 50257, 1),
    Case("1 row Qwen3 greedy", "cuda", torch.bfloat16, 1, 1024, 151936, 1),
    Case("64 rows Qwen3 top 50", "cuda", torch.bfloat16, 64, 1024, 151936, 50),
)
ROWS = tuple(
    Row(
        row_name(case),
        functools.partial(_measure, case),
        device=case.device,
        small=functools.partial(_measure, case.small()),
    )
    for case in CASES
)
