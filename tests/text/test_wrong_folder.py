"""Folders whose text files are wrong: one line that names the file and the key, whatever is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tercet.server.text import CheckpointTextError, load_text_model


def write(file: Path, value: object) -> None:
    data = (
        value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else json.dumps(value).encode()
    )
    file.write_bytes(data)


def tokenizer_json(model: object, **parts: object) -> dict[str, object]:
    return {"tokenizer.json": {"version": "1.0", "model": model, **parts}}


def config(text: object) -> dict[str, object]:
    return {"tokenizer_config.json": text}


def bpe(**changes: object) -> dict[str, object]:
    return {"type": "BPE", "vocab": {"a": 0}, "merges": [], **changes}


def gpt2(**files: object) -> dict[str, object]:
    names = {"vocab": "vocab.json", "merges": "merges.txt"}
    return {
        "vocab.txt": None,
        "config.json": {"model_type": "gpt2"},
        **{names[key]: value for key, value in files.items()},
    }


WORDPIECE = {
    "type": "WordPiece",
    "vocab": {"a": 0},
    "unk_token": "[UNK]",
    "max_input_chars_per_word": 9,
    "continuing_subword_prefix": "#",
}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}
BAD = r"tokenizer\.json: not a usable tokenizer"
CONFIG = r"tokenizer_config\.json: "
WRONG: dict[str, tuple[dict[str, object], str]] = {
    "no files": ({"vocab.txt": None}, "has no tokenizer.json and none of .*spiece.model, .*vocab.json, vocab.txt"),
    "not JSON": ({"tokenizer.json": "{"}, f"{BAD}: EOF"),
    "not UTF-8": ({"tokenizer.json": b"\xff\xfe"}, BAD),
    "no model": ({"tokenizer.json": {"version": "1.0"}}, f"{BAD}: Model missing"),
    "negative id": (tokenizer_json(bpe(vocab={"a": -1})), f"{BAD}: .*integer `-1`"),
    "id out of reason": (tokenizer_json(bpe(vocab={"a": 4294967295})), "token id 4294967295 exceeds"),
    "merge of unknown tokens": (tokenizer_json(bpe(merges=["a b"])), f"{BAD}: Token `b` out of vocabulary"),
    "no token for the unknown": (tokenizer_json(WORDPIECE), rf"{BAD}: WordPiece error: Missing \[UNK\]"),
    "template of unknown tokens": (tokenizer_json(bpe(), post_processor=TEMPLATE), BAD),
    "config is a list": (config("[1]"), f"{CONFIG}must be a JSON object, is a list"),
    "config is cut": (config('{"a": '), f"{CONFIG}not JSON: .* at line 1, column 7"),
    "config is deep": (config("[" * 100_000), f"{CONFIG}not JSON within reason"),
    "config is huge": (config(" " * (1 << 24) + "{}"), f"{CONFIG}larger than the limit of 16777216 bytes"),
    "config is not UTF-8": (config(b'{"a": "\xff"}'), f"{CONFIG}not UTF-8 at byte 7"),
    "lower case is a word": (
        config({"do_lower_case": "yes"}),
        f"{CONFIG}do_lower_case: must be true or false, is 'yes'",
    ),
    "length is negative": (config({"model_max_length": -1}), f"{CONFIG}model_max_length: must be an integer from 1"),
    "token is a number": (config({"cls_token": 5}), f"{CONFIG}cls_token: must be a token"),
    "token is unknown": (config({"cls_token": "[GO]"}), r"vocab\.txt: cls_token: the vocabulary has no '\[GO\]'"),
    "id is a word": (config({"added_tokens_decoder": {"x": "y"}}), f"{CONFIG}added_tokens_decoder: must be an object"),
    "id is long": (
        config({"added_tokens_decoder": {"9" * 5000: "y"}}),
        f"{CONFIG}added_tokens_decoder: must be an object",
    ),
    "id can't be had": (config({"added_tokens_decoder": {"99": "new"}}), "can't give 'new' the id 99"),
    "extra tokens are a word": (config({"extra_special_tokens": "x"}), "extra_special_tokens: must be a list"),
    "another class": (
        config({"tokenizer_class": "FunnelTokenizer"}),
        "tokenizer_class: 'FunnelTokenizer' can't be built",
    ),
    "class is a number": (config({"tokenizer_class": 1}), f"{CONFIG}tokenizer_class: must be a string, is 1"),
    "no merges": (gpt2(vocab={"a": 0}), r"merges\.txt: No such file"),
    "merges are no pairs": (
        gpt2(vocab={"a": 0}, merges="#version: 0.2\na b c\n"),
        r"merges\.txt: not a usable tokenizer",
    ),
    "ids are words": (gpt2(vocab={"a": "b"}, merges=""), "the vocabulary is empty"),
}


@pytest.mark.parametrize(("files", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_folder_is_named(tmp_path: Path, files: dict[str, object], message: str) -> None:
    usable = {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", "config.json": {"model_type": "bert"}}
    for name, content in (usable | files).items():
        if content is not None:
            write(tmp_path / name, content)
    with pytest.raises(CheckpointTextError, match=message) as caught:
        load_text_model(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "is neither a Hugging Face folder nor a .gguf file"),
    ],
    ids=["missing", "a text"],
)
def test_a_source_of_another_kind(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    source = tmp_path / "model.txt"
    make(source)
    with pytest.raises(CheckpointTextError, match=message):
        load_text_model(source)
