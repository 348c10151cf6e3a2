"""Other ways to generate with a model of transformers: eager, static cache and compiled, continuous batches."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack

    from torch import Tensor

    Generate = Callable[[], list[list[int]]]

EAGER, STATIC = "transformers, eager", "transformers, static cache, compiled"
CONTINUOUS = "transformers, generate_batch"
CTRANSLATE2 = "CTranslate2"
PAGE_SIZE = 256  # of generate_batch
MOST_TOKENS = 8192  # of one of its batches, as of one of ours


def padded(rows: Sequence[Sequence[int]], device: str, *, left: bool) -> dict[str, Tensor]:
    """One batch of ids and the mask of what is real: [B, longest]."""
    longest = max(map(len, rows))
    gaps = [[0] * (longest - len(row)) for row in rows]
    ids = [gap + list(row) if left else list(row) + gap for row, gap in zip(rows, gaps, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [gap + one if left else one + gap for one, gap in zip(ones, gaps, strict=True)]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def generate(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, *, beams: int, **options: Any) -> Generate:
    """`generate` on one padded batch: exactly `new_tokens` for each prompt, greedy or of the best beam."""
    seq2seq = bool(model.config.is_encoder_decoder)
    inputs = padded(prompts, str(model.device), left=not seq2seq)
    read = 1 if seq2seq else inputs["input_ids"].shape[1]
    pad = model.config.pad_token_id or 0

    @torch.inference_mode()
    def run() -> list[list[int]]:
        ids = model.generate(
            **inputs, do_sample=False, num_beams=beams, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
            eos_token_id=None, forced_eos_token_id=None, pad_token_id=pad, **options,
        )  # fmt: skip
        return ids[:, read:].tolist()

    return run


def static(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, *, beams: int) -> Generate:
    """A static cache, whose steps transformers compiles with CUDA graphs by itself on a GPU."""
    torch.compiler.reset()
    return generate(model, prompts, new_tokens, beams=beams, cache_implementation="static")


def continuous(
    model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, ends: ExitStack, *, graphs: bool
) -> Generate:
    """`generate_batch`: paged attention by SDPA, CUDA graphs, the host a step ahead; no prompts are shared.

    The model, which attends otherwise from then on, is its own copy. Its manager is kept between runs, so that graphs
    are captured once, until `ends`.
    """
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    own = copy.deepcopy(model)
    own.set_attn_implementation("paged|sdpa")
    longest = max(map(len, prompts)) + new_tokens
    generation = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, bos_token_id=None
    )
    batching = ContinuousBatchingConfig(
        use_cuda_graph=graphs, use_async_batching=graphs, allow_block_sharing=False,
        num_blocks=2 + len(prompts) * (longest // PAGE_SIZE + 2), max_batch_tokens=min(MOST_TOKENS, 64 * longest),
    )  # fmt: skip
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # it warns of the manager at every run
    ends.callback(own.destroy_cached_continuous_batching_manager)

    def run() -> list[list[int]]:
        outputs = own.generate_batch(
            [list(prompt) for prompt in prompts], generation_config=generation, continuous_batching_config=batching,
            persistent_manager=True, progress_bar=False,
        )  # fmt: skip
        answers = [list(output.generated_tokens) for output in outputs.values()]
        if [len(answer) for answer in answers] != [new_tokens] * len(prompts):
            raise RuntimeError(f"{len(answers)} of {len(prompts)} answers, not all of {new_tokens} tokens")
        return answers

    return run


class Judge:
    """The same weights in float32, which say how good tokens are."""

    def __init__(self, model: Any) -> None:
        self._model: Any = copy.deepcopy(model).float()

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], generated: Sequence[int]) -> Tensor:
        """Of each generated token, given those before it: [n, V]."""
        device = self._model.device
        if self._model.config.is_encoder_decoder:
            start = [self._model.config.decoder_start_token_id]
            source = torch.tensor([list(prompt)], device=device)
            read = torch.tensor([[*start, *generated[:-1]]], device=device)
            return self._model(input_ids=source, decoder_input_ids=read).logits[0]
        ids = torch.tensor([[*prompt, *generated[:-1]]], device=device)
        return self._model(input_ids=ids).logits[0, len(prompt) - 1 :]

    def behind(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> float:
        """By how many standard deviations of the logits a token is behind the likeliest, at most."""
        worst = 0.0
        for prompt, answer in zip(prompts, answers, strict=True):
            logits = self.logits(prompt, answer)
            chosen = logits.gather(1, torch.tensor(answer, device=logits.device)[:, None])[:, 0]
            worst = max(worst, float(((logits.amax(1) - chosen) / logits.std(1)).max()))
        return worst

    def likelihood(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[float]:
        """The mean log probability of a token, of each answer."""
        return list(self._likelihoods(prompts, answers))

    def _likelihoods(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Iterator[float]:
        for prompt, answer in zip(prompts, answers, strict=True):
            logprobs = self.logits(prompt, answer).log_softmax(-1)
            yield float(logprobs.gather(1, torch.tensor(answer, device=logprobs.device)[:, None]).mean())
