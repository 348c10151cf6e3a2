"""What a figure was measured on: hardware, versions, commit and date."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "ctranslate2", "grpcio", "numpy")
ROOT = Path(__file__).parent.parent
SOURCES = ("benchmarks", "kernels", "server", "clients", "protos")


def cpu_name() -> str:
    """The processor's name as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def memory_gib() -> float:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def gpu_name() -> str | None:
    """The first GPU's name, as NVIDIA spells it; None where torch sees none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def gpu_gib() -> float:
    """Memory of the first GPU."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**30


def gpu_software() -> str | None:
    """The GPU's memory, and the versions that its kernels come from."""
    import torch

    if not torch.cuda.is_available():
        return None
    return f"{gpu_gib():.0f} GiB, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def versions() -> dict[str, str]:
    """Installed versions of what competes; a missing package is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the source tree, marked if files differ from it; "unknown" outside a repository."""
    if shutil.which("git") is None:
        return "unknown"
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def sources() -> str:
    """A hash of the source files: what was measured, in a copy without a repository too."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def describe() -> dict[str, object]:
    """The head of every report."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "sources": sources(),
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gib": round(memory_gib(), 1),
        "gpu": gpu_name(),
        "gpu_software": gpu_software(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": os.getloadavg()[0],
        "versions": versions(),
    }
