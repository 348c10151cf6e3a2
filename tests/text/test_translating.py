"""Tokenizers of translating checkpoints, and the languages they are told, against transformers'."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import M2M100Tokenizer, MarianTokenizer, MBart50Tokenizer, MBartTokenizer, NllbTokenizer

from support.pieces import CORPUS, ids, train_pieces, write
from support.texts import texts
from tercet.server.text import CheckpointTextError, IncrementalDecoder, LanguageError, TextModel, load_text_model
from tercet.server.text.language_codes import M2M100, MBART50, NLLB

CODES = (">>fra<< the", ">>fra<<", ">>xyz<< the", " >>fra<<", "a </s> >>fra<< b", ">>", ">>\n<<", "<<>>")
SPELLED = ("__en__", "a__fr__b", "\u2581", "</s></s>", "<unk> <pad>", "the  fox ")
TEXTS = [*texts(400, seed=5), *CODES, *SPELLED, "", " ", "\t\n", "word " * 2000]
pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")


@pytest.fixture(scope="module", params=["shared", "separate"])
def marian(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Helsinki-NLP's: ids of another order than the models', some of whose pieces are in no vocabulary."""
    folder = tmp_path_factory.mktemp("marian")
    source = train_pieces(folder / "source.spm")
    target = train_pieces(folder / "target.spm", [text[::-1] for text in CORPUS], vocab_size=300)
    config: dict[str, Any] = {"source_lang": "en", "target_lang": "fr"}
    special = ("</s>", "<unk>", "<pad>")
    if request.param == "separate":
        write(folder, vocab=ids(*special, *source[::-2]), target_vocab=ids(*special, *target[:-9]))
        config["separate_vocabs"] = True
    else:
        write(folder, vocab=ids(*special, *source[::-2], *target[:-9], ">>fra<<", ">>deu<<"))
    write(folder, tokenizer_config=config)
    return write(folder, config={"model_type": "marian"})


def assert_equal_ids(ours: Any, expected: list[list[int]]) -> None:
    for text, encoded, reference in zip(TEXTS, ours.encode_batch(TEXTS), expected, strict=True):
        assert encoded.ids == reference, repr(text)


def assert_equal_texts(ours: Any, reference: Any, sequences: list[list[int]]) -> None:
    """Whole, and token by token."""
    for sequence in sequences:
        for skip in (True, False):
            expected = reference.decode(sequence, skip_special_tokens=skip)
            assert ours.decode(sequence, skip) == expected, sequence
            decoder = IncrementalDecoder(ours, skip)
            assert "".join(decoder.push([i]) for i in sequence) + decoder.finish() == expected, sequence


def test_marian(marian: Path, tmp_path: Path) -> None:
    model, reference = load_text_model(marian), MarianTokenizer.from_pretrained(marian)
    sources, targets = reference(TEXTS)["input_ids"], reference(text_target=TEXTS)["input_ids"]
    assert_equal_ids(model.tokenizer, sources)
    assert_equal_ids(model.target_tokenizer, targets)
    assert sources != targets
    reference.save_pretrained(tmp_path)
    write(tmp_path, config={"model_type": "marian"})
    assert_equal_ids(load_text_model(tmp_path).tokenizer, sources)
    short = [sequence for sequence in targets if len(sequence) < 200]
    assert_equal_texts(model.target_tokenizer, reference, [*short, *(sequence[::-1] for sequence in short)])


def test_spans_of_pieces(marian: Path) -> None:
    tokenizer = load_text_model(marian).tokenizer
    for text in TEXTS:
        encoded = tokenizer.encode(text, spans=True)
        assert encoded.ids == tokenizer.encode(text).ids
        spans = list(zip(encoded.starts, encoded.ends, strict=True))[:-1]
        assert spans == sorted(spans)
        assert all(start <= end <= len(text) for start, end in spans)
        if text.isascii() and text.isprintable():
            assert "".join(text[start:end] for start, end in spans).replace(" ", "") == text.replace(" ", "")
        assert (encoded.starts[-1], encoded.ends[-1], encoded.words[-1]) == (0, 0, None)
    encoded = tokenizer.encode("naïve café", spans=True)
    assert [*dict.fromkeys(encoded.words)] == [0, 1, None]


def m2m100(folder: Path, config: dict[str, Any]) -> Path:
    pieces = train_pieces(folder / "sentencepiece.bpe.model")
    write(folder, vocab=ids("<s>", "<pad>", "</s>", "<unk>", *pieces[:2:-1][:-5]), config={"model_type": "m2m_100"})
    return write(folder, tokenizer_config={"tokenizer_class": "M2M100Tokenizer", **config})


LISTED = {"additional_special_tokens": [f"__{code}__" for code in M2M100["m2m100"]]}


@pytest.mark.parametrize(
    "config", [{}, LISTED, {**LISTED, "src_lang": "fr"}, {"language_codes": "wmt21"}], ids=",".join
)
def test_m2m100(tmp_path: Path, config: dict[str, Any]) -> None:
    """Languages match as a whole in texts where tokenizer_config.json lists them."""
    folder = m2m100(tmp_path, config)
    model, reference = load_text_model(folder), M2M100Tokenizer.from_pretrained(folder)
    expected = reference(TEXTS)["input_ids"]
    assert_equal_ids(model.tokenizer, expected)
    short = [sequence for sequence in expected if len(sequence) < 200]
    assert_equal_texts(model.target_tokenizer, reference, [*short, *(sequence[::-1] for sequence in short)])
    assert model.languages is not None
    assert model.languages.ids == reference.lang_code_to_id
    reference.save_pretrained(tmp_path / "saved")
    assert_equal_ids(load_text_model(write(tmp_path / "saved", config={"model_type": "m2m_100"})).tokenizer, expected)


def assert_translates(model: TextModel, reference: Any, source: str, target: str) -> None:
    assert model.languages is not None
    told = model.languages.translation(source, target)
    expected = reference._build_translation_inputs(["the fox"], return_tensors=None, src_lang=source, tgt_lang=target)
    inner = model.tokenizer.encode("the fox", add_special_tokens=False).ids
    assert [[*told.before, *inner, *told.after]] == expected["input_ids"]
    assert told.forced_bos_id == expected["forced_bos_token_id"]


def test_languages_of_m2m100(tmp_path: Path) -> None:
    folder = m2m100(tmp_path, LISTED)
    model, reference = load_text_model(folder), M2M100Tokenizer.from_pretrained(folder)
    assert model.languages is not None
    assert model.languages.codes == sorted(M2M100["m2m100"])
    assert_translates(model, reference, "de", "zu")
    assert model.languages.translation().before == model.languages.translation("en").before
    assert model.languages.translation("de").forced_bos_id is None


@pytest.mark.parametrize(
    ("make", "config", "codes"),
    [
        (MBartTokenizer, {"tgt_lang": "ro_RO"}, MBART50[:25]),
        (MBart50Tokenizer, {}, MBART50),
        (NllbTokenizer, {}, NLLB),
        (NllbTokenizer, {"legacy_behaviour": True}, NLLB),
    ],
    ids=str,
)
def test_languages_of_fairseq(tmp_path: Path, make: Any, config: dict[str, Any], codes: tuple[str, ...]) -> None:
    train_pieces(tmp_path / "sentencepiece.bpe.model", model_type="bpe" if make is NllbTokenizer else "unigram")
    write(tmp_path, config={}, tokenizer_config={"tokenizer_class": make.__name__, **config})
    model = load_text_model(tmp_path)
    assert model.languages is not None
    assert model.languages.codes == sorted(codes)
    assert model.languages.default_target == config.get("tgt_lang")
    if (
        make is NllbTokenizer
    ):  # saved as hub checkpoints are, since transformers forgets the languages of the other files
        model.tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    reference = make.from_pretrained(tmp_path)
    first, last = codes[0], codes[-1]
    assert_translates(model, reference, first, last)
    assert_translates(load_text_model(tmp_path), reference, last, first)


def test_languages_of_marian(marian: Path) -> None:
    """The target alone, before the source's text."""
    model, reference = load_text_model(marian), MarianTokenizer.from_pretrained(marian)
    if reference.separate_vocabs:
        assert model.languages is None
        return
    assert model.languages is not None
    assert model.languages.codes == ["deu", "fra"]
    told = model.languages.translation(None, "fra")
    inner = model.tokenizer.encode("the fox", add_special_tokens=False).ids
    assert [*told.before, *inner, *told.after] == reference(">>fra<< the fox")["input_ids"]
    assert told.forced_bos_id is None
    assert model.languages.translation().before == ()
    with pytest.raises(LanguageError, match="told the target's language alone") as caught:
        model.languages.translation("eng", "fra")
    assert caught.value.field == "source_lang"


def test_a_vocabulary_without_languages(tmp_path: Path) -> None:
    """Of a fine-tune with a tokenizer of its own; one that is said to read a language must have it."""
    folder = m2m100(tmp_path, {})
    plain = Tokenizer(models.BPE({"</s>": 0, "the": 1}, []))
    plain.save(str(folder / "tokenizer.json"))
    assert load_text_model(folder).languages is None
    write(folder, tokenizer_config={"tokenizer_class": "M2M100Tokenizer", "src_lang": "fr"})
    with pytest.raises(CheckpointTextError, match="src_lang: the vocabulary has no language 'fr'"):
        load_text_model(folder)


def test_a_language_that_is_not_known(tmp_path: Path) -> None:
    languages = load_text_model(m2m100(tmp_path, {})).languages
    assert languages is not None
    for field, told in (("source_lang", ("tlh", "en")), ("target_lang", ("en", "tlh"))):
        with pytest.raises(LanguageError, match=r"must be one of af, am, .* and 90 more, is 'tlh'") as caught:
            languages.translation(*told)
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "target.spm").unlink(), r"target\.spm: No such file"),
        (lambda folder: (folder / "source.spm").write_bytes(b"no"), r"source\.spm: not a SentencePiece model"),
        (lambda folder: write(folder, vocab={"</s>": 0}), r"unk_token: the vocabulary has no '<unk>'"),
        (lambda folder: write(folder, vocab={"<unk>": 0}), "the vocabulary is empty"),
        (lambda folder: write(folder, vocab={"<unk>": -1}), r"vocab\.json: <unk>: must be an integer from 0"),
        (lambda folder: write(folder, tokenizer_config={"separate_vocabs": True}), r"target_vocab\.json: unk_token"),
    ],
)
def test_a_wrong_folder_of_marian(tmp_path: Path, change: Any, message: str) -> None:
    pieces = train_pieces(tmp_path / "source.spm")
    (tmp_path / "target.spm").write_bytes((tmp_path / "source.spm").read_bytes())
    write(tmp_path, vocab=ids("</s>", "<unk>", *pieces, "<pad>"), config={"model_type": "marian"})
    load_text_model(tmp_path)
    change(tmp_path)
    with pytest.raises(CheckpointTextError, match=message):
        load_text_model(tmp_path)


def test_the_library_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = m2m100(tmp_path, {})
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(
        CheckpointTextError, match=r"bpe\.model: needs the sentencepiece package: pip install 'tercet\[sen"
    ):
        load_text_model(folder)
