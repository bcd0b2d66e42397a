"""Start runners: as processes of this machine, or as Ray Jobs on a cluster's head."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from dgg_ray.service.checks import Rules


@dataclass(frozen=True)
class Launcher(ABC):
    """Starts runners.

    rules: for the studies. root: folder of the results. options: further ones of the runner's command line.
    """

    rules: Rules
    root: Path
    options: tuple[str, ...] = ()

    @abstractmethod
    def start(self, runner: str) -> None:
        """Start the runner with this id and return at once."""

    @abstractmethod
    def output_of(self, runner: str) -> str:
        """The place, for a person, where the runner writes its troubles before it runs a study."""

    def command(self, runner: str, python: str) -> list[str]:
        words = [python, "-m", "dgg_ray.service.runner", runner, "--store", self.rules.store]
        words += ["--root", str(self.root), "--data", self.rules.data]
        for root in self.rules.roots:
            words += ["--allow", root]
        return [*words, *self.options]


@dataclass(frozen=True)
class ProcessLauncher(Launcher):
    """Starts runners as processes of this machine, which outlive the server."""

    def output_of(self, runner: str) -> str:
        return str(self.root / ".runners" / f"{runner}.log")

    def start(self, runner: str) -> None:
        file = Path(self.output_of(runner))
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as log:
            subprocess.Popen(
                self.command(runner, sys.executable),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )


@dataclass(frozen=True)
class JobLauncher(Launcher):
    """Starts runners as Ray Jobs on the head that the server runs beside. dashboard: the head's address."""

    dashboard: str = "http://127.0.0.1:8265"

    def output_of(self, runner: str) -> str:
        return f"the log of the Ray Job {job_id(runner)}"

    def start(self, runner: str) -> None:
        from dgg_ray.remote.ray_jobs import RayJobsClient  # late: it imports Ray

        command = shlex.join([*self.command(runner, "python"), "--ray-address", "auto"])
        name = f"service runner {runner}"  # among the cluster's jobs
        metadata = {"study": name, "parts": {}, "store": self.rules.store, "out": str(self.root)}
        package = str(Path(__file__).parents[1])  # workers have its dependencies, not itself
        client = RayJobsClient(self.dashboard)
        client.submit(job_id(runner), f"exec {command}", metadata, py_modules=[package])


def job_id(runner: str) -> str:
    return f"service-runner-{runner}-1"
