"""The environment of a process, and the machine type that its digits depend on."""

import os

import pytest
import torch

from dgg_ray.core import environment
from dgg_ray.core.environment import machine_type


def test_a_gpus_model_driver_and_cuda_make_its_type_and_its_host_does_not(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    environment.gpu_driver_version.cache_clear()
    here = environment.process_environment()
    environment.gpu_driver_version.cache_clear()
    assert (here["device"], here["driver"], here["cuda"]) == ("H100", "550.54.15", "12.8")
    assert machine_type(here).name.startswith("H100, driver 550.54.15, cuda 12.8, torch ")
    assert machine_type(here) == machine_type(here | {"host": "another", "threads": "64"})
    assert machine_type(here) != machine_type(here | {"driver": "560.0"})


def test_without_a_gpu_no_driver_is_asked_for_and_the_code_has_a_digest(monkeypatch):
    monkeypatch.setattr(environment, "gpu_driver_version", lambda: pytest.fail("asked"))
    here = environment.process_environment()
    assert here["driver"] == "" or torch.cuda.is_available()
    assert len(here["source"]) == len(here["packages"]) == 12
    assert {"ray", "torch", "transformers", "peft"} <= here.keys()


def test_instructions_and_kernel_switches_make_a_processors_type(monkeypatch):
    for name in environment.KERNEL_SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = environment.process_environment()
    assert machine_type(here) == machine_type(environment.process_environment())
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    held_back = environment.process_environment()
    assert held_back["switches"] == "MKL_CBWR=COMPATIBLE"
    monkeypatch.delenv("MKL_CBWR")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    plain = environment.process_environment()
    monkeypatch.setattr(environment, "cpu_flags_digest", lambda: "other")
    other = environment.process_environment()
    numpy = here | {"numpy": "1.0"}
    assert len({machine_type(each).id for each in (here, held_back, plain, other, numpy)}) == 5
    gpu = {"device": "H100", "driver": "550"}  # a processor that feeds a GPU changes no digit
    assert machine_type(here | gpu) == machine_type(other | gpu)
