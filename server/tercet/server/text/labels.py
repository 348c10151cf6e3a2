"""What a checkpoint's head tells apart, and how its outputs become scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tercet.server.text.fields import Fields

Activation = Literal["softmax", "sigmoid", "none"]

_MAX_LABELS = 1 << 20
_ACTIVATIONS: dict[str, Activation] = {
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "none": "none",
    "identity": "none",
}


def read_labels(config: Fields) -> tuple[str, ...]:
    """id2label of a config.json, by index; "LABEL_3" where it names none for 3, as transformers.

    Raises CheckpointTextError: a value of the wrong type.
    """
    names = config.nested("id2label").values
    count = len(names) or config.integer("num_labels", 2, 1, _MAX_LABELS)
    return tuple(str(names.get(str(index), f"LABEL_{index}")) for index in range(count))


def read_activation(config: Fields) -> Activation | None:
    """What turns a head's outputs into scores; None where not stated.

    sentence-transformers names a class of torch in one of two places, transformers a function. Raises
    CheckpointTextError: an activation that there is no support for.
    """
    sentence, older, function = "activation_fn", "sbert_ce_default_activation_function", "function_to_apply"
    for fields, key in ((config.nested("sentence_transformers"), sentence), (config, older), (config, function)):
        if (name := fields.string(key, None)) is not None:
            kind = name.rpartition(".")[2].lower()
            if kind not in _ACTIVATIONS:
                raise fields.error(key, f"must be one of {', '.join(_ACTIVATIONS)}, is {name!r}")
            return _ACTIVATIONS[kind]
    return None
