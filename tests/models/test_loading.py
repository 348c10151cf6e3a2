"""Checkpoints are read strictly: what is missing, left over, misshapen, damaged or absurd is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.checkpoints import tiny_bert, tiny_llama, tiny_t5
from support.forward import Decoding, Pair, encode, relative_error, texts
from support.loading import CPU, WEIGHTS, refusal, rewrite
from tercet.server.models import Model, load_model

INDEX = "model.safetensors.index.json"
MAKERS = {"bert": tiny_bert, "llama": tiny_llama, "t5": tiny_t5}

Load = Callable[[str], Pair]


def same(ours: Model, other: Model) -> bool:
    """Whether two encoders give the same hidden states."""
    return all(map(torch.equal, encode(ours, texts(9, 4)), encode(other, texts(9, 4))))


def test_integers_are_no_weights(pair: Load, tmp_path: Path) -> None:
    tensors = load_file(pair("bert").folder / WEIGHTS)
    name = "embeddings.LayerNorm.bias"
    message = refusal(rewrite(pair("bert"), tmp_path, tensors | {name: tensors[name].to(torch.int32)}))
    assert f"tensor {name} is stored as I32" in message


def test_two_names_of_one_parameter_are_refused(pair: Load, tmp_path: Path) -> None:
    tensors = load_file(pair("bert").folder / WEIGHTS)
    tensors["embeddings.LayerNorm.gamma"] = tensors["embeddings.LayerNorm.weight"].clone()
    message = refusal(rewrite(pair("bert"), tmp_path, tensors))
    assert "embeddings.LayerNorm.gamma" in message
    assert "embeddings.LayerNorm.weight" in message


def test_names_with_and_without_the_prefix_are_refused(pair: Load, tmp_path: Path) -> None:
    tensors = load_file(pair("bert").folder / WEIGHTS)
    for name in ("embeddings.LayerNorm.weight", "encoder.layer.1.output.dense.bias"):
        mixed = {f"bert.{other}" if other == name else other: value for other, value in tensors.items()}
        assert "the prefix bert. and some don't" in refusal(rewrite(pair("bert"), tmp_path, mixed))


def test_the_feed_forward_map_of_the_other_kind_of_t5_is_refused(pair: Load, tmp_path: Path) -> None:
    """A gated T5's first map is two tensors, a plain one's is one; neither passes for the other."""
    layer = "encoder.block.0.layer.1.DenseReluDense"
    gated = load_file(pair("t5").folder / WEIGHTS)
    gate, up = gated.pop(f"{layer}.wi_0.weight"), gated.pop(f"{layer}.wi_1.weight")
    fused = gated | {f"{layer}.wi.weight": torch.cat((gate, up))}
    assert f"unexpected tensor {layer}.wi.weight" in refusal(rewrite(pair("t5"), tmp_path, fused))
    plain = load_file(pair("t5-relu").folder / WEIGHTS)
    renamed = plain | {f"{layer}.wi_1.weight": plain.pop(f"{layer}.wi.weight")}
    assert f"unexpected tensor {layer}.wi_1.weight" in refusal(rewrite(pair("t5-relu"), tmp_path, renamed))


@pytest.mark.parametrize("number", ["9" * 5000, "1000000", "01", "\u0661"], ids=["long", "million", "01", "arabic"])
def test_numbers_no_layer_has_are_refused(pair: Load, tmp_path: Path, number: str) -> None:
    tensors = load_file(pair("bert").folder / WEIGHTS)
    name = f"encoder.layer.{number}.output.dense.bias"
    message = refusal(rewrite(pair("bert"), tmp_path, tensors | {name: torch.zeros(48)}))
    assert "unexpected tensor encoder.layer." in message


def test_t5_takes_its_words_from_any_of_their_names_and_a_head_of_its_own(pair: Load, tmp_path: Path) -> None:
    case = pair("t5")
    tensors = load_file(case.folder / WEIGHTS)
    words = tensors.pop("shared.weight")
    spare = load_model(rewrite(case, tmp_path, tensors | {"encoder.embed_tokens.weight": words.clone()}), device=CPU)
    hidden = torch.randn(3, 40)
    assert spare.spec.head.tied
    assert torch.equal(spare.logits(hidden), case.ours.logits(hidden))
    head = torch.randn(331, 40)
    everything = {"shared.weight": words, "decoder.embed_tokens.weight": words.clone(), "lm_head.weight": head}
    own = load_model(rewrite(case, tmp_path, tensors | everything, scale_decoder_outputs=False), device=CPU)
    assert relative_error(own.logits(hidden), hidden @ head.T) < 1e-6


@pytest.mark.parametrize("name", MAKERS)
def test_shards_equal_a_single_file(pair: Load, name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    sharded, single = load_model(tmp_path, device=CPU), pair(name).ours
    if single.family == "encoder":
        assert same(sharded, single)
    else:
        sources = texts(9, 4) if single.family == "seq2seq" else None
        runs = (Decoding(model, 2, sources=sources).read(texts(12, 5)) for model in (sharded, single))
        assert all(map(torch.equal, *runs))


def test_bad_shards_are_refused(tmp_path: Path) -> None:
    tiny_bert(tmp_path, max_shard_size="60KB")
    index = json.loads((tmp_path / INDEX).read_text())
    tensor, shard = next(iter(index["weight_map"].items()))

    def with_index(content: object) -> str:
        (tmp_path / INDEX).write_text(json.dumps(content))
        return refusal(tmp_path)

    for escape in ("../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b"):
        assert f"{INDEX}: weight_map names" in with_index({"weight_map": index["weight_map"] | {tensor: escape}})
    assert "weight_map must be an object" in with_index({"weight_map": [tensor]})
    assert "weight_map must be an object" in with_index({})
    assert "missing tensor ghost" in with_index({"weight_map": index["weight_map"] | {"ghost": shard}})
    unlisted = {name: place for name, place in index["weight_map"].items() if name != tensor}
    assert f"unexpected tensor {tensor}" in with_index({"weight_map": unlisted})
    (tmp_path / shard).rename(tmp_path / "elsewhere")
    assert with_index(index) == f"{tmp_path / shard}: no such file"


def damaged(content: bytes) -> dict[str, bytes]:
    header = int.from_bytes(content[:8], "little")
    name = b'"data_offsets":['
    outside = content[8 : 8 + header].replace(name, name + b"9")
    return {
        "truncated": content[:-100],
        "header-only": content[: 8 + header],
        "half-a-header": content[:200],
        "empty": b"",
        "header-too-long": (1 << 60).to_bytes(8, "little") + content[8:],
        "header-not-json": content[:8] + b"}" * header + content[8 + header :],
        "offsets-outside": len(outside).to_bytes(8, "little") + outside + content[8 + header :],
    }


@pytest.mark.parametrize("kind", damaged(bytes(400)))
def test_damaged_files_are_refused(pair: Load, tmp_path: Path, kind: str) -> None:
    content = (pair("bert").folder / WEIGHTS).read_bytes()
    rewrite(pair("bert"), tmp_path)
    (tmp_path / WEIGHTS).write_bytes(damaged(content)[kind])
    assert refusal(tmp_path).startswith(f"{tmp_path / WEIGHTS}: not a readable safetensors file: ")


def test_missing_files_are_refused(pair: Load, tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such file or folder"
    assert refusal(tmp_path) == f"{tmp_path / 'config.json'}: No such file or directory"
    folder = rewrite(pair("bert"), tmp_path)
    (folder / WEIGHTS).unlink()
    assert WEIGHTS in refusal(folder)
    (folder / "weights.txt").touch()
    assert "not a folder or a .gguf file" in refusal(folder / "weights.txt")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '"bert"', "[" * 100_000, '{"model_type": "bert"', "\x00\xff"]
)
def test_configs_that_are_no_objects_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert refusal(tmp_path).startswith(f"{tmp_path / 'config.json'}: not ")


ABSURD: list[tuple[str, str, Any]] = [
    ("bert", "hidden_size", 10**12),
    ("bert", "hidden_size", 0),
    ("bert", "hidden_size", -48),
    ("bert", "hidden_size", 48.0),
    ("bert", "hidden_size", "48"),
    ("bert", "num_hidden_layers", 10**9),
    ("bert", "num_attention_heads", 7),
    ("bert", "num_attention_heads", True),
    ("bert", "max_position_embeddings", 1 << 40),
    ("bert", "layer_norm_eps", float("nan")),
    ("bert", "layer_norm_eps", 0),
    ("bert", "layer_norm_eps", [1]),
    ("bert", "hidden_act", "swish²"),
    ("bert", "hidden_act", {}),
    ("bert", "position_embedding_type", "relative_key"),
    ("bert", "is_decoder", True),
    ("roberta", "pad_token_id", -1),
    ("roberta", "max_position_embeddings", 3),
    ("mpnet", "relative_attention_num_buckets", 31),
    ("electra", "embedding_size", 0),
    ("modernbert", "num_attention_heads", 4),
    ("modernbert", "layer_types", "full_attention"),
    ("modernbert", "layer_types", ["full_attention"]),
    ("modernbert", "layer_types", ["full_attention", "chunked_attention"]),
    ("modernbert", "rope_parameters.full_attention", 500.0),
    ("modernbert", "local_attention", 0),
    ("llama", "vocab_size", 1 << 62),
    ("llama", "num_key_value_heads", 4),
    ("llama", "head_dim", 100_000),
    ("llama", "head_dim", 15),
    ("llama", "rms_norm_eps", -1e-6),
    ("llama", "rope_parameters", 7),
    ("llama", "rope_parameters.rope_type", "longrope"),
    ("llama", "rope_parameters.rope_theta", float("inf")),
    ("llama", "rope_parameters.high_freq_factor", 0.5),
    ("llama", "rope_scaling.type", "linear"),
    ("llama", "attention_bias", 1),
    ("t5", "d_kv", 0),
    ("t5", "feed_forward_proj", "gated-tanh"),
    ("t5", "relative_attention_num_buckets", 1 << 40),
    ("t5", "relative_attention_max_distance", 4),
    ("t5", "relative_attention_max_distance", 65_537),
    ("t5", "model_type", "t6"),
    ("t5", "model_type", ["t5"]),
    ("t5", "architectures", ["T5ForCausalLM"]),
    ("t5", "architectures", "T5"),
    ("t5", "quantization_config", {"bits": 4}),
]


@pytest.mark.parametrize(("name", "key", "value"), ABSURD, ids=lambda value: str(value)[:24])
def test_absurd_values_are_refused_by_key(pair: Load, tmp_path: Path, name: str, key: str, value: object) -> None:
    outer, _, inner = key.partition(".")
    message = refusal(rewrite(pair(name), tmp_path, **{outer: {inner: value} if inner else value}))
    assert message.startswith(f"{tmp_path / 'config.json'}: {key}")
    assert "must" in message or key == "quantization_config"


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "model_type"])
def test_missing_keys_are_refused(pair: Load, tmp_path: Path, key: str) -> None:
    message = refusal(rewrite(pair("bert"), tmp_path, **{key: None}))
    assert message.startswith(f"{tmp_path / 'config.json'}: {key} is ")


def test_a_config_that_promises_more_than_the_file_holds_allocates_nothing(pair: Load, tmp_path: Path) -> None:
    message = refusal(rewrite(pair("llama"), tmp_path, vocab_size=4_000_000, hidden_size=98_304))
    assert "has shape" in message


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_are_converted_from_any_storage(pair: Load, tmp_path: Path, storage: torch.dtype) -> None:
    tensors = {name: value.to(storage) for name, value in load_file(pair("bert").folder / WEIGHTS).items()}
    model = load_model(rewrite(pair("bert"), tmp_path, tensors), device=CPU)
    assert model.dtype == torch.float32
    words = model.transformer.vocabulary.weight
    assert torch.equal(words, tensors["embeddings.word_embeddings.weight"].float())
    for ours, expected in zip(encode(model, texts(9, 4)), encode(pair("bert").ours, texts(9, 4)), strict=True):
        assert relative_error(ours, expected) < (1e-6 if storage == torch.float64 else 0.05)


@pytest.mark.parametrize(
    ("name", "dtype"), [("bert", "bfloat16"), ("bert", "float16"), ("llama", "bfloat16"), ("t5", "bfloat16")]
)
def test_models_compute_in_the_dtype_asked_for(pair: Load, name: str, dtype: str) -> None:
    case = pair(name)
    model = load_model(case.folder, device=CPU, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert {tensor.dtype for tensor in model.transformer.parameters()} == {model.dtype}
    if model.family == "encoder":
        pairs = zip(encode(model, texts(9, 30)), encode(case.ours, texts(9, 30)), strict=True)
    else:
        sources = texts(9, 4) if model.family == "seq2seq" else None
        runs = (Decoding(m, 2, sources=sources).read(texts(12, 5)) for m in (model, case.ours))
        pairs = zip(*runs, strict=True)
    for ours, expected in pairs:
        assert ours.dtype == model.dtype
        assert relative_error(ours.float(), expected) < 0.15


def test_dtypes_that_do_not_work_are_refused(pair: Load) -> None:
    assert "float16 overflows in t5" in refusal(pair("t5").folder, dtype="float16")
    assert "dtype is 'int8'" in refusal(pair("bert").folder, dtype="int8")


def test_lengths(pair: Load) -> None:
    assert pair("bert").ours.max_length == 96
    assert pair("t5").ours.max_length == 512
    assert load_model(pair("bert").folder, device=CPU, max_length=50).max_length == 50
    assert load_model(pair("t5").folder, device=CPU, max_length=2000).max_length == 2000
    assert "max_length is 97" in refusal(pair("bert").folder, max_length=97)
    assert "checkpoint's 256" in refusal(pair("llama").folder, max_length=257)
    assert "max_length is 0" in refusal(pair("t5").folder, max_length=0)


def test_progress_counts_the_bytes_of_the_file(pair: Load) -> None:
    seen: list[tuple[int, int]] = []
    load_model(pair("llama").folder, device=CPU, progress=lambda done, total: seen.append((done, total)))
    tensors = load_file(pair("llama").folder / WEIGHTS)
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert len(seen) == len(tensors)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {total}
    assert seen[-1] == (total, total)


def test_what_a_model_says_of_itself(pair: Load) -> None:
    model = pair("t5").ours
    reference = pair("t5").reference
    assert (model.architecture, model.family, model.vocab_size, model.hidden_size) == ("t5", "seq2seq", 331, 40)
    assert model.parameters == reference.num_parameters()
    biases, head = 2 * 3 * 41, 331 * 40  # each stack's bias by distance, and the packed copy of the tied head
    assert model.weight_bytes == 4 * (model.parameters + biases + head)
    cache = model.new_cache(6, 8)
    assert cache.k.shape == cache.v.shape == (2, 6, 8, 3, 16)
    assert 6 * model.cache_bytes_per_page(8) == cache.k.nbytes + cache.v.nbytes
    with pytest.raises(TypeError, match="no head"):
        pair("bert").ours.logits(torch.zeros(1, 48))
    with pytest.raises(TypeError, match="no decoder"):
        pair("bert").ours.new_cache(1, 1)
    with pytest.raises(TypeError, match="nothing to encode with"):
        encode(pair("llama").ours, texts(3))
