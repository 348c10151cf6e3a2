"""LoRA adapters: a checkpoint and an adapter compute what transformers computes with the weights merged by hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from support.forward import Pair, encoder_batch, head_logits, relative_error, texts
from tercet.server.models import CheckpointError, Model, Source, load_model

CPU = torch.device("cpu")
CONFIG = {"peft_type": "LORA", "r": 5, "lora_alpha": 11, "bias": "none", "use_rslora": False, "use_dora": False}
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

Load = Callable[..., Pair]


def train(
    model: PreTrainedModel, targets: tuple[str, ...], *, ranks: Mapping[str, int] | None = None, scale: float = 11 / 5
) -> dict[str, Tensor]:
    """An adapter's tensors for all modules of these names, after it has been merged into `model`."""
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] not in targets:
            continue
        weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
        rank = (ranks or {}).get(name, 5)
        a = torch.randn(rank, weight.shape[1], generator=generator) / math.sqrt(weight.shape[1])
        b = torch.randn(weight.shape[0], rank, generator=generator) / math.sqrt(rank)
        weight += scale * b @ a  # of a Conv1D a view
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    return tensors


def save(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """The folder of an adapter."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, folder / WEIGHTS)
    return folder


def check(ours: Model, merged: PreTrainedModel) -> None:
    """The logits of both are the same."""
    pair = Pair(Path(), ours, merged)
    (ids,), (source,) = texts(23), texts(17, seed=1)
    if ours.family == "encoder":
        hidden = ours.encode(encoder_batch([ids]))
    else:
        batch = encoder_batch([source])
        sourced = Source(ours.encode(batch), batch.rows) if ours.family == "seq2seq" else None
        hidden = ours.read(encoder_batch([ids]), sourced)
    expected = pair.expected(ids, source=source if ours.family == "seq2seq" else None)
    assert relative_error(hidden, expected.states[-1]) <= 1e-4
    assert expected.logits is not None
    assert relative_error(head_logits(ours, hidden), expected.logits) <= 1e-4


@pytest.mark.parametrize(
    ("row", "targets"),
    [
        ("bert", ("query", "value", "dense")),
        ("llama", ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "lm_head")),
        ("gpt2", ("c_attn", "c_proj", "c_fc")),  # stored transposed, and one of them is square
        ("gpt_neox", ("query_key_value", "dense")),  # the heads of a row lie apart
        ("t5", ("q", "v", "wo", "wi_1")),
    ],
)
def test_every_part_of_a_model_can_be_adapted(pair: Load, tmp_path: Path, row: str, targets: tuple[str, ...]) -> None:
    head = {"bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM"}.get(row)
    case = pair(row, head)
    merged = deepcopy(case.reference)
    adapter = save(tmp_path, train(merged, targets))
    check(load_model(case.folder, device=CPU, adapter=adapter), merged)
    assert relative_error(next(merged.parameters()), next(case.reference.parameters())) == 0  # the words are no target


def test_ranks_and_alphas_by_pattern_and_the_stabilized_scale(pair: Load, tmp_path: Path) -> None:
    case = pair("llama")
    merged = deepcopy(case.reference)
    tensors = train(merged, ("q_proj",), scale=11 / math.sqrt(5))
    up = {f"model.layers.{i}.mlp.up_proj": 2 + (i == 1) for i in range(3)}
    scales = {name: 7 / math.sqrt(rank) for name, rank in up.items()}
    for name, rank in up.items():
        module = merged.get_submodule(name)
        a, b = torch.randn(rank, 48), torch.randn(72, rank)
        module.weight += scales[name] * b @ a
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    patterns = {"rank_pattern": {"1.mlp.up_proj": 3, "up_proj": 2}, "alpha_pattern": {r"layers\.\d\.mlp\.up_proj": 7}}
    adapter = save(tmp_path, tensors, use_rslora=True, **patterns)
    check(load_model(case.folder, device=CPU, adapter=adapter), merged)


@pytest.mark.parametrize("layout", ["modules_to_save.", ""], ids=["old", "new"])
@pytest.mark.parametrize("base", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_a_head_is_the_adapters_whatever_the_base_model_has(pair: Load, tmp_path: Path, base: str, layout: str) -> None:
    """BertModel's names lack the prefix that those of the adapter have; no file says how many labels there are."""
    case = pair("bert", base)
    config = transformers.BertConfig.from_pretrained(case.folder, num_labels=3)
    merged = transformers.BertForSequenceClassification(config).eval()
    bare = {name.removeprefix("bert."): value for name, value in case.reference.state_dict().items()}
    merged.bert.load_state_dict(bare, strict=False)
    merged.classifier.weight.normal_()
    merged.classifier.bias.normal_()
    tensors = train(merged, ("query", "value"))
    saved = ["classifier"]
    if base == "BertForMaskedLM":  # which has no pooler
        merged.bert.pooler.dense.weight.normal_()
        saved.append("bert.pooler.dense")
    for module in saved:
        for kind, value in merged.get_submodule(module).named_parameters():
            tensors[f"base_model.model.{module}.{layout}{kind}"] = value.clone()
    adapter = save(tmp_path, tensors, task_type="SEQ_CLS", modules_to_save=saved)
    ours = load_model(case.folder, device=CPU, adapter=adapter)
    assert ours.spec.head is not None
    assert (ours.spec.head.task, ours.spec.head.outputs) == ("classify", 3)
    check(ours, merged)


def test_an_adapter_without_the_head_that_it_was_trained_with_is_refused(pair: Load, tmp_path: Path) -> None:
    case = pair("bert", "BertModel")
    merged = transformers.BertForSequenceClassification(transformers.BertConfig.from_pretrained(case.folder))
    adapter = save(tmp_path, train(merged, ("query",)), task_type="TOKEN_CLS")
    with pytest.raises(CheckpointError, match=r"missing tensor classifier\.weight"):
        load_model(case.folder, device=CPU, adapter=adapter)


def test_a_generating_model_becomes_a_classifier(pair: Load, tmp_path: Path) -> None:
    """The head of the base model's file is left where it is."""
    case = pair("llama")
    config = transformers.LlamaConfig.from_pretrained(case.folder, num_labels=4)
    merged = transformers.LlamaForSequenceClassification(config).eval()
    merged.model.load_state_dict(case.reference.model.state_dict())
    merged.score.weight.normal_()
    tensors = train(merged, ("q_proj", "v_proj")) | {"base_model.model.score.weight": merged.score.weight.clone()}
    adapter = save(tmp_path, tensors, task_type="SEQ_CLS", modules_to_save=["score"])
    check(load_model(case.folder, device=CPU, adapter=adapter), merged)


def test_products_are_added_before_the_weights_are_rounded(pair: Load, tmp_path: Path) -> None:
    case = pair("llama")
    merged = deepcopy(case.reference)
    adapter = save(tmp_path, {name: value.bfloat16() for name, value in train(merged, ("o_proj",)).items()})
    ours = load_model(case.folder, device=CPU, adapter=adapter, dtype="bfloat16")
    tensors = load_file(adapter / WEIGHTS)
    name = "base_model.model.model.layers.1.self_attn.o_proj"
    weight = case.reference.get_parameter("model.layers.1.self_attn.o_proj.weight")
    a, b = (tensors[f"{name}.lora_{side}.weight"].float() for side in ("A", "B"))
    rounded = (weight + 11 / 5 * b @ a).bfloat16()
    bias = case.reference.get_parameter("model.layers.1.self_attn.o_proj.bias").bfloat16()
    expected = (rounded.float().T + bias.float()).bfloat16()
    product = ours.transformer.get_submodule("decoder.layers.1.attention.body.output")
    assert torch.equal(product(torch.eye(weight.shape[1], dtype=torch.bfloat16)), expected)


def test_an_adapter_in_torchs_format_needs_permission(pair: Load, tmp_path: Path) -> None:
    case = pair("llama")
    merged = deepcopy(case.reference)
    adapter = save(tmp_path, tensors := train(merged, ("q_proj",)))
    (adapter / WEIGHTS).unlink()
    torch.save(tensors, adapter / PICKLED)
    check(load_model(case.folder, device=CPU, adapter=adapter, allow_pickle=True), merged)
    assert refusal(case, adapter) == f"{adapter / PICKLED}: weights in a pickle are read with --allow-pickle alone"


def refusal(pair: Pair, adapter: Path) -> str:
    """The error of loading, which must be one line."""
    with pytest.raises(CheckpointError) as caught:
        load_model(pair.folder, device=CPU, adapter=adapter)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, 'peft_type is "IA3", it must be "LORA"'),
        ({"use_dora": True}, "use_dora is true, it must be unset: this variant of LoRA is not supported"),
        ({"bias": "all"}, 'bias is "all", it must be "none"'),
        ({"lora_bias": True}, "lora_bias is true"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is [[0, 2], [1, 3]]"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa"'),
        ({"r": 0}, "r is 0, it must be an integer from 1"),
        ({"r": None}, "r is missing"),
        ({"lora_alpha": math.nan}, "lora_alpha is NaN"),
        ({"rank_pattern": {"q_proj": "2"}}, 'rank_pattern is {"q_proj": "2"}, it must be an object of module names'),
        ({"rank_pattern": {"(": 2}}, 'rank_pattern is {"(": 2}'),
        ({"task_type": "SEQ_REC"}, 'task_type is "SEQ_REC"'),
        ({"task_type": "TOKEN_CLS"}, 'task_type is "TOKEN_CLS", opt has no head for that'),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(
    pair: Load, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    case = pair("opt", "OPTForCausalLM")
    adapter = save(tmp_path, train(deepcopy(case.reference), ("q_proj",)), **config)
    assert refusal(case, adapter).startswith(f"{adapter / 'adapter_config.json'}: {message}")


def test_tensors_without_a_use_are_refused_by_name(pair: Load, tmp_path: Path) -> None:
    case = pair("llama")
    tensors = train(deepcopy(case.reference), ("q_proj",))
    module = "base_model.model.model.layers.1.self_attn.q_proj"
    stray = torch.zeros(5, 48)

    def with_tensors(changes: dict[str, Tensor | None]) -> str:
        changed = {name: value for name, value in (tensors | changes).items() if value is not None}
        message = refusal(case, save(tmp_path, changed))
        assert message.startswith(f"{tmp_path / WEIGHTS}: ")
        return message.removeprefix(f"{tmp_path / WEIGHTS}: ")

    for name in (
        "noise",
        f"{module}.lora_magnitude_vector",
        f"{module}.lora_A.bias",
        f"{module}.lora_A.default.weight.more",
    ):
        assert with_tensors({name: stray}) == f"unexpected tensor {name}"
    assert with_tensors({f"{module}.lora_A.weight": None}) == f"missing tensor {module}.lora_A.weight"
    elsewhere = "base_model.model.model.layers.7.self_attn.q_proj.lora_{}.weight"
    both = {elsewhere.format("A"): stray, elsewhere.format("B"): torch.zeros(96, 5)}
    assert with_tensors(both).startswith(f"unexpected tensor {elsewhere.format('A')}: the base model has no tensor ")
    assert with_tensors({"base_model.model.score.bias": stray}) == "unexpected tensor base_model.model.score.bias"
    wrong = with_tensors({f"{module}.lora_A.weight": torch.zeros(4, 48)})
    assert wrong == f"tensor {module}.lora_A.weight has shape [4, 48], adapter_config.json makes its rank 5"
    wrong = with_tensors({f"{module}.lora_A.weight": torch.zeros(5, 47)})
    assert wrong.startswith(
        f"tensors {module}.lora_A.weight and {module}.lora_B.weight are of a weight of shape [96, 47]"
    )
    integers = {f"{module}.lora_A.weight": torch.zeros(5, 48, dtype=torch.int32)}
    assert with_tensors(integers) == f"unexpected tensor {module}.lora_A.weight"


def test_folders_that_are_no_adapters_are_refused(pair: Load, tmp_path: Path) -> None:
    case = pair("llama")
    assert refusal(case, tmp_path) == f"{tmp_path / 'adapter_config.json'}: No such file or directory"
    adapter = save(tmp_path, train(deepcopy(case.reference), ("q_proj",)))
    (adapter / WEIGHTS).unlink()
    assert f"none of {WEIGHTS}, " in refusal(case, adapter)
    shutil.copy(case.folder / "config.json", tmp_path / "adapter_config.json")
    assert "peft_type is missing" in refusal(case, adapter)
