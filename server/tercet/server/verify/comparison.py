"""What is compared, and how near it must be."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from tercet.server.verify.reference import Reference
    from tercet.server.verify.served import Served

Ids = list[int]

CANDIDATES = 8  # of each place of a text that a masked model is compared on
ROUNDS = 3  # of the clock
# Relative errors that each precision explains: that of the reference is float32. In bfloat16 a single text can be far
# off, in transformers too.
TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 1.2e-1, "fp8": 4e-1}
# The least share of greedy tokens that must agree, where it is not all. Ties as wide as the errors of 8-bit floats
# would excuse any token: theirs are as wide as bfloat16's.
LEAST_AGREEING = {"fp8": 0.8}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    said: str
    failed: bool = False


@dataclass(frozen=True)
class Inputs:
    """What both sides read."""

    texts: list[Ids]
    start: Ids
    """What the decoder of a seq2seq model starts from."""
    new_tokens: int


def hidden_states(served: Served, reference: Reference, inputs: Inputs, tolerance: float) -> Finding:
    """The final hidden states of every text; a seq2seq model's encoder's."""
    pairs = zip(served.features(inputs.texts), map(reference.features, inputs.texts), strict=True)
    return _errors("hidden states", [_error(ours, expected) for ours, expected in pairs], tolerance)


def outputs(served: Served, reference: Reference, inputs: Inputs, tolerance: float) -> Finding:
    """What the head makes of every text; log probabilities where its outputs are a vocabulary."""
    texts = inputs.texts
    if "fill_mask" in served.info.tasks:
        return _errors("log probabilities", _candidate_errors(served, reference, texts), tolerance)
    if "generate" in served.info.tasks:
        return _errors("log probabilities", _score_errors(served, reference, inputs), tolerance)
    seq2seq = served.info.family == "seq2seq"
    read = [(inputs.start + ids)[: len(ids)] if seq2seq else [] for ids in texts]
    pairs = zip(served.predictions(texts, read), map(reference.outputs, texts, read), strict=True)
    return _errors("logits", [_error(ours, expected.flatten()) for ours, expected in pairs], tolerance)


def tokens(served: Served, reference: Reference, inputs: Inputs, tolerance: float) -> Finding:
    """Greedy tokens, each judged after those before it: by induction that is equality with greedy generation.

    Where the reference's best logits lie within the tolerance of each other, relative to the largest, either is right;
    such ties are counted.
    """
    share = LEAST_AGREEING.get(served.info.dtype, 1)
    if share < 1:
        tolerance = min(tolerance, TOLERANCES["bfloat16"])
    generated = served.generate(inputs.texts, inputs.start, inputs.new_tokens)
    count = ties = wrong = 0
    for text, chosen in zip(inputs.texts, generated, strict=True):
        read = (inputs.start or text) + chosen[:-1]
        logits = reference.outputs(text, read) if inputs.start else reference.outputs(read, [])
        logits = logits[-len(chosen) :]
        behind = logits.amax(-1) - logits.gather(-1, torch.tensor(chosen)[:, None])[:, 0]
        near = behind <= tolerance * logits.abs().amax(-1)
        count += len(chosen)
        ties += int((near & (behind > 0)).sum())
        wrong += int((~near).sum())
    least = math.ceil(share * count)
    said = f"{count - wrong} of {count} agree, {ties} of them ties, in {len(generated)} texts at once"
    if least < count:
        said += f"; at least {least} must"
    return Finding("greedy tokens", said, failed=count - wrong < least)


def speed(served: Served, reference: Reference, inputs: Inputs) -> Finding:
    """Both on the same texts in turn: ours in batches of its own making, transformers' in one padded batch."""
    texts = inputs.texts
    if "generate" in served.info.tasks:
        sides: list[Callable[[], object]] = [
            lambda: served.generate(texts, inputs.start, inputs.new_tokens),
            lambda: reference.generate(texts, inputs.start, inputs.new_tokens),
        ]
        amount, unit = inputs.new_tokens * len(texts), "generated tokens/s"
    else:
        sides = [lambda: served.features(texts), lambda: reference.forward(texts)]
        amount, unit = sum(map(len, texts)), "tokens/s"
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for side, times in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side()
            times.append(time.perf_counter() - started)
    ours, theirs = (amount / statistics.median(times) for times in seconds)
    return Finding("speed", f"{ours:,.0f} {unit}, transformers {theirs:,.0f}: {ours / theirs:.2f} ×")


def _candidate_errors(served: Served, reference: Reference, texts: list[Ids]) -> list[float]:
    errors: list[float] = []
    for ids, found in zip(texts, served.candidates(texts, CANDIDATES), strict=True):
        expected = reference.outputs(ids, []).log_softmax(-1).gather(-1, torch.tensor(found.token_ids))
        errors.append(_error(np.array(found.logprobs, np.float32), expected))
    return errors


def _score_errors(served: Served, reference: Reference, inputs: Inputs) -> list[float]:
    """Of the tokens of each text but the first; by a seq2seq model of each text after itself."""
    errors: list[float] = []
    read = [inputs.start + ids if inputs.start else [] for ids in inputs.texts]
    scored = served.scores(inputs.texts, read, first=len(inputs.start) or 1)
    for text, target, ours in zip(inputs.texts, read, scored, strict=True):
        logits = reference.outputs(text, target)[-len(ours) - 1 : -1]
        following = torch.tensor(text[-len(ours) :])
        errors.append(_error(ours, logits.log_softmax(-1).gather(-1, following[:, None])[:, 0]))
    return errors


def _error(ours: NDArray[np.float32], expected: Tensor) -> float:
    """‖ours - expected‖ / ‖expected‖; infinite where shapes differ or anything is not finite."""
    theirs = expected.float().numpy()
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _errors(what: str, errors: list[float], tolerance: float) -> Finding:
    worst = max(errors)
    where = errors.index(worst) + 1
    said = f"largest relative error {worst:.1e}, of text {where}; the tolerance is {tolerance:.1e}"
    return Finding(what, said, failed=worst > tolerance)
