"""Requests over gRPC computed by the Triton kernels, in Triton's interpreter: same answers as the CPU's path."""

import numpy as np
import pytest

from support.checkpoints import tiny_bert, tiny_llama, tiny_t5
from support.metrics import samples
from support.server import running_server
from tercet.client import Client

TEXTS = ["one", "one two three four five six seven", "two three", "six six six one four"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {"bert": tiny_bert(root / "bert"), "llama": tiny_llama(root / "llama"), "t5": tiny_t5(root / "t5")}


def answers(checkpoints, *flags, env=None):
    """What every model says, and every `op/impl` that ran."""
    with running_server(checkpoints, *flags, env=env) as server, Client(server.address) as client:
        said = {"bert": client.embed(TEXTS, model="bert")}
        for model in ("llama", "t5"):
            outputs = [client.generate(text, model=model, max_new_tokens=6, temperature=0) for text in TEXTS]
            sampled = client.generate(TEXTS[1], model=model, max_new_tokens=6, temperature=1.0, top_k=20, seed=7, n=2)
            said[model] = [output.token_ids for output in [*outputs, *sampled.outputs]]
        launches = samples(server, "tercet_kernel_launches_total")
    return said, {(labels["op"], labels["impl"]) for labels, count in launches if count > 0}


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_triton_answers_as_the_cpu(checkpoints, layout):
    expected, ran = answers(checkpoints, "--kernels", "cpu", "--layout", layout)
    assert {impl for _, impl in ran} <= {"cpu", "reference"}
    said, ran = answers(checkpoints, "--kernels", "triton", "--layout", layout, env={"TRITON_INTERPRET": "1"})
    np.testing.assert_allclose(said["bert"], expected["bert"], atol=TOLERANCE, rtol=TOLERANCE)
    assert said["llama"] == expected["llama"]
    assert said["t5"] == expected["t5"]
    assert {impl for _, impl in ran} == {"triton"}
    ops = {op for op, _ in ran}
    assert {"attention", "layer_norm", "rms_norm", "activation", "kv_write", "pooling", "sample", "embedding"} <= ops
    assert ("pad" in ops) == (layout == "padded")
