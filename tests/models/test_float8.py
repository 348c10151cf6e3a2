"""`--dtype fp8`: products of layers in 8-bit floats, how far they are off, and that all else stays as it was."""

import json

import pytest
import torch
from safetensors.torch import save_file

from support.checkpoints import tiny
from support.forward import encoder_batch, head_logits, relative_error, texts
from tercet.server.models import CheckpointError, Source, float8, load_model
from tercet.server.models.layers import Linear

CPU = torch.device("cpu")
# Checkpoints of each family, tied and untied, all of whose sizes are multiples of 16.
ROWS = {
    "bert": {"intermediate_size": 96},
    "llama": {"intermediate_size": 96},
    "llama-tied": {"intermediate_size": 96},
    "t5": {"d_model": 48, "d_ff": 80},
    "t5-relu": {"d_model": 48, "d_ff": 80},
}
HALF_STEP = 2.0**-4  # the greatest relative error of a value that e4m3 rounds, of three bits after the point


def test_values_are_within_half_a_step_of_their_row():
    x = torch.randn(7, 240) * torch.logspace(-12, 12, 7)[:, None]
    values, scale = float8.quantize(x)
    assert values.dtype == torch.float8_e4m3fn
    assert (values.float().abs().amax(1) == 448).all()
    error = (values.float() * scale - x).abs()
    smallest = scale * 2.0**-6  # below it steps are equal
    assert (error <= torch.maximum(x.abs(), smallest) * HALF_STEP * 1.001).all()
    assert error.norm() > 0.01 * x.norm()
    for row in range(7):
        alone, _ = float8.quantize(x[row : row + 1])
        assert torch.equal(alone[0].float(), values[row].float())


def test_rows_of_zeros_stay_and_rows_that_are_not_finite_show_it():
    x = torch.zeros(3, 32)
    x[1, 3], x[2, 4] = torch.nan, torch.inf
    values, scale = float8.quantize(x)
    back = values.float() * scale
    assert torch.equal(back[0], x[0])
    assert not back[1:].isfinite().any(1).all()
    product = float8.Float8Weight(torch.randn(16, 32))(x.bfloat16(), None)
    assert product.isfinite().all(1).tolist() == [True, False, False]


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("tokens", [1, 5, 130])
def test_a_product_is_that_of_the_quantized_numbers(tokens, bias):
    weight, x = torch.randn(48, 80).bfloat16(), torch.randn(tokens, 80).bfloat16()
    offset = torch.randn(48).bfloat16() if bias else None
    product = float8.Float8Weight(weight)
    (values, scale), (rounded, scales) = float8.quantize(weight), float8.quantize(x)
    exact = (rounded.double() * scales) @ (values.double() * scale).T + (0 if offset is None else offset.double())
    ours = product(x, offset)
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours, exact.float()) <= 4e-3
    plain = torch.nn.functional.linear(x.double(), weight.double(), None if offset is None else offset.double())
    assert 1e-3 < relative_error(ours, plain.float()) < HALF_STEP


def outputs(model):
    """Final hidden states, and logits where there is a head."""
    (ids,), (source,) = texts(23), texts(17, seed=1)
    if model.family == "encoder":
        return model.encode(encoder_batch([ids])), None
    batch = encoder_batch([source])
    sourced = Source(model.encode(batch), batch.rows) if model.family == "seq2seq" else None
    hidden = model.read(encoder_batch([ids]), sourced)
    return hidden, head_logits(model, hidden)


@pytest.mark.parametrize("row", ROWS)
def test_models_of_every_family(tmp_path, row):
    folder = tiny(tmp_path / row, row, **ROWS[row])
    plain, model = (load_model(folder, device=CPU, dtype=dtype) for dtype in ("bfloat16", "fp8"))
    layers = [(name, module) for name, module in model.transformer.named_modules() if isinstance(module, Linear)]
    quantized = {name for name, module in layers if module.float8 is not None}
    assert quantized == {name for name, _ in layers if ".layers." in name}
    assert plain.quantization_error is None
    assert 0.01 < model.quantization_error < HALF_STEP / 2
    assert model.dtype == torch.bfloat16
    assert model.parameters == plain.parameters
    assert model.weight_bytes < plain.weight_bytes
    for ours, expected in zip(outputs(model), outputs(plain), strict=True):
        if expected is not None:
            assert ours.dtype == expected.dtype
            assert 0.001 < relative_error(ours, expected) < 0.8  # random weights make much of little; 1.4 is unrelated


def test_the_error_is_that_of_the_merged_weights(tmp_path):
    """An adapter is merged before anything is rounded."""
    folder = tiny(tmp_path / "llama", "llama", **ROWS["llama"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.1.self_attn.o_proj"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(1, 96), f"{name}.lora_B.weight": torch.full((48, 1), 100.0)},
        adapter / "adapter_model.safetensors",
    )
    merged = load_model(folder, device=CPU, dtype="fp8", adapter=adapter)
    weight = merged.transformer.decoder.layers[1].attention.body.output.float8
    restored = weight.values.float() * weight.scale.t()
    assert relative_error(restored, torch.full((48, 96), 100.0)) < 0.1
    assert merged.quantization_error != load_model(folder, device=CPU, dtype="fp8").quantization_error


def test_maps_of_other_sizes_stay(tmp_path):
    model = load_model(tiny(tmp_path / "bert", "bert", intermediate_size=88), device=CPU, dtype="fp8")
    layer = model.transformer.encoder.layers[0]
    assert layer.feedforward.body.up.float8 is None
    assert layer.attention.body.qkv.float8 is not None
    assert outputs(model)[0].isfinite().all()


def test_what_is_refused(tmp_path, monkeypatch):
    narrow = {"hidden_size": 60, "intermediate_size": 88}
    with pytest.raises(CheckpointError, match="dtype is fp8, but no layer has maps of multiples of 16"):
        load_model(tiny(tmp_path / "narrow", "bert", **narrow), device=CPU, dtype="fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(CheckpointError, match=r"dtype is fp8, but it needs .* capability 8\.9, .* has 8\.6"):
        load_model(tiny(tmp_path / "bert", "bert"), device=torch.device("cuda"), dtype="fp8")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(CheckpointError, match="another format"):
        load_model(tmp_path / "bert", device=torch.device("cuda"), dtype="fp8")
