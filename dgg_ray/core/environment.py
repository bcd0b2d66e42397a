"""Where a stage was learned: kept with it, and no part of its key.

The same stage gives other digits on another device, driver or version of torch, and on a processor whose
instructions differ or are held back: with `MKL_CBWR=COMPATIBLE` on the same machine the mean final score of
four blocks moved from 63.9 to 65.4, as one of them moved from 55.5 to 61.3. What of that is worth knowing
apart is a kind of machine; how far kinds drift apart is measured by hardware_check.py.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from dgg_ray.core.hashing import digest
from dgg_ray.core.versions import version

PACKAGES = ("dgg_ray", "torch", "transformers", "peft", "ray", "numpy", "pillow")
OF_KIND = ("device", "instructions", "driver", "cuda", "torch", "transformers", "peft", "numpy", "pillow")
OF_KIND = (*OF_KIND, "threads", "switches")
OF_CPU = ("threads", "instructions")  # on a machine with a GPU they feed it, and change no digit
FLAGS = ("sse4", "avx", "fma", "f16c", "amx", "asimd", "sve", "bf16", "i8mm", "fphp")  # begin like these
# Variables of the environment that say which kernels are taken, and in what precision they work:
SWITCHES = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "ATEN_CPU_CAPABILITY",
    "OPENBLAS_CORETYPE",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
)
UNKNOWN = "unknown"


class Kind(NamedTuple):
    """A kind of machine. name: for people, all that tells it apart; id: its digest, 12 hex digits."""

    id: str
    name: str


def kind(environment: Mapping[str, str]) -> Kind:
    """The kind of machine that a record's `environment` is of."""
    parts = {name: environment[name] for name in OF_KIND if environment.get(name)}
    device = parts.pop("device", UNKNOWN)
    if "driver" in parts:
        parts = {name: value for name, value in parts.items() if name not in OF_CPU}
    return named(", ".join([device, *(f"{name} {value}" for name, value in parts.items())]))


@cache
def named(name: str) -> Kind:
    return Kind(digest(name)[:12], name)


def environment() -> dict[str, str]:
    """Of this process, as each stage's record keeps it.

    device: the GPU's model or the processor's; driver, cuda: empty without a GPU; instructions: of the
    processor, as PyTorch uses them and a digest of all that it has; switches: SWITCHES that are set.
    source: digest of this package's files; packages: of all distributions installed, by name and version, so
    that two processes with equal ones were set up alike; deepspeed: its version where it has been imported.
    """
    import torch  # here: a simulated worker does without it

    gpu = torch.cuda.is_available()
    found = {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name() if gpu else processor(),
        "instructions": f"{torch.backends.cpu.get_cpu_capability()} {flags()}",
        "switches": " ".join(f"{name}={os.environ[name]}" for name in SWITCHES if os.environ.get(name)),
        "driver": driver() if gpu else "",
        "cuda": (torch.version.cuda or "") if gpu else "",
        "host": socket.gethostname(),
        "threads": str(torch.get_num_threads()),
        "source": source(),
        "packages": packages(),
    }
    return found | ({"deepspeed": version("deepspeed")} if "deepspeed" in sys.modules else {})


@cache
def cpuinfo(*names: str) -> str:
    """The system's value for its first processor, under the first of these names that it knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))
    }
    return next(filter(None, map(found.get, names)), "") or ""


def processor() -> str:
    """The processor's model, as far as it says so."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def flags() -> str:
    """6 hex digits of the processor's vector instructions, which libraries choose their kernels by."""
    return digest(sorted(f for f in cpuinfo("flags", "Features").split() if f.startswith(FLAGS)))[:6]


@cache
def driver() -> str:
    """Version of the GPUs' driver, which PyTorch does not say; `unknown` where nvidia-smi is not there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return next(iter(said.split()), UNKNOWN)


@cache
def source() -> str:
    """12 hex digits of this package's own code, plug-ins of the user among it."""
    root = Path(__file__).parents[1]
    files = {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in root.rglob("*.py")}
    return digest(files)[:12]


@cache
def packages() -> str:
    """12 hex digits of what is installed: equal where the same constraints were met."""
    found = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in distributions()}
    return digest(found)[:12]
