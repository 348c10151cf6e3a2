"""Requests over gRPC computed by the Triton kernels, in Triton's interpreter: same answers as the CPU's path."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from support.architectures import DECODERS, ENCODERS, ROWS, SEQ2SEQ
from support.checkpoints import tiny
from support.metrics import samples
from support.server import running_server
from tercet.client import Client

TEXTS = ["one", "one two three four five six seven", "two three", "six six six one four"]
TOLERANCE = 1e-4
WRITERS = ("CausalLM", "LMHeadModel", "ConditionalGeneration", "MTModel")
INTERPRETER = {"TRITON_INTERPRET": "1"}


def answers(checkpoints, ask, *flags, env=None):
    """What every model says, and every `op/impl` that ran."""
    with running_server(checkpoints, *flags, env=env) as server, Client(server.address, timeout=120) as client:
        with ThreadPoolExecutor(len(checkpoints)) as models:
            said = dict(zip(checkpoints, models.map(lambda model: ask(client, model), checkpoints), strict=True))
        launches = samples(server, "tercet_kernel_launches_total")
    return said, {(labels["op"], labels["impl"]) for labels, count in launches if count > 0}


def of_every_kind(client, model):
    """Vectors, or tokens: greedy, and sampled twice."""
    if model == "bert":
        return client.embed(TEXTS, model=model)
    ways = [{"temperature": 0}] * len(TEXTS) + [{"temperature": 1.0, "top_k": 20, "seed": 7, "n": 2}]
    with ThreadPoolExecutor(len(ways)) as callers:
        calls = [
            callers.submit(client.generate, text, model=model, max_new_tokens=6, **way)
            for text, way in zip([*TEXTS, TEXTS[1]], ways, strict=True)
        ]
        return [output.token_ids for call in calls for output in call.result().outputs]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_triton_answers_as_the_cpu(tmp_path, layout):
    checkpoints = {name: tiny(tmp_path / name, name, writer(name)) for name in ("bert", "llama", "t5")}
    expected, ran = answers(checkpoints, of_every_kind, "--kernels", "cpu", "--layout", layout)
    assert {impl for _, impl in ran} <= {"cpu", "reference"}
    said, ran = answers(checkpoints, of_every_kind, "--kernels", "triton", "--layout", layout, env=INTERPRETER)
    np.testing.assert_allclose(said["bert"], expected["bert"], atol=TOLERANCE, rtol=TOLERANCE)
    assert said["llama"] == expected["llama"]
    assert said["t5"] == expected["t5"]
    assert {impl for _, impl in ran} == {"triton"}
    ops = {op for op, _ in ran}
    assert {"attention", "layer_norm", "rms_norm", "activation", "kv_write", "pooling", "sample", "embedding"} <= ops
    assert ("pad" in ops) == (layout == "padded")


def of_one_text(client, model):
    """The vectors of its tokens, and where the model writes, greedy tokens and beams."""
    features = client.embed(TEXTS[1], model=model, pooling="none")
    if "generate" not in {task for info in client.models() if info.name == model for task in info.tasks}:
        return features, []
    with ThreadPoolExecutor(2) as callers:
        greedy, beams = callers.map(
            lambda beams: client.generate(
                TEXTS[1], model=model, max_new_tokens=4, temperature=0, num_beams=beams, n=beams
            ),
            (1, 2),
        )
    return features, [output.token_ids for output in [*greedy.outputs, *beams.outputs]]


@pytest.mark.parametrize("family", [ENCODERS, DECODERS, SEQ2SEQ], ids=["encoders", "decoders", "seq2seq"])
def test_triton_answers_as_the_cpu_for_every_architecture(tmp_path, family):
    rows = {ROWS[row].architecture: row for row in reversed(family) if "encoder" not in row}
    checkpoints = {name: tiny(tmp_path / name, row, writer(row)) for name, row in rows.items()}
    expected, _ = answers(checkpoints, of_one_text, "--kernels", "cpu")
    said, ran = answers(checkpoints, of_one_text, "--kernels", "triton", env=INTERPRETER)
    for name in checkpoints:
        np.testing.assert_allclose(said[name][0], expected[name][0], atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)
        assert said[name][1] == expected[name][1], name
    assert {impl for _, impl in ran} == {"triton"}


def writer(row):
    """The head that writes, where the architecture has one."""
    return next(
        (head for head in ROWS[row].classes if head.endswith(("LM", "LMHeadModel", "Generation", "MTModel"))), None
    )
