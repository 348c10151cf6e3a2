"""What the machine has to share out: devices, their free memory, and cores. Never imports torch."""

from __future__ import annotations

import math
import os
import re
import subprocess
from importlib import metadata
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MIB = 1 << 20


class DeviceError(ValueError):
    """A device that this machine does not have."""


def resolve_device(device: str) -> str:
    """Makes "cpu" or "cuda:N" of "auto", "cpu", "cuda" or "cuda:N"; `auto` is the first visible GPU that torch can use.

    Raises DeviceError.
    """
    if device == "auto":
        return "cuda:0" if _gpus_visible() and not metadata.version("torch").endswith("+cpu") else "cpu"
    if device == "cpu":
        return device
    if not (match := re.fullmatch(r"cuda(?::(\d{1,3}))?", device)):
        raise DeviceError(f"device: {device!r} is not auto, cpu, cuda or cuda:N")
    if not _gpus_visible():
        raise DeviceError(f"device: {device!r} is asked for, but no NVIDIA GPU is visible")
    return f"cuda:{match[1] or 0}"


def free_memory(device: str) -> int:
    """Bytes that are free on a device now: what the container may still take, or what the GPU reports.

    Raises DeviceError where a GPU does not say.
    """
    return _free_gpu_memory(int(device.removeprefix("cuda:"))) if device != "cpu" else _free_cpu_memory()


def cores() -> int:
    """Cores that this process may use: its affinity, cut by the container's quota."""
    affinity = len(os.sched_getaffinity(0))
    quota = _cgroup_words("cpu.max")
    if len(quota) == 2 and quota[0] != "max":
        return max(1, min(affinity, math.ceil(int(quota[0]) / int(quota[1]))))
    return affinity


def _gpus_visible() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def _free_gpu_memory(index: int) -> int:
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if visible and index >= len(visible):
        raise DeviceError(f"device: cuda:{index} is asked for, but {len(visible)} GPUs are visible")
    name = visible[index] if visible else str(index)
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", f"--id={name}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return int(answer.stdout.split()[0]) * _MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise DeviceError(f"device: nvidia-smi does not tell the free memory of GPU {name}: {error}") from None


def _free_cpu_memory() -> int:
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    available = int(re.findall(r"MemAvailable:\s+(\d+) kB", meminfo)[0]) << 10
    limit = _cgroup_words("memory.max")
    if limit and limit[0] != "max":
        stat = dict(zip(*[iter(_cgroup_words("memory.stat"))] * 2, strict=False))
        held = int(_cgroup_words("memory.current")[0]) - int(stat.get("inactive_file", 0))  # page cache is given back
        return max(0, min(available, int(limit[0]) - held))
    return available


def _cgroup_words(name: str) -> list[str]:
    """The words of a cgroup v2 file of this process's container; none where there is no limit."""
    try:
        return (_CGROUP / name).read_text(encoding="ascii").split()
    except OSError:
        return []
