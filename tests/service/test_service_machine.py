"""What the machine has, and how models share it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tercet.server import budget, config, machine
from tercet.server.machine import DeviceError, resolve_device

GIB = 1 << 30


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Pretends that the machine has GPUs, or not."""

    def pretend(visible: bool, version: str = "2.13.0") -> None:
        monkeypatch.setattr(machine, "_gpus_visible", lambda: visible)
        monkeypatch.setattr(machine.metadata, "version", lambda _: version)

    return pretend


@pytest.mark.parametrize(
    ("visible", "version", "device", "resolved"),
    [
        (False, "2.13.0", "auto", "cpu"),
        (True, "2.13.0", "auto", "cuda:0"),
        (True, "2.13.0+cpu", "auto", "cpu"),
        (True, "2.13.0", "cpu", "cpu"),
        (True, "2.13.0", "cuda", "cuda:0"),
        (True, "2.13.0", "cuda:3", "cuda:3"),
    ],
)
def test_devices(gpus, visible: bool, version: str, device: str, resolved: str):
    gpus(visible, version)
    assert resolve_device(device) == resolved


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "cuda:1234", "CPU", "mps"])
def test_a_device_that_is_none_is_refused(gpus, device: str):
    gpus(True)
    with pytest.raises(DeviceError, match=r"is not auto, cpu, cuda or cuda:N"):
        resolve_device(device)


def test_a_gpu_that_is_not_there_is_refused(gpus):
    gpus(False)
    with pytest.raises(DeviceError, match=r"'cuda:0' is asked for, but no NVIDIA GPU is visible"):
        resolve_device("cuda:0")


def test_an_empty_list_of_visible_devices_hides_every_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto") == "cpu"


def test_a_container_cuts_memory_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    whole = machine.free_memory("cpu")
    assert whole > 100 << 20
    (tmp_path / "memory.max").write_text("104857600\n")
    (tmp_path / "memory.current").write_text("50000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 10000000\nactive_file 5\n")
    assert machine.free_memory("cpu") == 104857600 - 40000000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory("cpu") > 104857600
    affinity = len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cores() == affinity
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert machine.cores() == 1


def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], toml: str = "") -> dict[str, tuple]:
    """The memory in GiB and the threads of models with weights of so many GiB, on a CPU with 100 GiB and 8 cores."""
    monkeypatch.setattr(machine, "free_memory", lambda _: 100 * GIB)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    checkpoints = {}
    for name, size in sizes.items():
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.truncate(size * GIB)  # sparse
        checkpoints[name] = tmp_path / name
    file = tmp_path / "tercet.toml"
    file.write_text(toml)
    sources = [f"{name}={path}" for name, path in checkpoints.items()]
    settings = config.load({"device": "cpu", "memory": 0.5}, sources, file, {})
    engines = budget.plan(settings, checkpoints, dict.fromkeys(checkpoints))
    return {engine.name: (round(engine.memory / GIB, 2), engine.threads) for engine in engines}


def test_models_get_their_weights_and_an_equal_part_of_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert plan(tmp_path, monkeypatch, {"a": 0, "b": 10}) == {"a": (20, 4), "b": (30, 4)}


def test_settings_of_a_model_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    toml = "[models.b]\nmemory_gib = 5\nthreads = 1"
    assert plan(tmp_path, monkeypatch, {"a": 1, "b": 1}, toml) == {"a": (45, 7), "b": (5, 1)}


def test_threads_that_models_have_for_themselves_are_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    toml = "[models.a]\nthreads = 3\n[models.b]\nthreads = 1"
    engines = plan(tmp_path, monkeypatch, dict.fromkeys("abcd", 0), toml)
    assert [threads for _, threads in engines.values()] == [3, 1, 2, 2]


def test_every_model_gets_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    threads = {threads for _, threads in plan(tmp_path, monkeypatch, {f"m{i}": 0 for i in range(20)}).values()}
    assert threads == {1}


def test_what_does_not_fit_is_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(budget.BudgetError) as error:
        plan(tmp_path, monkeypatch, {"a": 30, "b": 40})
    assert str(error.value) == "memory: cpu has 50.00 GiB for models, which need more: a 30.00 GiB, b 40.00 GiB"


def test_engines_hear_of_adapters_and_of_pickles(tmp_path: Path):
    settings = config.load({"device": "cpu"}, [f"a={tmp_path}", f"b={tmp_path}"], environment={})
    adapters = {"a": tmp_path / "adapter", "b": None}
    engines = budget.plan(settings, dict.fromkeys("ab", tmp_path), adapters)
    assert [(engine.adapter, engine.allow_pickle) for engine in engines] == [
        (str(tmp_path / "adapter"), False),
        (None, False),
    ]
    allowed = config.load({"device": "cpu", "allow_pickle": True}, [f"a={tmp_path}"], environment={})
    assert budget.plan(allowed, {"a": tmp_path}, {"a": None})[0].allow_pickle


@pytest.mark.parametrize(
    ("cores", "given", "count"), [(1, None, 1), (15, None, 1), (16, None, 2), (99, None, 4), (2, 7, 7)]
)
def test_front_ends_are_as_many_as_cores_allow_and_share_the_queues(
    cores: int, given: int | None, count: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "cores", lambda: cores)
    settings = config.Settings(
        models=(config.ModelSettings("m", "s"),), max_queue=10, max_queue_tokens=3, front_ends=given
    )
    front_ends = budget.plan_front_ends(settings, {"m": Path("/a")}, ["127.0.0.1:5"], Path("/metrics"))
    assert [front_end.number for front_end in front_ends] == list(range(count))
    for front_end in front_ends:
        own = front_end.settings
        assert (own.max_queue, own.max_queue_tokens) == (10 // count, max(1, 3 // count))
        assert own.max_queue_chars == settings.max_queue_chars // count
        assert (front_end.checkpoints, front_end.addresses, front_end.metrics) == (
            {"m": "/a"},
            ["127.0.0.1:5"],
            "/metrics",
        )


def test_one_model_may_do_without_the_prefix_cache(tmp_path: Path):
    """On unless said otherwise, for all models or for one; how many tokens a batch has the engine finds out itself."""
    file = tmp_path / "tercet.toml"
    file.write_text("[models.b]\nprefix_cache = false\nmax_batch_tokens = 512")
    sources = [f"{name}={tmp_path}" for name in "ab"]
    for flags, wanted in (({}, [True, False]), ({"prefix_cache": False}, [False, False])):
        settings = config.load({"device": "cpu", **flags}, sources, file, {})
        engines = budget.plan(settings, dict.fromkeys("ab", tmp_path), dict.fromkeys("ab"))
        assert [engine.prefix_cache for engine in engines] == wanted
        assert [engine.max_batch_tokens for engine in engines] == [0, 512]
