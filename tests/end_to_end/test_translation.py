"""Translation, text to text, over gRPC against transformers' tokenizers and beam search on the same checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, M2M100Tokenizer, MarianTokenizer

from support.checkpoints import CORPUS, save_for_texts, tiny
from support.pieces import ids, train_pieces, write
from support.server import running_server
from tercet.client import Client, InvalidArgument
from tercet.server.text.language_codes import M2M100

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

TEXTS = [
    *(" ".join(text.split()[:words]) for text, words in zip(CORPUS, (3, 5, 8, 12), strict=True)),
    "Zürich, naïve café!",
    "12 coins; 'the' river",
]
SENTENCES = [text for text in (*CORPUS, *(" ".join(text.split()[::-1]) for text in CORPUS)) for _ in range(8)]
BEAMS = {"num_beams": 4, "max_length": 17, "length_penalty": 0.7, "early_stopping": True}
pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")


def decides(folder: Path, **generation: Any) -> Path:
    """A checkpoint that says how it generates."""
    return write(folder, generation_config={"do_sample": False, **BEAMS, **generation})


def marian(folder: Path) -> Path:
    """As Helsinki-NLP's of several targets: two SentencePiece models, and one vocabulary in an order of its own."""
    folder.mkdir()
    source = train_pieces(folder / "source.spm", SENTENCES, vocab_size=150)
    target = train_pieces(folder / "target.spm", [text[::-1] for text in SENTENCES], vocab_size=150)
    tokens = ids("</s>", "<unk>", *target[::-1], *source, ">>fra<<", ">>deu<<", "<pad>")
    pad = tokens["<pad>"]
    special = {"pad_token_id": pad, "eos_token_id": 0, "decoder_start_token_id": pad}
    save_for_texts(folder, "marian", vocab_size=len(tokens), max_position_embeddings=64, **special)
    write(folder, vocab=tokens, tokenizer_config={"source_lang": "en", "target_lang": "mul"})
    return decides(folder, bad_words_ids=[[pad]], forced_eos_token_id=0, **special)


def m2m100(folder: Path) -> Path:
    folder.mkdir()
    pieces = train_pieces(folder / "sentencepiece.bpe.model", SENTENCES, vocab_size=200)
    tokens = ids("<s>", "<pad>", "</s>", "<unk>", *pieces[3:])
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    size = len(tokens) + len(M2M100["m2m100"]) + 8  # that many more rows than tokens have the published checkpoints
    save_for_texts(folder, "m2m_100", vocab_size=size, max_position_embeddings=64, **special)
    listed = [f"__{code}__" for code in M2M100["m2m100"]]
    own = {"tokenizer_class": "M2M100Tokenizer", "additional_special_tokens": listed}
    write(folder, vocab=tokens, tokenizer_config=own)
    return decides(folder, **special)


def t5(folder: Path) -> Path:
    """With a task that has a prefix and generates in a way of its own."""
    task = {"prefix": "encoders read: ", "num_beams": 3, "max_length": 11, "no_repeat_ngram_size": 2}
    tiny(folder, "t5", task_specific_params={"translation_en_to_de": task})
    save_for_texts(folder, "t5", task_specific_params={"translation_en_to_de": task})
    return decides(folder, num_beams=2, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("translation")
    return {make.__name__: make(folder / make.__name__) for make in (marian, m2m100, t5)}


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[Client]:
    with running_server(folders, "--dtype", "float32") as server, Client(server.address) as connected:
        yield connected


def translations(folder: Path, tokenizer: PreTrainedTokenizerBase, texts: list[str], **options: Any) -> list[list[int]]:
    """What transformers generates for each text, as the checkpoint wants it: without what the decoder starts from."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    read = (tokenizer(text, return_tensors="pt") for text in texts)
    with torch.inference_mode():
        return [model.generate(**one, **options)[0, 1:].tolist() for one in read]


def assert_translates(
    client: Client, name: str, tokenizer: PreTrainedTokenizerBase, expected: list[list[int]], texts: list[str],
    **told: str,
) -> None:  # fmt: skip
    for text, tokens in zip(texts, expected, strict=True):
        answer = client.generate(text, model=name, **told)
        assert list(answer.token_ids) == tokens, text
        assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True), text
        assert len({tuple(tokens) for tokens in expected}) == len(texts)
    assert max(len(set(tokens)) for tokens in expected) >= 8


def test_marian(client: Client, folders: dict[str, Path]) -> None:
    tokenizer = MarianTokenizer.from_pretrained(folders["marian"])
    told = [f">>deu<< {text}" for text in TEXTS]
    expected = translations(folders["marian"], tokenizer, told)
    assert_translates(client, "marian", tokenizer, expected, TEXTS, target_lang="deu")
    assert_translates(client, "marian", tokenizer, expected, told)


@pytest.mark.parametrize(("source", "target"), [("de", "zu"), ("en", "de")])
def test_m2m100(client: Client, folders: dict[str, Path], source: str, target: str) -> None:
    tokenizer = M2M100Tokenizer.from_pretrained(folders["m2m100"], src_lang=source)
    first = tokenizer.get_lang_id(target)
    expected = translations(folders["m2m100"], tokenizer, TEXTS, forced_bos_token_id=first)
    assert {tokens[0] for tokens in expected} == {first}
    assert_translates(client, "m2m100", tokenizer, expected, TEXTS, source_lang=source, target_lang=target)


def test_task(client: Client, folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["t5"])
    prefixed = [f"encoders read: {text}" for text in TEXTS]
    own = {"num_beams": 3, "max_length": 11, "no_repeat_ngram_size": 2}
    expected = translations(folders["t5"], tokenizer, prefixed, **own)
    assert_translates(client, "t5", tokenizer, expected, TEXTS, task="translation_en_to_de")


def test_languages_that_are_not_known(client: Client) -> None:
    for field in ("source_lang", "target_lang"):
        with pytest.raises(InvalidArgument, match=rf"{field}.*must be one of af, am, .* is 'tlh'"):
            client.generate(TEXTS[0], model="m2m100", **{field: "tlh"})
