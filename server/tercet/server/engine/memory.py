"""How many pages of KV cache an engine gets from its share of the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.engine.pages import pages_of

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
    return FLOAT_BYTES * (layer + _head_elements(model, settings))


def generates(model: Model) -> bool:
    """Whether a model writes text, and so needs a cache."""
    return model.spec.head is not None and model.spec.head.task == "generate"


def longest_read(model: Model, settings: EngineSettings) -> int:
    """Tokens of the longest sequence that is read whole: in one batch, which bounds it."""
    return min(model.max_length, settings.max_batch_tokens)


def longest_sequence(model: Model, settings: EngineSettings) -> int:
    """Tokens of the longest sequence. A decoder generates from prompts read in chunks; a seq2seq model has one limit
    for what its encoder reads whole and for its decoder.
    """
    prefills = model.family == "decoder" and generates(model)
    return model.max_length if prefills else longest_read(model, settings)


def longest_sequence_pages(model: Model, settings: EngineSettings) -> int:
    """Pages of one sequence of the greatest length, and of as long a source where the model has sources."""
    return pages_of(longest_sequence(model, settings), settings.page_size) * (2 if model.family == "seq2seq" else 1)


def count_pages(model: Model, settings: EngineSettings, activations: int) -> int:
    """The pages that fit after weights and activations, but no more than every row could fill; 0 where none is needed.

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
    if not generates(model):
        return 0
    sequence = longest_sequence_pages(model, settings)
    fit = left // model.cache_bytes_per_page(settings.page_size)
    if fit < sequence:
        raise TooLargeError(
            f"{held}, which leaves {fit} pages of {settings.page_size} tokens; one sequence of "
            f"{longest_sequence(model, settings)} tokens needs {sequence}; lower --max-length or raise --memory"
        )
    return min(fit, settings.max_rows * sequence)


def _head_elements(model: Model, settings: EngineSettings) -> int:
    head = model.spec.head
    if head is None:
        return 0
    if head.task in ("generate", "fill_mask"):
        return settings.max_rows * (LOGIT_BUFFERS * head.outputs + 2 * (head.dense or 0))
    return settings.max_batch_tokens * (2 * head.outputs + 2 * (head.dense or 0))


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
