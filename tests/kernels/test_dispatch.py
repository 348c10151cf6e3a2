"""What runs, why not, and that a CPU never imports triton."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import tercet.kernels
from tercet.kernels import UnsupportedError, attention, dispatch, rms_norm


def norm_of(x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, torch.ones(x.shape[1], dtype=x.dtype), eps=1e-6)


def test_launches_count_what_ran(implementation):
    key = f"rms_norm/{implementation}"
    before = dispatch.launches().get(key, 0)
    norm_of(torch.ones(2, 4))
    assert dispatch.launches()[key] == before + 1


def test_auto_is_cpu_on_a_cpu():
    dispatch.select("auto")
    assert dispatch.selected(torch.device("cpu")) == "cpu"
    assert dispatch.selected(torch.device("cuda")) == "triton"


def test_unknown_implementation():
    with pytest.raises(ValueError, match="'cuda'"):
        dispatch.select("cuda")
    assert dispatch.unsupported_reasons("rms_norm", "cuda", device="cpu")
    assert dispatch.unsupported_reasons("batch_norm", "cpu", device="cpu")


def test_reasons_are_sentences(monkeypatch):
    assert dispatch.unsupported_reasons("attention", "triton", device="cpu", head_dim=64) == []
    assert dispatch.unsupported_reasons("attention", "reference", device="cpu", dtype=torch.float64) == []
    assert "float64" in dispatch.unsupported_reasons("attention", "triton", device="cpu", dtype=torch.float64)[0]
    assert "512" in dispatch.unsupported_reasons("attention", "triton", device="cuda", head_dim=512)[0]
    for op in ("attention", "head_topk"):
        assert "bfloat16" in dispatch.unsupported_reasons(op, "triton", device="cpu", dtype=torch.bfloat16)[0]
    assert "cuda" in dispatch.unsupported_reasons("attention", "cpu", device="cuda")[0]
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "TRITON_INTERPRET" in dispatch.unsupported_reasons("pad", "triton", device="cpu")[0]


def test_old_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(dispatch, "_capability", lambda device: (7, 5))
    dispatch._reasons.cache_clear()
    reasons = dispatch.unsupported_reasons("rms_norm", "triton", device="cuda")
    dispatch._reasons.cache_clear()
    assert reasons == ["the GPU has compute capability 7.5, kernels need 8.0"]


def test_padding_of_float64_is_refused():
    assert "float64" in dispatch.unsupported_reasons("pad", "triton", device="cpu", dtype=torch.float64)[0]
    assert dispatch.unsupported_reasons("unpad", "triton", device="cpu", dtype=torch.float64) == []
    assert dispatch.unsupported_reasons("pad", "cpu", device="cpu", dtype=torch.float64) == []


def test_layouts_that_kernels_cannot_read_are_refused():
    """Never a wrong number: a column slice is refused, but for q, k and v, whose tokens may lie apart."""
    x, ints = torch.randn(6, 4, 16), torch.tensor([6], dtype=torch.int32)
    rows = {"q_start": ints - 6, "kv_start": ints - 6, "q_length": ints, "kv_length": ints}
    rows |= {"longest_q": 6, "longest_kv": 6}
    wide, bias = torch.randn(6, 8, 16)[:, :4], torch.randn(4, 18)[:, :9]
    pages, table = torch.randn(9, 4, 4, 32)[..., :16], torch.zeros(1, 4, dtype=torch.int32)
    whole = pages.contiguous()
    paged = {name: value for name, value in rows.items() if name != "kv_start"}
    dispatch.select("triton")
    try:
        with pytest.raises(UnsupportedError, match="not contiguous"):
            norm_of(torch.randn(4, 16)[:, :8])
        with pytest.raises(UnsupportedError, match="the heads of a token"):
            attention(torch.randn(6, 16, 4).transpose(1, 2), x, x, **rows)
        with pytest.raises(UnsupportedError, match="the heads of a token"):
            attention(x, pages, pages, **paged, page_table=table)
        with pytest.raises(UnsupportedError, match="beside q, k and v"):
            attention(x, x, x, **rows, bias=bias)
        with pytest.raises(UnsupportedError, match="beside q, k and v"):
            attention(x, whole, whole, **paged, page_table=table, key_rows=table.new_zeros(1, 12)[:, ::2])
        with pytest.raises(UnsupportedError, match="different distances"):
            attention(x, wide, x, **rows)
        assert attention(wide, x, x, **rows).isfinite().all()
    finally:
        dispatch.select("auto")


def test_refusal_is_typed():
    dispatch.select("triton")
    try:
        with pytest.raises(UnsupportedError, match="rms_norm can't run on triton: kernels compute in") as error:
            norm_of(torch.ones(2, 4, dtype=torch.float64))
    finally:
        dispatch.select("auto")
    assert error.value.op == "rms_norm"
    assert error.value.implementation == "triton"
    assert len(error.value.reasons) == 1


def test_every_op_has_every_implementation():
    for op in dispatch.KERNEL_MODULES:
        assert callable(getattr(tercet.kernels, op))
        for implementation in dispatch.IMPLEMENTATIONS:
            assert callable(dispatch._function(op, implementation))


def test_public_names_exist():
    others = {"dispatch", "BeamLanes", "SPLIT_KV_QUERIES", "UnsupportedError"}
    assert set(dispatch.KERNEL_MODULES) | others == set(tercet.kernels.__all__)


def test_a_cpu_never_imports_triton():
    program = (
        "import sys, torch; from tercet.kernels import layer_norm;"
        "layer_norm(torch.ones(2, 4), torch.ones(4), eps=1e-6);"
        "sys.exit('triton' in sys.modules)"
    )
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
