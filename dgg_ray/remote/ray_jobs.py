"""A cluster's head, asked through Ray Jobs: which studies it runs, what they say; start one, stop one.

Whoever asks may be a laptop: nothing here joins the cluster. Every fault is a ClusterError within seconds,
with what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from dgg_ray.core.errors import ClusterError

for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(name).setLevel(logging.WARNING)  # they tell of each upload

WAIT_S = 5.0  # for a first answer; a tunnel over half the world has one within a second
STOP_S = 60  # for a driver to end its fleets, which keep stages that they are in the middle of
LOST_S = 60.0  # that a log is followed although the head does not answer
MINE = "dgg_ray"  # a job's metadata under this key are ours


class Job(NamedTuple):
    """A run of a study. number: 1 is the first of that name on this cluster; state: one of Ray's JobStatus.

    about: what was said of it when it was submitted; began, ended: seconds since 1970, 0 for not yet;
    code: what it exited with, None where it did not.
    """

    id: str
    study: str
    number: int
    state: str
    began: float
    ended: float
    message: str
    code: int | None
    about: dict[str, Any]

    @property
    def over(self) -> bool:
        return JobStatus(self.state).is_terminal()


class Head:
    """The head at an address such as http://127.0.0.1:8265; ClusterError where none answers us."""

    def __init__(self, address: str) -> None:
        self.address = address if "://" in address else f"http://{address}"
        around_proxies(self.address)
        token = None
        if (version := self.version()) is None:  # it wants a token, and says no word before it has one
            token = self.token()
            version = self.version(token)
        if version is None:
            raise ClusterError(
                f"{self.address} does not take this token; the cluster was started with another one. "
                f"Bring it: set RAY_AUTH_TOKEN, or copy the cluster's ~/.ray/auth_token here"
            )
        if version != ray.__version__:
            raise ClusterError(
                f"{self.address} runs Ray {version}, this machine Ray {ray.__version__}; both must be the "
                f"same: pip install ray=={version} here, or change the images in the cluster's file"
            )
        headers = {"Authorization": f"Bearer {token}"} if token else None
        with self.named():
            self.client = JobSubmissionClient(self.address, headers=headers)

    def version(self, token: str | None = None) -> str | None:
        """Ray's version there; None where that needs another token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{self.address}/api/version", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                return json.load(answer)["ray_version"]
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                return None
            raise self.no_jobs(f"HTTP {error.code}") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ClusterError(
                f"no answer from {self.address} ({reason}); is the cluster up, and the tunnel to it open? "
                f"`ray dashboard cluster.yaml` opens one to http://127.0.0.1:8265 and must stay open"
            ) from error
        except (ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            # another service's page, or no page at all; an address that is none
            raise self.no_jobs(f"{type(error).__name__}: {error}".strip()) from error

    def token(self) -> str:
        """The token of this machine, from where Ray looks for it."""
        place = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        with contextlib.suppress(OSError):
            if token := (os.environ.get("RAY_AUTH_TOKEN") or place.read_text(encoding="utf-8")).strip():
                return token
        raise ClusterError(
            f"{self.address} wants a token, and there is none here, neither in RAY_AUTH_TOKEN nor in "
            f"{place}; copy the one that the cluster was started with to {place}"
        )

    def no_jobs(self, found: str) -> ClusterError:
        return ClusterError(
            f"{self.address} is no Ray head that takes jobs ({found}); the address is the dashboard's, such "
            f'as http://127.0.0.1:8265, and the head needs pip install "ray[default]"'
        )

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Ray's and the network's errors as ours."""
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(f"{self.address} does not take this token; set RAY_AUTH_TOKEN") from error
        except (RuntimeError, ConnectionError, OSError) as error:
            if "status code 404" in str(error):
                raise self.no_jobs("HTTP 404") from error
            raise ClusterError(f"{self.address}: {str(error).splitlines()[0]}") from error

    # -- jobs --------------------------------------------------------------------------------------

    def jobs(self, study: str | None = None) -> list[Job]:
        """Runs of studies, or of one, the first one first."""
        with self.named():
            found = self.client.list_jobs()
        mine = [job(details) for details in found if MINE in (details.metadata or {})]
        return sorted((j for j in mine if study in (None, j.study)), key=lambda j: (j.study, j.number))

    def last(self, study: str) -> Job | None:
        return (self.jobs(study) or [None])[-1]

    def submit(self, id: str, entrypoint: str, about: Mapping[str, Any], **environment: Any) -> bool:
        """Start a job; False where there is one of that id already.

        environment: of Ray, such as working_dir."""
        environment["env_vars"] = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
        try:
            self.client.submit_job(
                entrypoint=entrypoint,
                submission_id=id,
                metadata={MINE: json.dumps(about)},
                runtime_env=environment,
            )
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            with self.named():
                raise
        return True

    def stop(self, job: Job) -> Job:
        """Ask it to end as Ctrl-C does, and wait until it has."""
        with self.named():
            self.client.stop_job(job.id)
            deadline = time.monotonic() + STOP_S + WAIT_S
            while not (now := self.now(job)).over and time.monotonic() < deadline:
                time.sleep(0.2)
        return now

    def now(self, of: Job) -> Job:
        with self.named():
            return job(self.client.get_job_info(of.id))

    def log(self, job: Job) -> str:
        with self.named():
            return self.client.get_job_logs(job.id)

    def follow(self, job: Job, write: Callable[[str], Any]) -> Job:
        """Pass on what the job says until it ends; a tunnel that breaks may be opened again meanwhile."""
        heard, lost = 0, 0.0

        async def listen() -> None:
            nonlocal heard, lost
            at = 0
            async for text in self.client.tail_job_logs(job.id):  # from its start, also the second time
                write(text[max(0, heard - at) :])
                at, lost = at + len(text), 0.0
                heard = max(heard, at)

        while True:
            try:
                asyncio.run(listen())
                now = self.now(job)
                if now.over:
                    return now
            except Exception as error:  # whatever a connection that breaks says
                lost = lost or time.monotonic()
                if time.monotonic() - lost > LOST_S:
                    raise ClusterError(
                        f"{self.address} does not answer any more ({error}); what runs there goes on: "
                        f"`dgg-ray logs {job.study} --follow --address {self.address}` listens again"
                    ) from error
            time.sleep(1)


def around_proxies(address: str) -> None:
    """Ask this machine itself, and the tunnels that begin on it, without the proxy of the environment."""
    host = urlsplit(address).hostname or ""
    if host == "localhost" or host.startswith("127.") or host == "::1":
        old = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""  # as who reads them prefers
        if host not in (hosts := [name.strip() for name in old.split(",")]) and hosts != ["*"]:
            os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [old, host]))


def job(details: Any) -> Job:
    about = json.loads(details.metadata[MINE])
    return Job(
        id=details.submission_id,
        study=about["study"],
        number=int(details.submission_id.rpartition("-")[2]),
        state=details.status.value,
        began=(details.start_time or 0) / 1000,
        ended=(details.end_time or 0) / 1000,
        message=details.message or "",
        code=details.driver_exit_code,
        about=about,
    )
