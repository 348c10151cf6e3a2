"""Padded and packed batches of ragged rows: equal answers, one copy to the device a batch, padding done there."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from support.checkpoints import tiny_bert, tiny_llama, tiny_t5
from support.metrics import metric
from support.server import running_server
from tercet.client import Client

TEXTS = ["one", "two three four", "one two three four five six seven one two three", "six", "five four"] * 4


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """For each layout: every model's answers, and the token, batch and copy counts of each model."""
    root = tmp_path_factory.mktemp("checkpoints")
    checkpoints = {"bert": tiny_bert(root / "bert"), "llama": tiny_llama(root / "llama"), "t5": tiny_t5(root / "t5")}
    return {layout: serve(checkpoints, layout) for layout in ("packed", "padded")}


def serve(checkpoints, layout):
    with running_server(checkpoints, "--layout", layout) as server, Client(server.address) as client:
        before = counts(server, checkpoints)
        result = {"bert": client.embed(TEXTS, model="bert")}
        for model in ("llama", "t5"):
            with ThreadPoolExecutor(len(TEXTS)) as pool:
                generations = pool.map(
                    lambda text, model=model: client.generate(text, model=model, max_new_tokens=8, temperature=0), TEXTS
                )
                result[model] = [generation.token_ids for generation in generations]
        after = counts(server, checkpoints)
    return result, {model: {key: after[model][key] - before[model][key] for key in after[model]} for model in after}


def counts(server, models):
    return {
        model: {
            "real": metric(server, "tercet_batch_tokens_total", model=model, kind="real"),
            "padding": metric(server, "tercet_batch_tokens_total", model=model, kind="padding"),
            "batches": metric(server, "tercet_batch_size_count", model=model),
            "copies": metric(server, "tercet_host_to_device_copies_total", model=model),
        }
        for model in models
    }


def test_answers_are_equal(said):
    (packed, _), (padded, _) = said["packed"], said["padded"]
    np.testing.assert_allclose(packed["bert"], padded["bert"], atol=1e-5)
    assert packed["llama"] == padded["llama"]
    assert packed["t5"] == padded["t5"]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_one_copy_to_the_device_a_batch(said, layout):
    for count in said[layout][1].values():
        assert count["batches"] > 0
        assert count["copies"] == count["batches"]


def test_padding_is_counted(said):
    for model, count in said["packed"][1].items():
        assert count["padding"] == 0, model
        assert count["real"] > 0, model
    for model, count in said["padded"][1].items():
        assert count["padding"] > 0, model
        assert count["real"] == pytest.approx(said["packed"][1][model]["real"], rel=0.2), model
