"""Tokenizers from SentencePiece models, each with the tokens that its authors put before and after the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, models, normalizers

from tercet.server.text import language_codes
from tercet.server.text.fields import Fields
from tercet.server.text.vocabularies.builders import byte_fallback_bpe, guarded, metaspace
from tercet.server.text.vocabularies.piece_backend import PieceBackend
from tercet.server.text.vocabularies.spm import SentencePieces, implied_merges, read_pieces

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import tokenizers

    from tercet.server.text.vocabularies.files import Parts


def _pieces(parts: Parts) -> SentencePieces:
    found = read_pieces(parts.files[0])
    parts.added += [AddedToken(piece, normalized=False, special=control) for piece, control in found.added]
    return found


def _normal(pieces: SentencePieces, *, spaces: bool) -> list[normalizers.Normalizer]:
    normal: list[normalizers.Normalizer] = []
    if pieces.charsmap is not None:
        normal.append(normalizers.Precompiled(pieces.charsmap))
    return [*normal, normalizers.Replace(Regex(r" {2,}"), " ")] if spaces else normal


def _unigram(
    parts: Parts, vocabulary: list[tuple[str, float]], normal: list[normalizers.Normalizer], **how: bool
) -> tokenizers.Tokenizer:
    unknown = next((i for i, (token, _) in enumerate(vocabulary) if token == parts.named["unk_token"]), None)
    return guarded(lambda: metaspace(models.Unigram(vocabulary, unknown, False), normal, **how), parts.files[0])


def t5(parts: Parts) -> tokenizers.Tokenizer:
    pieces = _pieces(parts)
    extra = [f"<extra_id_{i}>" for i in reversed(range(parts.config.integer("extra_ids", 100, 0, 1 << 16)))]
    parts.added += extra
    return _unigram(parts, [*pieces.pieces, *_unscored(extra)], _normal(pieces, spaces=False), words=True)


def pegasus(parts: Parts) -> tokenizers.Tokenizer:
    """104 tokens before the vocabulary: those of its training, of which two are masks."""
    pieces = _pieces(parts)
    masks = dict.fromkeys(
        (parts.config.string("mask_token", "<mask_1>"), parts.config.string("mask_token_sent", "<mask_2>"))
    )
    unused = [f"<unk_{i}>" for i in range(2, parts.config.integer("offset", 103, 2, 1 << 16))]
    parts.added += [*masks, *unused]
    head = [parts.named["pad_token"], parts.named["eos_token"], *masks]
    vocabulary = [*_unscored(head), *((token, -100.0) for token in unused), *pieces.pieces[2:]]
    return _unigram(parts, vocabulary, _normal(pieces, spaces=True), words=False)


def _fairseq(parts: Parts, pieces: SentencePieces, codes: tuple[str, ...] = ()) -> list[tuple[str, float]]:
    """Fairseq's vocabulary of a SentencePiece model: four tokens of its own for the model's first three."""
    parts.added += codes
    head = [parts.named[name] for name in ("bos_token", "pad_token", "eos_token", "unk_token")]
    return [*_unscored(head), *pieces.pieces[3:], *_unscored([*codes, parts.named["mask_token"]])]


def xlm_roberta(parts: Parts) -> tokenizers.Tokenizer:
    pieces = _pieces(parts)
    prefix_space = parts.config.boolean("add_prefix_space", True)
    vocabulary, normal = _fairseq(parts, pieces), _normal(pieces, spaces=False)
    return _unigram(parts, vocabulary, normal, words=True, prefix_space=prefix_space)


def camembert(parts: Parts) -> tokenizers.Tokenizer:
    pieces = _pieces(parts)
    unused = ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]
    head = [unused[0], parts.named["pad_token"], unused[1], parts.named["unk_token"]]
    vocabulary = [*_unscored(head), (unused[2], -100.0), *pieces.pieces[1:], (parts.named["mask_token"], 0.0)]
    prefix_space = parts.config.boolean("add_prefix_space", True)
    return _unigram(parts, vocabulary, _normal(pieces, spaces=False), words=True, prefix_space=prefix_space)


def mbart(parts: Parts) -> tokenizers.Tokenizer:
    return _unigram(parts, _fairseq(parts, _pieces(parts), language_codes.MBART), [], words=True)


def mbart50(parts: Parts) -> tokenizers.Tokenizer:
    pieces = _pieces(parts)
    vocabulary = _fairseq(parts, pieces, language_codes.MBART50)
    return _unigram(parts, vocabulary, _normal(pieces, spaces=True), words=False)


def nllb(parts: Parts) -> tokenizers.Tokenizer:
    pieces = _pieces(parts)
    parts.added += language_codes.NLLB
    by_id = {piece: index for index, (piece, _) in enumerate(pieces.pieces)}
    head = [parts.named[name] for name in ("bos_token", "pad_token", "eos_token", "unk_token")]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*head, *by_id]))}
    model = guarded(
        lambda: models.BPE(vocabulary, implied_merges(by_id), unk_token=parts.named["unk_token"], fuse_unk=True),
        pieces.file,
    )
    return metaspace(model, _normal(pieces, spaces=True) if pieces.charsmap else [], words=False)


def llama(parts: Parts) -> tokenizers.Tokenizer:
    vocabulary = {piece: index for index, (piece, _) in enumerate(_pieces(parts).pieces)}
    prefix_space = parts.config.boolean("add_prefix_space", True)
    merges = implied_merges(vocabulary)
    return guarded(lambda: byte_fallback_bpe(vocabulary, merges, prefix_space=prefix_space), parts.files[0])


def marian(parts: Parts) -> PieceBackend:
    """Marian's (Junczys-Dowmunt et al. 2018) for sources."""
    source, vocabulary = parts.files[:2]
    return PieceBackend(source, _ids(parts, vocabulary), parts.named["unk_token"], marian=True)


def marian_target(parts: Parts) -> PieceBackend:
    """Marian's for targets: another model, and where the checkpoint says so another vocabulary."""
    source, vocabulary, target = parts.files
    unknown = parts.named["unk_token"]
    if parts.config.boolean("separate_vocabs", False):
        return PieceBackend(target, _ids(parts, vocabulary.with_name("target_vocab.json")), unknown, marian=True)
    return PieceBackend(target, _ids(parts, vocabulary), unknown, decode=source, marian=True)


def m2m100(parts: Parts) -> PieceBackend:
    """M2M-100's (Fan et al. 2020): languages after the vocabulary."""
    vocabulary, model = parts.files
    ids = _ids(parts, vocabulary)
    codes = language_codes.M2M100.get(parts.config.string("language_codes", "m2m100"))
    if codes is None:
        known = ", ".join(language_codes.M2M100)
        raise parts.config.error("language_codes", f"must be one of {known}")
    for index, code in enumerate(codes, len(ids)):
        ids.setdefault(f"__{code}__", index)
    return PieceBackend(model, ids, parts.named["unk_token"], marian=False)


def _ids(parts: Parts, file: Path) -> dict[str, int]:
    """A vocab.json, which must have the token for what it lacks."""
    fields = Fields.read(file)
    unknown = parts.named["unk_token"]
    if unknown not in fields.values:
        raise fields.error("unk_token", f"the vocabulary has no {unknown!r}")
    return {token: fields.integer(token, 0, 0) for token in fields.values}


def _unscored(tokens: Iterable[str]) -> list[tuple[str, float]]:
    return [(token, 0.0) for token in tokens]
