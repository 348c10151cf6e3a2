"""What transformers generates with a tiny checkpoint, and the prompts and ends that tests of generation share."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch

from support.row import VOCAB_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

NEW_TOKENS = 20
PAD = 2
START = [0]  # what the decoders of seq2seq models begin with
LENGTHS = (1, 4, 7, 13, 18, 30)
PROMPTS = [random.Random(length).choices(range(3, VOCAB_SIZE), k=length) for length in LENGTHS]


def generated(model: PreTrainedModel, prompt: Sequence[int], *, eos: Sequence[int] = (), **options: Any) -> list[int]:
    """The new tokens after a prompt, or for a source: greedy, up to NEW_TOKENS, unless `options` say otherwise."""
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        eos_token_id=list(eos) or None,
        pad_token_id=PAD,
        **{"max_new_tokens": NEW_TOKENS, "do_sample": False} | options,
    )
    return output[0, len(START) if model.config.is_encoder_decoder else len(prompt) :].tolist()


def varied(model: PreTrainedModel) -> list[list[int]]:
    """What follows each of PROMPTS without an end, found to be varied enough for equality to mean something."""
    texts = [generated(model, prompt) for prompt in PROMPTS]
    if min(len(set(text)) for text in texts) < 8 or len({tuple(text) for text in texts}) < len(texts):
        raise AssertionError(f"too few different tokens: {texts}")
    return texts


def dividing(texts: Sequence[Sequence[int]]) -> int:
    """A token by which, as an end, some of the texts end early, and some do not."""
    return next(token for token in texts[0][5:] if not all(token in text for text in texts))
