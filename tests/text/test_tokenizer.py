"""The real checkpoints' tokenizers against transformers'."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from support import packaged
from support.texts import SPECIAL, texts
from tercet.server.text import TextModel, load_text_model

TEXTS = texts(900)


@pytest.fixture(scope="module", params=["smollm2", "minilm"])
def pair(request: pytest.FixtureRequest) -> tuple[TextModel, PreTrainedTokenizerBase]:
    """Our model and transformers' tokenizer of the same checkpoint."""
    source: Path = getattr(packaged, request.param)()
    if source.suffix == ".gguf":
        return load_text_model(source), AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    return load_text_model(source), AutoTokenizer.from_pretrained(source)


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_ids_and_offsets(pair: tuple[TextModel, PreTrainedTokenizerBase], add_special_tokens: bool) -> None:
    model, reference = pair
    encoded = model.tokenizer.encode_batch(TEXTS, add_special_tokens, spans=True)
    expected = reference(
        TEXTS, add_special_tokens=add_special_tokens, return_offsets_mapping=True, return_token_type_ids=True
    )
    for index, (text, ours) in enumerate(zip(TEXTS, encoded, strict=True)):
        assert ours.ids == expected["input_ids"][index], repr(text)
        assert ours.type_ids == expected["token_type_ids"][index]
        assert list(zip(ours.starts, ours.ends, strict=True)) == expected["offset_mapping"][index], repr(text)
        assert ours.tokens == reference.convert_ids_to_tokens(ours.ids)
        assert ours == model.tokenizer.encode(text, add_special_tokens, spans=True)


def test_spans_are_made_where_asked_for(pair: tuple[TextModel, PreTrainedTokenizerBase]) -> None:
    """Everything else is the same without them."""
    tokenizer = pair[0].tokenizer
    for text, with_spans, without in zip(
        TEXTS, tokenizer.encode_batch(TEXTS, spans=True), tokenizer.encode_batch(TEXTS), strict=True
    ):
        assert (
            without
            == replace(with_spans, tokens=[], starts=[], ends=[], sequence=[], words=[])
            == tokenizer.encode(text)
        ), repr(text)


@pytest.mark.parametrize("skip", [True, False])
def test_text_of_ids(pair: tuple[TextModel, PreTrainedTokenizerBase], skip: bool) -> None:
    model, reference = pair
    for text in TEXTS:
        ids = model.tokenizer.encode(text).ids
        # cut, for halves of characters; reversed, for sequences that no text has
        for part in (ids, ids[1:-2], ids[::-1]):
            assert model.tokenizer.decode(part, skip) == reference.decode(part, skip_special_tokens=skip), repr(text)


def test_vocabulary(pair: tuple[TextModel, PreTrainedTokenizerBase]) -> None:
    model, reference = pair
    assert model.tokenizer.vocab_size == len(reference)
    assert model.tokenizer.special_ids == set(reference.all_special_ids) | {
        i for i, token in reference.added_tokens_decoder.items() if token.special
    }


def test_texts_meet_special_tokens(pair: tuple[TextModel, PreTrainedTokenizerBase]) -> None:
    """The comparison above is worth nothing for special tokens in text if no text had one."""
    tokenizer = pair[0].tokenizer
    found = {i for text in SPECIAL for i in tokenizer.encode(text, add_special_tokens=False).ids}
    assert len(found & tokenizer.special_ids) >= 4


def test_prompts_of_conversations(pair: tuple[TextModel, PreTrainedTokenizerBase]) -> None:
    """By the checkpoint's own template, where there is one: text, and ids with the template's special tokens."""
    model, reference = pair
    assert bool(model.chat_template) == (reference.chat_template is not None)
    for text in TEXTS[:50] if model.chat_template else ():
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": text},
            {"role": "user", "content": ""},
        ]
        for conversation in (messages, [{"role": "system", "content": text}, *messages]):
            prompt = model.render_chat(conversation)
            assert prompt == reference.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
            expected = reference.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"]
            assert model.tokenizer.encode(prompt, add_special_tokens=False).ids == expected


def test_limits_of_tokenizer_json_are_off() -> None:
    """MiniLM's file asks for exactly 128 tokens, by cutting and padding."""
    tokenizer = load_text_model(packaged.minilm()).tokenizer
    assert len(tokenizer.encode("word " * 300)) == 302
    assert [len(e) for e in tokenizer.encode_batch(["a", "a b c"])] == [3, 5]


def test_truncated_keeps_the_special_tokens() -> None:
    tokenizer = load_text_model(packaged.minilm()).tokenizer
    reference = AutoTokenizer.from_pretrained(packaged.minilm())
    text = "one two [SEP] three, four [CLS] five [SEP]"
    encoded = tokenizer.encode(text)
    for length in range(2, len(encoded) + 2):
        expected = reference(text, truncation=True, max_length=length)
        ours = encoded.truncated(length)
        assert ours.ids == expected["input_ids"]
        assert ours.type_ids == expected["token_type_ids"]
    with pytest.raises(ValueError, match="2 tokens that stay don't fit into 1"):
        encoded.truncated(1)


def test_offsets_count_code_points() -> None:
    tokenizer = load_text_model(packaged.smollm2()).tokenizer
    text = "👩‍👩‍👧 naïve 你好"
    encoded = tokenizer.encode(text, spans=True)
    word = encoded.tokens.index("Ġna")
    assert text[encoded.starts[word] : encoded.ends[word]] == " na"
    assert max(encoded.ends) == len(text)
