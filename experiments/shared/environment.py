"""Where a result comes from: versions, revision, hardware."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from common.cost.macs import peak_memory_mib
from common.runtime.files import ROOT
from common.runtime.processes import process_count

PACKAGES = ("torch", "diffusers", "transformers", "lightning", "hydra-core", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, revision, device, cores and memory (MiB): of the machine, and the most that this process has held."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "revision": revision(),
        "device": f"{device.type}: {torch.cuda.get_device_name(device) if device.type == 'cuda' else processor()}",
        "processes": process_count(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "system": platform.platform(),
        "peak_memory_mib": round(peak_memory_mib()),
    }


def revision() -> dict[str, Any]:
    """The commit of the project's repository and whether tracked files differ from it; else the installed version."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) == ROOT:
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        return {"version": version("bonsai-diffusion")}
    except PackageNotFoundError:
        return {}


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
