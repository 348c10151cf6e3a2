"""On a GPU everything is where it belongs, and no request waits for a compiler."""

import pytest
import torch

from support.architectures import ENCODERS, SEQ2SEQ
from support.checkpoints import tiny
from support.engine import generate
from support.meta_device import MetaDevice
from tercet.kernels import dispatch
from tercet.server.engine import tuning
from tercet.server.engine.loading import StartError
from tercet.server.models.positions import Rotary
from tercet.server.wire import Embed, FillMask, Score, token_ids

LENGTHS = (1, 3, 9, 16, 17, 30)
TEXTS = [token_ids(3 + place % 80 for place in range(length)) for length in LENGTHS]
ONES = [token_ids([1]) * length for length in LENGTHS]
SAMPLING = (
    {},
    {"logprobs": True, "top_logprobs": 2},
    {"temperature": 0.9, "top_k": 20, "n": 2},
    {"temperature": 0.9, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.3},
    {"temperature": 0.7, "typical_p": 0.5},
    {"num_beams": 3, "suppressed_ids": [5, 7], "min_new_tokens": 2},
    {"num_beams": 2},
)


@pytest.fixture(autouse=True)
def _process(monkeypatch):
    """Few and small graphs; puts back what an engine sets for its process."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # as others find the kernels
    monkeypatch.setattr(tuning, "DECODE_ROWS", (2, 4))
    monkeypatch.setattr(tuning, "ENCODER_TOKENS", (16, 64))
    monkeypatch.setattr("tercet.server.engine.loading.ENCODER_TOKENS", (16, 64))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    dispatch.select("auto")


def messages(row):
    """All that may be asked of a row's model, of every length."""
    family = "seq2seq" if row in SEQ2SEQ else "encoder" if row in ENCODERS else "decoder"
    start = token_ids([0] if family == "seq2seq" else [])
    for pooling in ("mean", "cls", "last", "max", "none"):
        yield [Embed(id=key, token_ids=ids, pooling=pooling, normalize=True) for key, ids in enumerate(TEXTS)]
    for texts in (ONES, ONES[:-1]):  # too many for a graph, and not
        yield [Embed(id=key, token_ids=x, type_ids=x, pooling="mean", normalize=True) for key, x in enumerate(texts)]
    if row == "bert":
        yield [FillMask(id=key, token_ids=ids, positions=[0], top_k=3) for key, ids in enumerate(TEXTS)]
    if family == "encoder":
        return
    yield [
        Score(id=key, token_ids=ids, decoder_ids=start and start + ids, top_logprobs=key)
        for key, ids in enumerate(TEXTS[1:])
    ]
    for options in SAMPLING:
        yield [generate(key, ids, 4, decoder_ids=start, salt=str(options), **options) for key, ids in enumerate(TEXTS)]


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        ("bert", "packed"),
        ("bert", "padded"),
        ("distilbert", "packed"),
        ("qwen3", "packed"),
        ("t5", "packed"),
        ("t5", "padded"),
    ],
)
def test_after_the_warm_up_nothing_is_compiled_any_more(tmp_path, row, layout):
    device = MetaDevice()
    folder = tiny(tmp_path, row, "BertForMaskedLM" if row == "bert" else None)
    engine = device.engine(folder, max_batch_tokens=256, layout=layout, dtype="bfloat16")
    warm = set(device.variants)
    assert len(warm) > 5
    for asked in messages(row):
        assert device.run(engine, *asked) == []
    assert [device.variants[variant] for variant in set(device.variants) - warm] == []


def test_what_stayed_on_the_host_is_noticed(tmp_path, monkeypatch):
    prepare = Rotary.prepare
    monkeypatch.setattr(Rotary, "prepare", lambda rotary, device: prepare(rotary, torch.device("cpu")))
    with pytest.raises(StartError, match="warm-up failed"):
        MetaDevice().engine(tiny(tmp_path, "llama"))
