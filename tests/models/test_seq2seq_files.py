"""Files of seq2seq models as they lie on the hub: copies of tied tensors, sines, tensors of other classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from support.forward import Ids, Pair, encode, encoder_batch, head_logits, relative_error, texts
from support.loading import CPU, WEIGHTS, Tensors, refusal, rewrite
from tercet.server.models import Model, Source, load_model
from tercet.server.models.architectures.architecture import ACTIVATIONS

SOURCES, TARGETS = texts(9, 4), texts(5, 12, seed=1)
SHARED, ENCODER, DECODER = "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
# What files of pytorch_model.bin hold beside what transformers saves now: copies of the words, and what is unused.
HUB: dict[str, tuple[str, str, list[str], list[str]]] = {
    "opus-mt": (
        "marian", "MarianMTModel", [f"model.{ENCODER}", f"model.{DECODER}", "lm_head.weight"],
        ["model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"],
    ),
    "nllb": (
        "m2m_100", "M2M100ForConditionalGeneration", [f"model.{ENCODER}", f"model.{DECODER}", "lm_head.weight"],
        ["model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights"],
    ),
    "bart-base": ("bart", "BartModel", [ENCODER, DECODER], []),
    "bart-large-mnli": (
        "bart", "BartForSequenceClassification", [f"model.{ENCODER}", f"model.{DECODER}"],
        ["model.encoder.version", "model.decoder.version"],
    ),
    "mbart": ("mbart", "MBartForConditionalGeneration", [f"model.{DECODER}", "lm_head.weight"], []),
    "pegasus": (
        "pegasus", "PegasusForConditionalGeneration", [f"model.{ENCODER}", f"model.{DECODER}", "lm_head.weight"],
        ["model.encoder.embed_positions.weight"],
    ),
    "t5": (
        "t5", "T5ForConditionalGeneration", [ENCODER, DECODER, "lm_head.weight"],
        ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
    ),
    "t5 as an encoder": (
        "t5-encoder", "T5EncoderModel", [ENCODER],
        [DECODER, "lm_head.weight", "decoder.block.1.layer.0.layer_norm.weight", "decoder.final_layer_norm.weight"],
    ),
}  # fmt: skip

Load = Callable[..., Pair]


def outputs(model: Model, sources: list[Ids] = SOURCES) -> list[torch.Tensor]:
    """Hidden states of two texts, a seq2seq model's of its targets, and what the head makes of them."""
    if model.family == "encoder":
        return encode(model, sources)
    read = encoder_batch(sources)
    hidden = model.read(encoder_batch(TARGETS), Source(model.encode(read), read.rows))
    return [hidden, head_logits(model, hidden)] if model.spec.head else [hidden]


def tensors_of(case: Pair, words: list[str], unused: list[str]) -> tuple[str, Tensors]:
    """The name of the word embedding, and the tensors of a file with copies of it and unused ones."""
    tensors = load_file(case.folder / WEIGHTS)
    shared = next(name for name in tensors if name.endswith(SHARED))
    tensors |= {name: tensors[shared].clone() for name in words}
    return shared, {name: torch.ones(3, 7) for name in unused} | tensors


@pytest.mark.parametrize("layout", HUB)
def test_copies_and_unused_tensors_change_nothing(pair: Load, layout: str, tmp_path: Path) -> None:
    name, head, words, unused = HUB[layout]
    case = pair(name, head)
    shared, tensors = tensors_of(case, words, unused)
    expected = outputs(case.ours)
    ours = load_model(rewrite(case, tmp_path, tensors), device=CPU)
    assert ours.weight_bytes == case.ours.weight_bytes
    assert all(map(torch.equal, outputs(ours), expected))
    del tensors[shared]  # any of the copies will do
    ours = load_model(rewrite(case, tmp_path, tensors), device=CPU)
    assert all(map(torch.equal, outputs(ours), expected))


@pytest.mark.parametrize("layout", [layout for layout, row in HUB.items() if "Sequence" not in row[1]])
def test_words_that_are_no_copies_are_refused(pair: Load, layout: str, tmp_path: Path) -> None:
    name, head, words, unused = HUB[layout]
    shared, tensors = tensors_of(pair(name, head), words, unused)
    for copy in words:
        if copy == "lm_head.weight":
            continue
        message = refusal(rewrite(pair(name, head), tmp_path, tensors | {copy: tensors[copy] + 1e-3}))
        assert message == (
            f"{tmp_path / WEIGHTS}: tensor {copy} differs from {shared}, of which the config makes it a copy"
        )


@pytest.mark.parametrize("name", ["marian", "marian-two", "m2m_100", "bart", "t5", "mt5", "umt5"])
def test_a_head_that_is_no_copy_is_one_of_its_own(pair: Load, name: str, tmp_path: Path) -> None:
    """Whatever the config says of tying: transformers, too, follows the file."""
    case = pair(name)
    tensors = load_file(case.folder / WEIGHTS)
    generator = torch.Generator().manual_seed(3)
    vocab, width = case.ours.target_vocab_size, case.ours.hidden_size
    tensors["lm_head.weight"] = torch.randn(vocab, width, generator=generator)
    folder = rewrite(case, tmp_path, tensors)
    theirs = getattr(transformers, type(case.reference).__name__).from_pretrained(folder).eval()
    (ids,), (target,) = SOURCES[:1], TARGETS[:1]
    expected = Pair(folder, load_model(folder, device=CPU), theirs).expected(target, source=ids)
    ours = load_model(folder, device=CPU)
    read = encoder_batch([ids])
    hidden = ours.read(encoder_batch([target]), Source(ours.encode(read), read.rows))
    assert expected.logits is not None
    assert relative_error(ours.logits(hidden), expected.logits) <= 1e-4
    assert relative_error(case.ours.logits(hidden), expected.logits) > 0.1


@pytest.mark.parametrize("name", ["t5", "mt5", "umt5"])
def test_what_goes_into_a_head_that_is_not_tied_is_not_scaled(pair: Load, name: str, tmp_path: Path) -> None:
    """As configs say it that are older than transformers 5; what that saves is in the table of rows."""
    case = pair(name)
    tensors = load_file(case.folder / WEIGHTS)
    head = torch.randn(331, 40, generator=torch.Generator().manual_seed(3))
    changed = {"tie_word_embeddings": False, "scale_decoder_outputs": None}
    ours = load_model(rewrite(case, tmp_path, tensors | {"lm_head.weight": head}, **changed), device=CPU)
    hidden = torch.randn(3, 40)
    assert relative_error(ours.logits(hidden), hidden @ head.T) < 1e-6


@pytest.mark.parametrize("activation", ["silu", "gelu_new"])
def test_what_transformers_wrote_of_t5s_feed_forward_counts_more(pair: Load, activation: str, tmp_path: Path) -> None:
    folder = rewrite(pair("t5"), tmp_path, feed_forward_proj="relu", dense_act_fn=activation, is_gated_act=True)
    theirs = transformers.T5Config.from_pretrained(folder)
    assert (theirs.dense_act_fn, theirs.is_gated_act) == (activation, True)
    stack = load_model(folder, device=CPU).spec.encoder
    assert (stack.activation, stack.gated) == (ACTIVATIONS[activation], True)


def test_a_vocabulary_of_the_target_alone_is_no_copy(pair: Load, tmp_path: Path) -> None:
    case = pair("marian-two")
    tensors = load_file(case.folder / WEIGHTS)
    name = f"model.{DECODER}"
    assert tensors[name].shape != tensors[f"model.{ENCODER}"].shape
    rest = {other: value for other, value in tensors.items() if other != name}
    assert refusal(rewrite(case, tmp_path, rest)) == f"{tmp_path / WEIGHTS}: missing tensor {name}"
    del tensors["final_logits_bias"]
    message = refusal(rewrite(case, tmp_path, tensors, share_encoder_decoder_embeddings=True))
    assert f"tensor {name} has shape [401, 48], the config makes it [331, 48]" in message


@pytest.mark.parametrize("name", ["marian", "m2m_100", "pegasus"])
def test_sines_set_no_limit_and_learned_positions_do(pair: Load, name: str) -> None:
    config = json.loads((pair(name).folder / "config.json").read_text())
    assert pair(name).ours.max_length == config["max_position_embeddings"]
    longer = load_model(pair(name).folder, device=CPU, max_length=config["max_position_embeddings"] + 30)
    assert all(map(torch.equal, outputs(longer), outputs(pair(name).ours)))
    (long,) = texts(longer.max_length)
    assert torch.stack(encode(longer, [long])).isfinite().all()
    assert "max_length is 42, it must be at least 1 and at most the checkpoint's 41" in refusal(
        pair("bart").folder, max_length=42
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bart", {"encoder_attention_heads": 5}, "encoder_attention_heads is 5, it must divide d_model = 48"),
        ("marian", {"decoder_attention_heads": 7}, "decoder_attention_heads is 7, it must divide d_model = 48"),
        ("mbart", {"activation_function": "mish"}, 'activation_function is "mish"'),
        ("pegasus", {"decoder_ffn_dim": 0}, "decoder_ffn_dim is 0"),
        ("m2m_100", {"pad_token_id": -1}, "pad_token_id is -1"),
        ("marian-two", {"decoder_vocab_size": 2.5}, "decoder_vocab_size is 2.5"),
        ("umt5", {"feed_forward_proj": "gated-mish"}, 'feed_forward_proj is "gated-mish"'),
        ("t5", {"dense_act_fn": "mish"}, 'dense_act_fn is "mish"'),
        ("mt5", {"architectures": ["MT5ForImages"]}, 'architectures is ["MT5ForImages"]'),
    ],
    ids=str,
)
def test_absurd_configs_are_refused_by_key(
    pair: Load, name: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in refusal(rewrite(pair(name), tmp_path, **change))


@pytest.mark.parametrize("name", ["t5", "mt5", "umt5", "pegasus"])
def test_float16_overflows(pair: Load, name: str) -> None:
    assert "dtype float16 overflows" in refusal(pair(name).folder, dtype="float16")


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_pages_are_the_decoders(pair: Load, name: str) -> None:
    """Whose heads and layers are others than the encoder's."""
    model = pair(name).ours
    decoder = model.spec.decoder
    assert decoder is not None
    cache = model.new_cache(3, 4)
    assert cache.k.shape == (decoder.layers, 3, 4, decoder.kv_heads, decoder.head_dim)
    assert cache.k.nbytes + cache.v.nbytes == 3 * model.cache_bytes_per_page(4)
