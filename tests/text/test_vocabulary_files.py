"""Tokenizers of folders without tokenizer.json, of every kind, against transformers'."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase

from support import packaged
from support.pieces import CORPUS, train_pieces
from support.texts import texts
from tercet.server.text import load_text_model
from tercet.server.text.language_codes import NLLB

SPELLED = (
    "<extra_id_7>",
    "<mask_1>",
    "<unk_5>",
    "en_XX",
    "de_DE",
    "eng_Latn",
    "__en__",
    "<S>",
    " <mask> x",
    "<MASK>",
    "▁",
)
HOSTILE = (
    "",
    " ",
    "\t\n",
    "word " * 2000,
    "é" * 500,
    *(before + token + after for token in SPELLED for before, after in (("", ""), ("a", "b"), (" ", " "))),
)
TEXTS = [*texts(300, seed=3), *HOSTILE]


def train_words(folder: Path, tokenizer: Tokenizer, **how: Any) -> None:
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, **how)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.save(str(folder))


def byte_level(folder: Path, *special: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    train_words(folder, tokenizer, special_tokens=list(special), initial_alphabet=alphabet)


def gpt(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    train_words(folder, tokenizer, special_tokens=["<unk>"], end_of_word_suffix="</w>")


def mpnet(folder: Path) -> None:
    words = (packaged.minilm() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (folder / "vocab.txt").write_text("\n".join(["<s>", "<pad>", "</s>", "<unk>", *words, "<mask>"]), encoding="utf-8")


def pieces(name: str, **how: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        train_pieces(folder / name, **how)

    return make


T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
KINDS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "roberta": (lambda folder: byte_level(folder, *FAIRSEQ), "roberta", "RobertaTokenizer"),
    "bart": (lambda folder: byte_level(folder, *FAIRSEQ), "bart", "BartTokenizer"),
    "opt": (lambda folder: byte_level(folder, *FAIRSEQ), "opt", "GPT2Tokenizer"),
    "gpt_neox": (lambda folder: byte_level(folder, "<|endoftext|>", "<|padding|>"), "gpt_neox", "GPTNeoXTokenizer"),
    "qwen2": (lambda folder: byte_level(folder, "<|endoftext|>"), "qwen2", "Qwen2Tokenizer"),
    "openai-gpt": (gpt, "openai-gpt", "OpenAIGPTTokenizer"),
    "mpnet": (mpnet, "mpnet", "MPNetTokenizer"),
    "t5": (pieces("spiece.model", **T5), "t5", "T5Tokenizer"),
    "mt5": (pieces("spiece.model", **T5, user_defined_symbols=["<tool>", "fox"]), "mt5", "T5Tokenizer"),
    "umt5": (pieces("spiece.model", **T5, normalization_rule_name="identity"), "umt5", "T5Tokenizer"),
    "pegasus": (pieces("spiece.model", **T5), "pegasus", "PegasusTokenizer"),
    "xlm-roberta": (pieces("sentencepiece.bpe.model"), "xlm-roberta", "XLMRobertaTokenizer"),
    "camembert": (pieces("sentencepiece.bpe.model"), "camembert", "CamembertTokenizer"),
    "mbart": (pieces("sentencepiece.bpe.model"), "mbart", "MBartTokenizer"),
    "mbart50": (pieces("sentencepiece.bpe.model"), "mbart", "MBart50Tokenizer"),
    "nllb": (pieces("sentencepiece.bpe.model", model_type="bpe"), "m2m_100", "NllbTokenizer"),
    "llama": (
        pieces("tokenizer.model", model_type="bpe", byte_fallback=True, vocab_size=700),
        "llama",
        "LlamaTokenizer",
    ),
}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "roberta": [
        {},
        {"add_prefix_space": True, "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True}},
        {"trim_offsets": False},
    ],
    "opt": [
        {"add_bos_token": True, "bos_token": "</s>", "unk_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    ],
    "gpt_neox": [{}, {"add_bos_token": True, "add_eos_token": True}],
    "mpnet": [{}, {"do_lower_case": False}],
    "t5": [{}, {"extra_ids": 7}],
    "pegasus": [{}, {"mask_token": "<mask_2>", "mask_token_sent": "<mask_1>"}],
    "mbart": [{}, {"src_lang": "de_DE", "tgt_lang": "en_XX"}],
    "mbart50": [{}, {"src_lang": "de_DE"}],
    "nllb": [{}, {"src_lang": "fra_Latn"}, {"legacy_behaviour": True}],
    "llama": [{}, {"add_bos_token": True, "add_eos_token": True}],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The vocabulary files of a kind, made once."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("vocabulary")
            KINDS[kind][0](made[kind])
        return made[kind]

    return get


def folder_of(kind: str, trained: Callable[[str], Path], to: Path, config: dict[str, Any]) -> Path:
    _, model_type, cls = KINDS[kind]
    for file in trained(kind).iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    (to / "config.json").write_text(json.dumps({"model_type": model_type}))
    (to / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls, **config}))
    return to


def reference_of(kind: str, folder: Path) -> PreTrainedTokenizerBase:
    """transformers' own. Read from a SentencePiece model its NLLB forgets the languages unless told them."""
    told = {"extra_special_tokens": list(NLLB)} if kind == "nllb" else {}
    return getattr(transformers, KINDS[kind][2]).from_pretrained(folder, **told)


@pytest.mark.parametrize(
    ("kind", "config"), [(kind, config) for kind in KINDS for config in CONFIGS.get(kind, [{}])], ids=str
)
def test_kinds(kind: str, config: dict[str, Any], trained: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folder_of(kind, trained, tmp_path, config)
    ours, reference = load_text_model(folder).tokenizer, reference_of(kind, folder)
    assert ours.vocab_size == len(reference)
    assert kind == "nllb" or ours.backend.get_vocab() == reference.get_vocab()

    def same(ids: list[int]) -> list[str | None]:
        return [ours.backend.id_to_token(i) for i in ids]

    expected = reference(TEXTS, return_offsets_mapping=True)
    for index, (text, encoded) in enumerate(zip(TEXTS, ours.encode_batch(TEXTS, spans=True), strict=True)):
        ids = expected["input_ids"][index]
        assert same(encoded.ids) == reference.convert_ids_to_tokens(ids), repr(text)
        assert list(zip(encoded.starts, encoded.ends, strict=True)) == expected["offset_mapping"][index], repr(text)
        for skip in (True, False):
            decoded = reference.decode(ids, skip_special_tokens=skip)
            assert ours.decode(encoded.ids, skip) == decoded, repr(text)
    pairs = [*zip(TEXTS[::2], TEXTS[1::2], strict=False)]
    expected = reference(pairs, return_token_type_ids=True)
    for index, encoded in enumerate(ours.encode_pairs(pairs)):
        assert same(encoded.ids) == reference.convert_ids_to_tokens(expected["input_ids"][index])
        assert encoded.type_ids == expected["token_type_ids"][index]
    special = {token.content for token in reference.added_tokens_decoder.values() if token.special}
    assert {ours.backend.id_to_token(i) for i in ours.special_ids} == special


def test_ids_of_languages_follow_the_vocabulary(trained: Callable[[str], Path], tmp_path: Path) -> None:
    """As in the published checkpoints: pieces, languages, mask."""
    tokenizer = load_text_model(folder_of("nllb", trained, tmp_path, {})).tokenizer
    size = sentencepiece.SentencePieceProcessor(str(tmp_path / "sentencepiece.bpe.model")).vocab_size() + 1
    for index, token in enumerate([*NLLB, "<mask>"]):
        assert tokenizer.encode(token, add_special_tokens=False).ids == [size + index]
