"""What a machine can give at most: the operations and bytes that work cannot do without, over a chip's rates.

Roofline (Williams et al., 2009): no version of the work is faster than its operations at the chip's arithmetic rate,
nor than its bytes at the rate of its memory, nor than its kernels one after another. A multiplication and an addition
are two operations. `element` is the bytes of a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Chip:
    """The rates of a device."""

    flops: float
    """Operations a second of dense matrix products, on GPUs in bfloat16."""
    bandwidth: float
    """Bytes a second of device memory, read and written."""
    launch: float = 0.0
    """Seconds of an empty kernel inside a graph."""


@dataclass(frozen=True)
class Work:
    """What a piece of work cannot do without."""

    flops: float
    bytes: float
    kernels: int = 0
    """That run one after another."""

    def seconds(self, chip: Chip) -> float:
        """The least time it takes."""
        return max(self.flops / chip.flops, self.bytes / chip.bandwidth, self.kernels * chip.launch)


# NVIDIA's own names of its GPUs -> its datasheets' dense bfloat16 rate and bandwidth. The SXM boards.
DATASHEETS = {
    "NVIDIA H100 80GB HBM3": Chip(989.5e12, 3.35e12),
    "NVIDIA H200": Chip(989.5e12, 4.8e12),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2.039e12),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 1.555e12),
}
H100 = "NVIDIA H100 80GB HBM3"


@dataclass(frozen=True)
class Stack:
    """The layers of one transformer stack, as its products count."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = 0
    """Rows of the output head; 0 without one."""
    gated: bool = False
    """Whether the feed-forward has a second input product."""
    crosses: bool = False
    """Whether its layers attend to a source as well."""

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's products, but those that make a source's keys and values."""
        queries = 2 * self.width * self.heads * self.head_dim  # and the output
        keys = 2 * self.width * self.kv_heads * self.head_dim  # and values
        feed_forward = (3 if self.gated else 2) * self.width * self.feed_forward
        return queries + keys + feed_forward + (queries if self.crosses else 0)

    @property
    def parameters(self) -> int:
        """Weights that one step multiplies by: all layers and the output head."""
        return self.layers * self.layer_parameters + self.vocabulary * self.width

    def cache_bytes(self, element: int = 2) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element


def attention_flops(lengths: Sequence[int], heads: int, head_dim: int, *, causal: bool = False) -> int:
    """Of queries with keys and weights with values, over the pairs that are visible."""
    pairs = sum(length * (length + 1) // 2 if causal else length**2 for length in lengths)
    return 4 * heads * head_dim * pairs


def encode(stack: Stack, lengths: Sequence[int], element: int = 2) -> Work:
    """Texts read whole, packed. Activations between products are counted as moved, norms' and residuals' too."""
    tokens, layers = sum(lengths), stack.layers * stack.layer_parameters
    flops = 2 * tokens * layers + stack.layers * attention_flops(lengths, stack.heads, stack.head_dim)
    moved = tokens * stack.layers * (10 * stack.width + 2 * stack.feed_forward)
    return Work(flops, element * (layers + moved))


def decode_step(
    stack: Stack, contexts: Sequence[int], sources: Sequence[int] = (), *, beams: int = 1, element: int = 2,
    kernels: int = 0,
) -> Work:  # fmt: skip
    """One new token for each row: every weight once, and the cached keys and values of each row.

    contexts: tokens in the cache of each row. sources: tokens of each source, whose keys and values are read once for
    all its `beams`, which are rows too.
    """
    rows = len(contexts)
    read = sum(contexts) + beams * sum(sources)
    flops = 2 * rows * stack.parameters + stack.layers * 4 * stack.heads * stack.head_dim * read
    cached = (sum(contexts) + sum(sources)) * stack.cache_bytes(element)
    return Work(flops, element * stack.parameters + cached, kernels)
