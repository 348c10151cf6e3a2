"""Equality with transformers, as the design defines it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Agreement:
    """What following a sequence of generated tokens with the reference found."""

    steps: int
    ties: int
    """Steps where our token is not the reference's first, but within the tolerance of it."""


def follow_greedy(
    model: PreTrainedModel,
    prompt: Sequence[int],
    generated: Sequence[int],
    *,
    tolerance: float,
    decoder_start: Sequence[int] = (),
) -> Agreement:
    """Checks that every generated token is the reference's greedy choice, given the tokens before it.

    One forward pass over prompt and generated tokens; by induction over the steps this is equality with greedy
    generation, with ties (logits within `tolerance` of the largest) allowed and counted. With `decoder_start` the model
    is seq2seq and `prompt` its source.
    """
    with torch.inference_mode():
        if decoder_start:
            ids = torch.tensor([[*decoder_start, *generated[:-1]]])
            logits = model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=ids).logits[0].float()
            logits = logits[len(decoder_start) - 1 :]
        else:
            ids = torch.tensor([[*prompt, *generated[:-1]]])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 :].float()
    chosen = logits[torch.arange(len(generated)), torch.tensor(list(generated))]
    behind = logits.max(dim=-1).values - chosen
    worst = int(behind.argmax())
    if behind[worst] > tolerance:
        raise AssertionError(
            f"step {worst} of {len(generated)}: token {generated[worst]} is {behind[worst]:.2e} behind "
            f"the reference's {int(logits[worst].argmax())}"
        )
    return Agreement(steps=len(generated), ties=int((behind > 0).sum()))
