"""The GPU's clocks, power and temperature, as NVIDIA's management library tells them."""

from __future__ import annotations

import functools
import importlib
from typing import Any


class GpuState:
    """Reads one GPU; nothing is ever set."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    def clock(self) -> float:
        """The multiprocessors' clock, in MHz."""
        return float(self._library.nvmlDeviceGetClockInfo(self._handle, self._library.NVML_CLOCK_SM))

    def read(self) -> dict[str, float]:
        """Clocks in MHz, power in W, temperature in °C."""
        library, handle = self._library, self._handle
        return {
            "SM MHz": self.clock(),
            "memory MHz": float(library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM)),
            "W": library.nvmlDeviceGetPowerUsage(handle) / 1000,
            "°C": float(library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)),
        }


@functools.cache
def gpu_state() -> GpuState | None:
    """The first GPU that torch sees; None where there is none or the library does not tell."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        library: Any = importlib.import_module("pynvml")  # the package nvidia-ml-py: machines with GPUs have it
    except ModuleNotFoundError:
        return None
    try:
        library.nvmlInit()
        state = GpuState(library, library.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}"))
        state.read()
    except library.NVMLError:
        return None
    return state
