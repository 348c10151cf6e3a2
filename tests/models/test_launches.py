"""What a layer launches on a GPU: matrix products, and one kernel for each thing that can't be part of one."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support.checkpoints import tiny
from support.forward import Decoding, encoder_batch, relative_error, texts
from tercet.kernels import dispatch
from tercet.server.models import load_model

PRODUCTS = {"linear", "mm", "addmm", "_addmm_activation", "_linear_pointwise"}


class Recorder(TorchDispatchMode):
    """Counts torch's operators that are more than views, and calls of ours, whose insides are not looked at."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self.inside = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.inside and not func.is_view:
            name = func.overloadpacket.__name__
            self.counts["product" if name in PRODUCTS else name] += 1
        return result


@contextmanager
def recording(monkeypatch):
    recorder = Recorder()
    call = dispatch.call

    def counted(op, *arguments, **options):
        recorder.counts[op] += 1
        recorder.inside += 1
        try:
            return call(op, *arguments, **options)
        finally:
            recorder.inside -= 1

    with monkeypatch.context() as patch, recorder:
        patch.setattr(dispatch, "call", counted)
        yield recorder.counts


def encoding(model, monkeypatch):
    batch = encoder_batch(texts(9, 17))
    with recording(monkeypatch) as counts:
        model.encode(batch)
    return counts


def decoding(model, monkeypatch):
    """A step of two rows, one token each."""
    sources = texts(8, 5, seed=1) if model.family == "seq2seq" else None
    rows = Decoding(model, 2, sources=sources)
    rows.read(texts(4, 7))
    step, taken = model.decode, Counter()

    def recorded(*arguments):
        with recording(monkeypatch) as counts:
            hidden = step(*arguments)
        taken.update(counts)
        return hidden

    monkeypatch.setattr(model, "decode", recorded)
    rows.read(texts(1, 1, seed=2))
    return taken


CASES = {
    "bert": (encoding, {"product": 4, "attention": 1, "layer_norm": 2, "activation": 1}),
    "gpt2": (decoding, {"product": 4, "kv_write": 1, "paged_attention": 1, "layer_norm": 2, "activation": 1}),
    "llama": (decoding, {"product": 4, "kv_write": 1, "paged_attention": 1, "rms_norm": 2, "activation": 1}),
    "qwen3": (decoding, {"product": 4, "kv_write": 1, "paged_attention": 1, "rms_norm": 2, "activation": 1}),
    "t5": (decoding, {"product": 6, "kv_write": 1, "paged_attention": 2, "rms_norm": 3, "activation": 1}),
}
LAYERS = {"bert": "num_hidden_layers", "gpt2": "n_layer", "t5": "num_decoder_layers"}


@pytest.fixture
def reference_kernels():
    """The ops one by one, as on a GPU: a CPU's products end in more activations."""
    dispatch.select("reference")
    yield
    dispatch.select("auto")


@pytest.mark.parametrize("row", CASES)
def test_a_layer_has_no_pass_to_spare(tmp_path, monkeypatch, reference_kernels, row):
    """The third layer costs what three launch more than two: no copy, cast or sum of its own."""
    count, expected = CASES[row]
    found = []
    for layers in (2, 3):
        config = {LAYERS.get(row, "num_hidden_layers"): layers}
        if row == "qwen3":
            config["layer_types"] = ["full_attention"] * layers
        model = load_model(tiny(tmp_path / str(layers), row, **config), device=torch.device("cpu"), dtype="float32")
        found.append(count(model, monkeypatch))
    two, three = found
    assert three - two == expected
    assert not two - three


def test_products_end_in_what_cublas_can_do(tmp_path, monkeypatch, reference_kernels):
    """On a GPU, where there is a bias: ReLU, which is the same on a CPU, and GELU by tanh."""
    model = load_model(tiny(tmp_path / "opt", "opt"), device=torch.device("cpu"), dtype="float32")
    hidden, cuda = model.read(encoder_batch(texts(9, 17))), torch.device("cuda")
    for layer in model.transformer.decoder.layers:
        layer.feedforward.body.prepare(cuda)
    with recording(monkeypatch) as counts:
        fused = model.read(encoder_batch(texts(9, 17)))
    assert counts["activation"] == 0
    assert relative_error(fused, hidden) <= 1e-6
    for row, ends in {"gpt2": True, "bert": None, "llama": None, "t5-encoder": None}.items():
        model = load_model(tiny(tmp_path / row, row), device=torch.device("cpu"), dtype="float32")
        body = (model.transformer.decoder or model.transformer.encoder).layers[0].feedforward.body
        body.prepare(cuda)
        assert body.ends_in_gelu is ends
