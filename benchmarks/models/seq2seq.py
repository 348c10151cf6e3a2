"""The pronounce checkpoint against transformers, 64 words at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from benchmarks import checkpoints, workloads
from benchmarks.measure import compare, interleave
from benchmarks.models.inprocess import InProcess
from benchmarks.rows import Result

if TYPE_CHECKING:
    from benchmarks.rows import Settings

OURS, PEER = "tercet", "transformers, one padded batch"
WORDS = 64
NEW_TOKENS = 40
MOST_UNEQUAL = 1  # words whose tokens may differ by a tie


def in_process(settings: Settings) -> Result:
    """Both stop at the end of sequence, greedy; the engine without the service."""
    title = "pronounce (T5) in float32, 64 words at once, engine in process"
    model = InProcess(checkpoints.pronounce(), settings.threads)
    starts, ends = model.text.generation.decoder_start_ids, model.text.generation.eos_ids
    torch.set_num_threads(settings.threads)
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.pronounce())
    reference = AutoModelForSeq2SeqLM.from_pretrained(checkpoints.pronounce(), dtype=torch.float32).eval()
    words = sorted({word for text in workloads.texts(16) for word in text.split()})[:WORDS]
    prompts = [encoded.ids for encoded in model.text.tokenizer.encode_batch(words)]
    padded = tokenizer(words, padding=True, return_tensors="pt")

    @torch.inference_mode()
    def transformers() -> list[list[int]]:
        ids = reference.generate(**padded, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
        return [[token for token in row if token != tokenizer.pad_token_id] for row in ids.tolist()]

    def tercet() -> list[list[int]]:
        return model.generate(prompts, NEW_TOKENS, decoder_ids=starts, eos_ids=ends)

    theirs, ours = transformers(), tercet()
    unequal = sum(left != right for left, right in zip(ours, theirs, strict=True))
    if unequal > MOST_UNEQUAL:
        return Result(title, not_measured=f"{unequal} words differ from transformers'", missed=["correctness"])
    seconds = interleave({OURS: tercet, PEER: transformers}, settings)
    facts = {"words": WORDS, "words that differ": unequal}
    return compare(title, seconds, ours=OURS, amount=WORDS, unit="words/s", bars={PEER: None}, facts=facts)
