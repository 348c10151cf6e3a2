"""Files as they lie on the hub: older names, buffers, copies of tied tensors, heads that a class has no use for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from support.checkpoints import save
from support.forward import Pair, encode, head_logits, relative_error, texts
from support.loading import CPU, WEIGHTS, Tensors, refusal, rewrite
from tercet.server.models import Model, load_model

Load = Callable[..., Pair]


def same(ours: Model, other: Model) -> bool:
    """Whether two encoders give the same hidden states and logits."""
    pairs = zip(encode(ours, texts(9, 4)), encode(other, texts(9, 4)), strict=True)
    return all(
        torch.equal(one, two)
        and (ours.spec.head is None or torch.equal(head_logits(ours, one), head_logits(other, two)))
        for one, two in pairs
    )


def tensorflow(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@dataclass(frozen=True)
class Layout:
    """What a file has otherwise than transformers saves it now."""

    row: str
    head: str
    copies: dict[str, str] = field(default_factory=dict[str, str])
    """Other names for tensors of the file."""
    unused: tuple[str, ...] = ()
    """Tensors that the class reads nothing from."""
    rename: Callable[[str], str] = str

    def of(self, tensors: Tensors) -> Tensors:
        """The tensors of such a file."""
        copied = {name: tensors[source].clone() for name, source in self.copies.items()}
        found = {self.rename(name): value for name, value in tensors.items()} | copied
        return found | {name: torch.ones(3, 7) for name in self.unused}


def dense(name: str) -> tuple[str, str]:
    return f"{name}.weight", f"{name}.bias"


LM_HEAD = {"lm_head.decoder.bias": "lm_head.bias"}
LAYOUTS = {
    "all-minilm": Layout("bert", "BertModel", unused=("embeddings.position_ids",)),
    "bert-base-uncased": Layout(
        "bert",
        "BertForMaskedLM",
        {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        ("bert.embeddings.position_ids", *dense("bert.pooler.dense"), *dense("cls.seq_relationship")),
        tensorflow,
    ),
    "bert-without-its-head": Layout(
        "bert",
        "BertModel",
        unused=("cls.predictions.bias", *dense("cls.predictions.transform.dense"), *dense("cls.seq_relationship")),
        rename=lambda name: f"bert.{name}",
    ),
    "roberta-base": Layout(
        "roberta",
        "RobertaForMaskedLM",
        {"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight", **LM_HEAD},
        ("roberta.embeddings.position_ids", *dense("roberta.pooler.dense")),
    ),
    "roberta-without-its-head": Layout(
        "roberta",
        "RobertaModel",
        unused=("lm_head.bias", *dense("lm_head.dense"), *dense("lm_head.layer_norm")),
        rename=lambda name: f"roberta.{name}",
    ),
    "bge-reranker": Layout(
        "xlm-roberta", "XLMRobertaForSequenceClassification", unused=("roberta.embeddings.position_ids",)
    ),
    "bert-base-ner": Layout(
        "bert", "BertForTokenClassification", unused=("bert.embeddings.position_ids", *dense("bert.pooler.dense"))
    ),
    "roberta-base-squad2": Layout(
        "roberta",
        "RobertaForQuestionAnswering",
        unused=("roberta.embeddings.position_ids", *dense("roberta.pooler.dense")),
    ),
    "camembert-ner": Layout(
        "camembert", "CamembertForTokenClassification", unused=("roberta.embeddings.position_ids",)
    ),
    "all-mpnet": Layout("mpnet", "MPNetModel", unused=("embeddings.position_ids",)),
    "mpnet-base": Layout(
        "mpnet",
        "MPNetForMaskedLM",
        {"lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight", **LM_HEAD},
        ("mpnet.embeddings.position_ids", *dense("mpnet.pooler.dense")),
    ),
    "distilbert-base": Layout(
        "distilbert",
        "DistilBertForMaskedLM",
        {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        ("distilbert.embeddings.position_ids",),
    ),
    "electra-generator": Layout(
        "electra",
        "ElectraForMaskedLM",
        {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        ("electra.embeddings.position_ids",),
    ),
    "electra-discriminator": Layout("electra", "ElectraForPreTraining", unused=("electra.embeddings.position_ids",)),
    "modernbert": Layout(
        "modernbert", "ModernBertForMaskedLM", {"decoder.weight": "model.embeddings.tok_embeddings.weight"}
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_the_hub(pair: Load, name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    case = pair(layout.row, layout.head)
    tensors = layout.of(load_file(case.folder / WEIGHTS))
    assert same(load_model(rewrite(case, tmp_path, tensors), device=CPU), case.ours)
    dropped = next(name for name in tensors if name.endswith(("output.dense.weight", "lin2.weight", "Wo.weight")))
    del tensors[dropped]
    assert refusal(rewrite(case, tmp_path, tensors)) == f"{tmp_path / WEIGHTS}: missing tensor {dropped}"


def test_a_config_without_classes_is_of_the_base_model(pair: Load, tmp_path: Path) -> None:
    case = pair("bert")
    assert same(load_model(rewrite(case, tmp_path, architectures=None), device=CPU), case.ours)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("name", "bias"),
    [
        ("BertForMaskedLM", "cls.predictions.decoder.bias"),
        ("RobertaForMaskedLM", "lm_head.decoder.bias"),
        ("MPNetForMaskedLM", "lm_head.decoder.bias"),
    ],
)
def test_of_two_biases_the_maps_own_counts(tmp_path: Path, name: str, bias: str, tied: bool) -> None:
    """Files with a map that isn't tied have both; transformers, too, reads the other where there is just that."""
    head = getattr(transformers, name)
    folder = save(tmp_path, head.config_class.model_type, name, tie_word_embeddings=tied)
    tensors = load_file(folder / WEIGHTS)
    assert (bias in tensors) == (not tied)
    tensors[bias] = torch.randn(331, generator=torch.Generator().manual_seed(3))
    save_file(tensors, folder / WEIGHTS)
    case = Pair(folder, load_model(folder, device=CPU), head.from_pretrained(folder).eval())
    (ids,) = texts(9)
    (hidden,) = encode(case.ours, [ids])
    assert relative_error(head_logits(case.ours, hidden), case.expected(ids).logits) <= 1e-4


@pytest.mark.parametrize(
    ("name", "head", "prefix", "missing"),
    [
        ("mpnet", "MPNetForMaskedLM", "mpnet.", "lm_head.dense.weight"),
        ("qwen3", "Qwen3ForCausalLM", "model.", "lm_head.weight"),
        ("bart", "BartForConditionalGeneration", "model.", "final_logits_bias"),
    ],
)
def test_an_embedders_config_may_name_the_class_that_it_was_made_from(
    pair: Load, tmp_path: Path, name: str, head: str, prefix: str, missing: str
) -> None:
    """As all-mpnet-base-v2's and Qwen3-Embedding-8B's; with the prefix of that class its head is missing."""
    case = pair(name, head.partition("For")[0] + "Model")
    ours = load_model(rewrite(case, tmp_path, architectures=[head]), device=CPU)
    assert ours.spec == case.ours.spec
    assert ours.spec.head is None
    tensors = {f"{prefix}{name}": value for name, value in load_file(case.folder / WEIGHTS).items()}
    message = refusal(rewrite(case, tmp_path, tensors, architectures=[head]))
    assert message == f"{tmp_path / WEIGHTS}: missing tensor {missing}"


def test_how_modernbert_said_its_pattern_before_transformers_5(pair: Load, tmp_path: Path) -> None:
    case = pair("modernbert", "ModernBertForTokenClassification")
    old = {"global_attn_every_n_layers": 3, "global_rope_theta": 500.0, "local_rope_theta": 20.0}
    folder = rewrite(case, tmp_path, layer_types=None, rope_parameters=None, **old)
    assert same(load_model(folder, device=CPU), case.ours)


def test_modernberts_rotary_positions_are_never_scaled(pair: Load, tmp_path: Path) -> None:
    message = refusal(rewrite(pair("modernbert"), tmp_path, rope_scaling={"type": "linear", "factor": 2.0}))
    assert message.endswith('rope_scaling.type is "linear", it must be "default"')


@pytest.mark.parametrize("labels", [1, 7])
def test_labels_are_counted(pair: Load, tmp_path: Path, labels: int) -> None:
    """A cross-encoder has one."""
    case = pair("bert", "BertForSequenceClassification")
    tensors = load_file(case.folder / WEIGHTS)
    tensors |= {"classifier.weight": torch.randn(labels, 48), "classifier.bias": torch.randn(labels)}
    names = {str(label): f"LABEL_{label}" for label in range(labels)}
    model = load_model(rewrite(case, tmp_path, tensors, id2label=names), device=CPU)
    (hidden,) = encode(model, texts(9))
    bert = case.reference.bert
    pooled = bert.pooler(hidden[None])
    expected = pooled @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    assert head_logits(model, hidden).shape == (1, labels)
    torch.testing.assert_close(head_logits(model, hidden), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["distilbert", "mpnet", "modernbert"])
def test_token_types_are_nothing_to_models_without_them(pair: Load, name: str) -> None:
    model = pair(name).ours
    for typed, plain in zip(encode(model, texts(9, 4), [[1] * 9, [0] * 4]), encode(model, texts(9, 4)), strict=True):
        assert torch.equal(typed, plain)
