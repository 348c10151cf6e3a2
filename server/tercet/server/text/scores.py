"""The outputs of heads as scores."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Activation = Literal["softmax", "sigmoid", "none"]


def from_bytes(data: bytes, *shape: int) -> Floats:
    """The numbers of an engine's answer, float32 little-endian, in a shape that may have one -1."""
    return np.frombuffer(data, "<f4").reshape(shape)


def softmax(outputs: Floats, axis: int = -1) -> Floats:
    """Scores that sum to 1 along an axis; not numbers where every output is -inf."""
    exponentials = np.exp(outputs - outputs.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def sigmoid(outputs: Floats) -> Floats:
    """Each score in (0, 1) by itself."""
    return np.exp(-np.logaddexp(0, -outputs))


def activate(outputs: Floats, activation: Activation) -> Floats:
    """The scores of one text's labels."""
    match activation:
        case "softmax":
            return softmax(outputs)
        case "sigmoid":
            return sigmoid(outputs)
        case "none":
            return outputs


def default_activation(problem_type: str | None, labels: int) -> Activation:
    """What a checkpoint's outputs mean that does not say more (transformers' TextClassificationPipeline, 5.23)."""
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or labels == 1 else "softmax"


def entailed(outputs: Floats, entailment: int, contradiction: int | None, *, each: bool) -> Floats:
    """How well each of several hypotheses follows from a text (transformers' ZeroShotClassificationPipeline, 5.23).

    `outputs`: [hypotheses, labels] of a checkpoint trained on entailment. Where `each` is judged by itself, or there is
    one alone, its score is that of entailment against contradiction, else the scores of all sum to 1. A checkpoint that
    names no contradiction has it first, or last where entailment is first.
    """
    if not each and len(outputs) > 1:
        return softmax(outputs[:, entailment])
    against = contradiction if contradiction is not None else (-1 if entailment == 0 else 0)
    return softmax(outputs[:, [against, entailment]])[:, 1]
