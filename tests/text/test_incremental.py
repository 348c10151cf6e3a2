"""Ids that come in pieces give the text of all of them, for every kind of vocabulary."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from support import packaged
from support.texts import texts
from tercet.server.text import IncrementalDecoder, Tokenizer, incremental, load_text_model

SPACE = "\u2581"
UNKNOWN = "[UNK]"
WORDS = ("a", "b", "ab", "\u00e9", "\U0001f600", "n't", "'m", "'", ".", "!", "'s", "'ve")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(0x100))
SPECIAL = (AddedToken("<s>", special=True), AddedToken("</s>", special=True))
# Tokens without a text of their own, halves of a character, and what clean-up and the first place change.
AWKWARD = (
    "",
    SPACE,
    SPACE + "a",
    "<0x00>",
    "<0x20>",
    "<0xC3>",
    "<0xA9>",
    "\u00c3",
    "\u00a9",
    "##",
    "</w>",
    "'",
    "##m",
    "n't",
    "<s>",
)
PLAIN = (AddedToken("<think>", special=False), AddedToken("two words", special=False))


def backend(tokens: Sequence[str], decoder: object) -> Backend:
    made = Backend(models.BPE({token: index for index, token in enumerate(dict.fromkeys(tokens))}, []))
    if decoder is not None:
        made.decoder = decoder
    made.add_special_tokens(list(SPECIAL))
    made.add_tokens(list(PLAIN))
    return made


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return Tokenizer(
        backend([*alphabet, "\u00c3\u00a9", "\u00f0\u0141", "\u0120a", "not in \u2581 it"], decoders.ByteLevel())
    )


def wordpiece(clean_up: bool = False) -> Tokenizer:
    tokens = {token: index for index, token in enumerate([*WORDS, *(f"##{w}" for w in WORDS), "##", UNKNOWN])}
    made = Backend(models.WordPiece(tokens, unk_token=UNKNOWN))
    made.decoder = decoders.WordPiece(prefix="##", cleanup=not clean_up)
    made.add_special_tokens(list(SPECIAL))
    made.add_tokens(list(PLAIN))
    return Tokenizer(made, clean_up=clean_up)


def sentence_pieces(byte_fallback: bool) -> list[str]:
    return [*WORDS, *(SPACE + w for w in WORDS), SPACE, SPACE * 3, "", *(BYTES if byte_fallback else ())]


def unigram() -> Tokenizer:
    made = Backend(models.Unigram([(token, -1.0) for token in sentence_pieces(False)], unk_id=0))
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(list(SPECIAL))
    return Tokenizer(made, clean_up=True)


def llama() -> Tokenizer:
    chain = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return Tokenizer(backend(sentence_pieces(True), decoders.Sequence(chain)))


def end_of_word() -> Tokenizer:
    return Tokenizer(backend([*WORDS, *(f"{w}</w>" for w in WORDS), "</w>"], decoders.BPEDecoder(suffix="</w>")))


def no_decoder() -> Tokenizer:
    return Tokenizer(backend(WORDS, None))


TOKENIZERS = {
    "byte-level": byte_level(),
    "wordpiece": wordpiece(),
    "wordpiece, cleaned up": wordpiece(clean_up=True),
    "unigram": unigram(),
    "byte fallback": llama(),
    "end of word": end_of_word(),
    "no decoder": no_decoder(),
}


def pieces(tokenizer: Tokenizer, groups: Sequence[Sequence[int]], skip: bool) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, skip)
    return [*(decoder.push(group) for group in groups), decoder.finish()]


@pytest.mark.parametrize("skip", [True, False], ids=["special skipped", "special kept"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@settings(max_examples=100)
@given(data=st.data())
def test_pieces_join_to_the_whole(tokenizer: Tokenizer, skip: bool, data: st.DataObject) -> None:
    beyond = tokenizer.vocab_size + 2  # models pad their vocabularies
    awkward = [i for token in AWKWARD if (i := tokenizer.backend.token_to_id(token)) is not None]
    ids = st.one_of(st.integers(0, beyond), st.sampled_from([*awkward, beyond]))
    groups = data.draw(st.lists(st.lists(ids, min_size=1, max_size=4), max_size=16))
    text = pieces(tokenizer, groups, skip)
    assert "".join(text) == tokenizer.decode([i for group in groups for i in group], skip)


@given(st.binary(max_size=24))
@example(b"\xf0\x9f\x98\x80")
@example(b"\xf0\x9f\x98")
@example(b"\xe4\xe4\xe4\xff\xc3\xa9\xed\xa0\x80")
@pytest.mark.parametrize("name", ["byte-level", "byte fallback"])
def test_any_bytes(name: str, data: bytes) -> None:
    tokenizer = TOKENIZERS[name]
    first = tokenizer.backend.token_to_id("<0x00>")
    if first is None:
        ids = [
            next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == bytes([byte])) for byte in data
        ]
    else:
        ids = [first + byte for byte in data]
    text = pieces(tokenizer, [[i] for i in ids], skip=True)
    assert "".join(text) == tokenizer.decode(ids)
    if name == "byte-level":
        assert "".join(text) == data.decode(errors="replace")


@pytest.mark.parametrize("source", [packaged.smollm2(), packaged.minilm()], ids=["smollm2", "minilm"])
def test_real_texts_token_by_token(source) -> None:
    tokenizer = load_text_model(source).tokenizer
    for text in texts(300, seed=5):
        ids = tokenizer.encode(text).ids
        for skip in (True, False):
            streamed = pieces(tokenizer, [[i] for i in ids], skip)
            assert "".join(streamed) == tokenizer.decode(ids, skip)


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = load_text_model(packaged.smollm2()).tokenizer
    ids = tokenizer.encode("a👩‍👧z").ids
    streamed = pieces(tokenizer, [[i] for i in ids], skip=True)
    assert len(ids) > 6
    assert "".join(streamed) == "a👩‍👧z"
    assert not any("\ufffd" in piece for piece in streamed)


def test_the_window_does_not_grow() -> None:
    """What a token costs does not depend on how many came before it."""
    decoded: list[int] = []

    class Counting:
        def __init__(self, backend: Backend) -> None:
            self._backend = backend

        def __getattr__(self, name: str) -> object:
            return getattr(self._backend, name)

        def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
            decoded.append(len(ids))
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    for name in ("wordpiece", "unigram", "end of word", "byte fallback"):
        tokenizer = Tokenizer(TOKENIZERS[name].backend)
        tokenizer.backend = Counting(tokenizer.backend)  # pyright: ignore[reportAttributeAccessIssue]
        decoder = IncrementalDecoder(tokenizer)
        for _ in range(50):
            decoder.push(range(20))
        assert max(decoded) <= 4, name
        assert len(decoded) <= 2 * 1000 + tokenizer.vocab_size
        decoded.clear()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_remembered_is_bounded_and_forgotten_safely(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream goes on where what it stood on is forgotten under it."""
    monkeypatch.setattr(incremental, "_MOST_STEPS", 5)
    tokenizer = Tokenizer(TOKENIZERS[name].backend, clean_up=TOKENIZERS[name].clean_up)
    random = Random(name)
    streams = [random.choices(range(tokenizer.vocab_size + 2), k=40) for _ in range(4)]
    decoders = [IncrementalDecoder(tokenizer) for _ in streams]
    streamed = [""] * len(streams)
    for position in range(40):
        for which, ids in enumerate(streams):
            streamed[which] += decoders[which].add(ids[position])
    for ids, decoder, text in zip(streams, decoders, streamed, strict=True):
        assert text + decoder.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["wordpiece", "unigram", "byte fallback"])
def test_a_token_is_read_once_for_all_streams(name: str) -> None:
    """In another order, too: what a token adds doesn't depend on the one before."""
    tokenizer = Tokenizer(TOKENIZERS[name].backend)
    ids = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.byte_ids]
    for _ in range(2):  # the first of a stream are read for themselves
        pieces(tokenizer, [[tokenizer.visible_id], ids], skip=True)
    tokenizer.backend = None  # pyright: ignore[reportAttributeAccessIssue]
    decoder = IncrementalDecoder(tokenizer)
    assert decoder.push([tokenizer.visible_id, *ids[::-1]])
