"""A row for every architecture: a tiny config at whose sizes and values its traps show.

A row stands for all heads its architecture has. More than one row an architecture is for what one config can't have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from support.decoder_rows import DECODERS
from support.encoder_rows import ENCODER_MODELS
from support.row import LABELS, VOCAB_SIZE, Row, cases
from support.seq2seq_rows import ENCODER_STACKS, SEQ2SEQ

if TYPE_CHECKING:
    from collections.abc import Iterable

ENCODERS = {**ENCODER_MODELS, **ENCODER_STACKS}
ROWS = {**ENCODERS, **DECODERS, **SEQ2SEQ}
# Tensors of files that no output depends on, by a part of their names: BERT's pooler where nothing is classified, the
# head that ELECTRA discriminates with, sinusoids, which follow from the config.
UNUSED = {
    "BertModel": ("pooler.",),
    "BertForPreTraining": ("pooler.", "cls.seq_relationship."),
    "RobertaModel": ("pooler.",),
    "XLMRobertaModel": ("pooler.",),
    "CamembertModel": ("pooler.",),
    "MPNetModel": ("pooler.",),
    "ElectraForPreTraining": ("discriminator_predictions.",),
    "MarianMTModel": ("embed_positions.",),
    "MarianModel": ("embed_positions.",),
    "PegasusForConditionalGeneration": ("embed_positions.",),
    "PegasusModel": ("embed_positions.",),
}


def used(head: str, tensors: Iterable[str]) -> list[str]:
    """Of the tensors in a file with a head, those that outputs depend on."""
    return [tensor for tensor in tensors if not any(part in tensor for part in UNUSED.get(head, ()))]


def representatives(names: Iterable[str], *, but: Iterable[str] = ()) -> list[str]:
    """One of names that differ in their layer's number alone, the last; none that `but` has, with a prefix or not."""
    known = {template(name) for name in but}
    found = {template(name): name for name in names}
    return [
        name
        for form, name in found.items()
        if not any(f".{form}".endswith(f".{other}") or f".{other}".endswith(f".{form}") for other in known)
    ]


def template(name: str) -> str:
    """A name without the number of the layer."""
    return re.sub(r"\.\d+\.", ".{}.", name, count=1)


__all__ = [
    "DECODERS",
    "ENCODERS",
    "LABELS",
    "ROWS",
    "SEQ2SEQ",
    "UNUSED",
    "VOCAB_SIZE",
    "Row",
    "cases",
    "representatives",
    "template",
    "used",
]
