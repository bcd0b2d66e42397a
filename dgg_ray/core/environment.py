"""The environment in which a stage was trained. A stage's record holds it; the stage key does not.

The same stage gives other digits on another device, driver or version of torch, and on a processor whose
instructions differ or are restricted. With `MKL_CBWR=COMPATIBLE` on the same machine, the mean final score of
four blocks moved from 63.9 to 65.4, because one block moved from 55.5 to 61.3. The parts of the environment
that can change digits make up the machine type. hardware_check.py measures how far the types differ.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from dgg_ray.core.hashing import digest

PACKAGES = ("dgg_ray", "torch", "transformers", "peft", "ray", "numpy", "pillow")
KIND_PARTS = (
    *("device", "instructions", "driver", "cuda", "torch", "transformers", "peft", "numpy", "pillow"),
    *("threads", "switches"),
)
CPU_PARTS = ("threads", "instructions")  # with a GPU, the processor only feeds it and changes no digit
VECTOR_FLAGS = ("sse4", "avx", "fma", "f16c", "amx", "asimd", "sve", "bf16", "i8mm", "fphp")  # prefixes
# Environment variables that select kernels or their precision:
KERNEL_SWITCHES = (
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


class MachineType(NamedTuple):
    """A machine type. name: the parts that distinguish it; id: digest of the name, 12 hex digits."""

    id: str
    name: str


def machine_type(environment: Mapping[str, str]) -> MachineType:
    """Return the machine type of a record's `environment`."""
    parts = {name: environment[name] for name in KIND_PARTS if environment.get(name)}
    device = parts.pop("device", UNKNOWN)
    if "driver" in parts:
        parts = {name: value for name, value in parts.items() if name not in CPU_PARTS}
    return machine_type_named(", ".join([device, *(f"{name} {value}" for name, value in parts.items())]))


@cache
def machine_type_named(name: str) -> MachineType:
    """Return the machine type with this name."""
    return MachineType(digest(name)[:12], name)


def process_environment() -> dict[str, str]:
    """Describe this process's environment, as each stage's record holds it.

    device: model of the GPU, or of the processor; driver, cuda: empty without a GPU.
    instructions: the instruction set that PyTorch uses, and a digest of all that the processor has.
    switches: the KERNEL_SWITCHES that are set.
    source: digest of this package's files.
    packages: digest of all installed distributions, by name and version.
    deepspeed: its version, if it was imported.
    """
    import torch  # late: a simulated worker does not need it

    has_gpu = torch.cuda.is_available()
    environment = {
        "python": platform.python_version(),
        **{package: package_version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name() if has_gpu else cpu_model(),
        "instructions": f"{torch.backends.cpu.get_cpu_capability()} {cpu_flags_digest()}",
        "switches": " ".join(
            f"{name}={os.environ[name]}" for name in KERNEL_SWITCHES if os.environ.get(name)
        ),
        "driver": gpu_driver_version() if has_gpu else "",
        "cuda": (torch.version.cuda or "") if has_gpu else "",
        "host": socket.gethostname(),
        "threads": str(torch.get_num_threads()),
        "source": package_source_digest(),
        "packages": installed_packages_digest(),
    }
    if "deepspeed" in sys.modules:
        environment["deepspeed"] = package_version("deepspeed")
    return environment


@cache
def package_version(package: str) -> str:
    """Return the installed version of a package; "not installed" for code that was only sent along."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@cache
def cpuinfo(*names: str) -> str:
    """Return the first processor's value for the first of these names that the system knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    values = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))
    }
    return next(filter(None, map(values.get, names)), "") or ""


def cpu_model() -> str:
    """Return the processor's model, or its architecture where the model is unknown."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags_digest() -> str:
    """Return 6 hex digits of the processor's vector instructions, by which libraries select kernels."""
    flags = cpuinfo("flags", "Features").split()
    return digest(sorted(flag for flag in flags if flag.startswith(VECTOR_FLAGS)))[:6]


@cache
def gpu_driver_version() -> str:
    """Return the version of the GPU driver, which PyTorch does not know; `unknown` without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return next(iter(output.split()), UNKNOWN)


@cache
def package_source_digest() -> str:
    """Return 12 hex digits of this package's code, with plug-ins that a user put into its folders."""
    root = Path(__file__).parents[1]
    files = {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in root.rglob("*.py")}
    return digest(files)[:12]


@cache
def installed_packages_digest() -> str:
    """Return 12 hex digits of the installed distributions; equal for processes with equal sets."""
    versions = {
        (d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in metadata.distributions()
    }
    return digest(versions)[:12]
