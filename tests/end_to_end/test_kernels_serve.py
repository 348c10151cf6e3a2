"""Requests over gRPC computed by the Triton kernels, in Triton's interpreter: same answers as the CPU's path.

Of every architecture and of padded batches that is shown of engines (`test_architectures_kernels`).
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from support.checkpoints import tiny_bert, tiny_llama, tiny_t5
from support.metrics import samples
from support.server import running_server
from tercet.client import Client

TEXTS = ["one", "one two three four five six seven", "two three", "six six six one four"]
TOLERANCE = 1e-4
INTERPRETER = {"TRITON_INTERPRET": "1"}


def answers(checkpoints, *flags, env=None):
    """What every model says, and every `op/impl` that ran."""
    with running_server(checkpoints, *flags, env=env) as server, Client(server.address, timeout=120) as client:
        with ThreadPoolExecutor(len(checkpoints)) as models:
            said = models.map(lambda model: of_every_kind(client, model), checkpoints)
        launches = samples(server, "tercet_kernel_launches_total")
    return dict(zip(checkpoints, said, strict=True)), {
        (labels["op"], labels["impl"]) for labels, count in launches if count > 0
    }


def of_every_kind(client, model):
    """Vectors, or tokens: greedy, and sampled twice."""
    if model == "bert":
        return client.embed(TEXTS, model=model)
    ways = [{"temperature": 0}] * len(TEXTS) + [{"temperature": 1.0, "top_k": 20, "seed": 7, "n": 2}]
    with ThreadPoolExecutor(len(ways)) as callers:
        calls = [
            callers.submit(client.generate, text, model=model, max_new_tokens=4, **way)
            for text, way in zip([*TEXTS, TEXTS[1]], ways, strict=True)
        ]
        return [output.token_ids for call in calls for output in call.result().outputs]


def test_triton_answers_as_the_cpu(tmp_path):
    makers = {"bert": tiny_bert, "llama": tiny_llama, "t5": tiny_t5}
    checkpoints = {name: make(tmp_path / name) for name, make in makers.items()}
    expected, ran = answers(checkpoints, "--kernels", "cpu")
    assert {impl for _, impl in ran} <= {"cpu", "reference"}
    said, ran = answers(checkpoints, "--kernels", "triton", env=INTERPRETER)
    np.testing.assert_allclose(said["bert"], expected["bert"], atol=TOLERANCE, rtol=TOLERANCE)
    assert said["llama"] == expected["llama"]
    assert said["t5"] == expected["t5"]
    assert {impl for _, impl in ran} == {"triton"}
    ops = {op for op, _ in ran}
    assert {"attention", "layer_norm", "rms_norm", "activation", "kv_write", "pooling", "sample", "embedding"} <= ops
