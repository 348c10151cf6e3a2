"""The physical limits, against figures worked out by hand and against each other."""

import pytest
from benchmarks.limits import DATASHEETS, H100, Chip, Stack, Work, attention_flops, decode_step, encode

CHIP = DATASHEETS[H100]
BERT = Stack(layers=12, width=768, feed_forward=3072, heads=12, kv_heads=12, head_dim=64)
BERT_LARGE = Stack(layers=24, width=1024, feed_forward=4096, heads=16, kv_heads=16, head_dim=64)
GPT2 = Stack(12, 768, 3072, 12, 12, 64, vocabulary=50257)
QWEN3 = Stack(28, 1024, 3072, 16, 8, 128, vocabulary=151936, gated=True)
LLAMA_1B = Stack(16, 2048, 8192, 32, 8, 64, vocabulary=128256, gated=True)
MARIAN = Stack(6, 512, 2048, 8, 8, 64, vocabulary=58101, crosses=True)
T5_BASE = Stack(12, 768, 3072, 12, 12, 64, vocabulary=32128, crosses=True)


@pytest.mark.parametrize(
    ("stack", "length", "millions"), [(BERT, 32, 5.78), (BERT, 128, 5.66), (BERT, 512, 5.24), (BERT_LARGE, 128, 1.60)]
)
def test_tokens_a_second_of_encoders(stack, length, millions):
    lengths = [length] * 256
    assert sum(lengths) / encode(stack, lengths).seconds(CHIP) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ("stack", "rows", "context", "microseconds"),
    [
        (GPT2, 1, 512, 79), (GPT2, 32, 512, 254), (GPT2, 64, 1024, 795), (QWEN3, 1, 512, 373), (QWEN3, 64, 1024, 2599),
        (LLAMA_1B, 1, 512, 743), (LLAMA_1B, 256, 512, 2020),
    ],
)  # fmt: skip
def test_seconds_of_a_decoding_step(stack, rows, context, microseconds):
    assert decode_step(stack, [context] * rows).seconds(CHIP) * 1e6 == pytest.approx(microseconds, rel=0.01)


def test_a_sources_keys_are_read_once_for_all_its_beams():
    alone = decode_step(T5_BASE, [0] * 32, [128] * 32)
    beams = decode_step(T5_BASE, [0] * 128, [128] * 32, beams=4)
    assert alone.seconds(CHIP) * 1e6 == pytest.approx(120, rel=0.01)
    assert beams.bytes == alone.bytes
    assert beams.flops == 4 * alone.flops
    assert decode_step(MARIAN, [20] * 32, [27] * 32).seconds(CHIP) * 1e6 == pytest.approx(36, rel=0.02)


def test_causal_attention_is_the_lower_triangle():
    assert attention_flops([3, 2], heads=2, head_dim=5) == 4 * 2 * 5 * (9 + 4)
    assert attention_flops([3, 2], heads=2, head_dim=5, causal=True) == 4 * 2 * 5 * (6 + 3)


def test_the_scarcest_resource_is_the_limit():
    chip = Chip(flops=10.0, bandwidth=5.0, launch=2.0)
    assert Work(flops=40, bytes=5).seconds(chip) == 4
    assert Work(flops=10, bytes=15).seconds(chip) == 3
    assert Work(flops=10, bytes=5, kernels=7).seconds(chip) == 14
