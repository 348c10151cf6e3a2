"""How many pages of KV cache an engine gets from its share of the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tercet.server.models import Model
    from tercet.server.wire import EngineSettings

MIB, GIB = 1 << 20, 1 << 30
FLOAT_BYTES = 4
# Hidden-sized tensors alive at once in a layer: residual, norm, q, k, v, attention and its projection.
HIDDEN_BUFFERS = 8
# Vocabulary-sized rows alive at once: logits, and what sampling sorts and sums.
LOGIT_BUFFERS = 4


class TooLargeError(Exception):
    """A model that doesn't fit its share of memory; the message is one line for the user, with the numbers."""


def activation_bytes(model: Model, settings: EngineSettings) -> int:
    """An upper estimate of what the largest batch needs beside weights and pages."""
    stacks = model.spec.stacks.values()
    hidden = max(stack.hidden_size + stack.heads * stack.head_dim for stack in stacks)
    intermediate = max(stack.intermediate_size * (3 if stack.gated else 2) for stack in stacks)
    layer = settings.max_batch_tokens * (HIDDEN_BUFFERS * hidden + intermediate)
    logits = 0 if model.family == "encoder" else LOGIT_BUFFERS * settings.max_rows * model.vocab_size
    return FLOAT_BYTES * (layer + logits)


def pages_of(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens`."""
    return -(-tokens // page_size)


def longest_sequence(model: Model, settings: EngineSettings) -> int:
    """Tokens of the longest sequence. An encoder reads one in one batch, which bounds its length; so it does the
    decoder's of a seq2seq model, which has one limit for both.
    """
    return model.max_length if model.family == "decoder" else min(model.max_length, settings.max_batch_tokens)


def longest_sequence_pages(model: Model, settings: EngineSettings) -> int:
    """Pages of one sequence of the greatest length, and of as long a source where the model has sources."""
    return pages_of(longest_sequence(model, settings), settings.page_size) * (2 if model.family == "seq2seq" else 1)


def count_pages(model: Model, settings: EngineSettings, activations: int) -> int:
    """The pages that fit after weights and activations, but no more than every row could fill; 0 for encoders.

    Raises:
        TooLargeError: weights and activations don't fit, or not even one sequence of the greatest length does.
    """
    left = settings.memory - model.weight_bytes - activations
    held = (
        f"its share of memory is {_size(settings.memory)}, "
        f"its weights take {_size(model.weight_bytes)} and a batch {_size(activations)}"
    )
    if left < 0:
        raise TooLargeError(f"{held}; raise --memory or lower --max-batch-tokens")
    if model.family == "encoder":
        return 0
    sequence = longest_sequence_pages(model, settings)
    fit = left // model.cache_bytes_per_page(settings.page_size)
    if fit < sequence:
        raise TooLargeError(
            f"{held}, which leaves {fit} pages of {settings.page_size} tokens; one sequence of "
            f"{longest_sequence(model, settings)} tokens needs {sequence}; lower --max-length or raise --memory"
        )
    return min(fit, settings.max_rows * sequence)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
