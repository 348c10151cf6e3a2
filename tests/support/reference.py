"""Equality with transformers, as the design defines it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel


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


@dataclass
class CountPenalties(LogitsProcessor):
    """presence_penalty and frequency_penalty, by the formula of the OpenAI API; transformers has neither."""

    prompt: int
    presence: float
    frequency: float

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        for token, count in Counter(input_ids[0, self.prompt :].tolist()).items():
            scores[0, token] -= self.presence + count * self.frequency
        return scores


def renamed(*, logit_bias: dict[int, float] | None = None, **options: object) -> dict[str, object]:
    """Options named as in `Sampling`, for transformers."""
    names = {
        "bad_words": "bad_words_ids", "suppressed_ids": "suppress_tokens", "forced_bos_id": "forced_bos_token_id",
        "first_suppressed_ids": "begin_suppress_tokens", "forced_eos_ids": "forced_eos_token_id",
    }  # fmt: skip
    bias = {"sequence_bias": [[[token], value] for token, value in logit_bias.items()]} if logit_bias else {}
    return bias | {names.get(name, name): value for name, value in options.items()}


class _Generating(GenerationMixin):
    """As much of a model as making processors needs."""

    def __init__(self, *, seq2seq: bool) -> None:
        self.config = SimpleNamespace(is_encoder_decoder=seq2seq)


def processed(
    scores: torch.Tensor,
    prompt: Sequence[int],
    generated: Sequence[int],
    *,
    source: Sequence[int] = (),
    eos: Sequence[int] = (),
    max_new_tokens: int = 1000,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    **options: object,
) -> torch.Tensor:
    """Scores [1, vocabulary] of the next token, after all that transformers does to them with these options.

    `options` are named as in `Sampling`; with a temperature above 0 filters count, at 0 scores are those of a greedy
    choice or a beam. With a `source` the prompt is what the decoder of a seq2seq model starts from.
    """
    sampled = bool(options.get("temperature"))
    if not sampled:
        options.pop("temperature", None)
    config = GenerationConfig(do_sample=sampled, max_length=len(prompt) + max_new_tokens, **renamed(**options))
    config._eos_token_tensor = torch.tensor(eos) if eos else None
    processors = _Generating(seq2seq=bool(source))._get_logits_processor(
        config,
        input_ids_seq_length=len(prompt),
        encoder_input_ids=torch.tensor([list(source)]) if source else None,
        logits_processor=LogitsProcessorList([CountPenalties(len(prompt), presence_penalty, frequency_penalty)]),
        device="cpu",
    )
    return processors(torch.tensor([[*prompt, *generated]]), scores.clone())
