"""Talk to a cluster's head through Ray Jobs: list, start, follow and stop runs of studies.

The calling machine may be a laptop, because nothing here joins the cluster. Every failure becomes a
ClusterError within seconds; its message says what to do.
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
    logging.getLogger(name).setLevel(logging.WARNING)  # at INFO they log each upload

CONNECT_TIMEOUT_S = 5.0  # for the first answer; a tunnel to another continent answers within one second
STOP_TIMEOUT_S = 60  # for a driver to end its worker groups, which write mid-stage checkpoints first
RECONNECT_S = 60.0  # for the head to answer again while a log is followed
METADATA_KEY = "dgg_ray"  # jobs with metadata under this key are runs of studies


class Job(NamedTuple):
    """A run of a study on a cluster.

    number: counts the runs of that study on this cluster, from 1.
    state: one of Ray's JobStatus.
    started, ended: seconds since 1970; 0 if it has not.
    message: what Ray reports about the state.
    exit_code: None if the driver has not exited.
    metadata: given at submission: {study, parts, store, out, question}.
    """

    id: str
    study: str
    number: int
    state: str
    started: float
    ended: float
    message: str
    exit_code: int | None
    metadata: dict[str, Any]

    @property
    def is_over(self) -> bool:
        """Return whether the run has ended, in whatever way."""
        return JobStatus(self.state).is_terminal()


class RayJobsClient:
    """A connection to the head at an address such as http://127.0.0.1:8265.

    Raises ClusterError if no head answers there, if it refuses the token, or if it runs another Ray version.
    """

    def __init__(self, address: str) -> None:
        self.address = address if "://" in address else f"http://{address}"
        bypass_proxy_for_localhost(self.address)
        token = None
        version = self.ray_version()
        if version is None:  # the head wants a token before it answers anything
            token = self.read_token()
            version = self.ray_version(token)
        if version is None:
            raise ClusterError(
                f"{self.address} refuses this machine's token: the cluster was started with another one. "
                f"Set RAY_AUTH_TOKEN to it, or copy the cluster's ~/.ray/auth_token here"
            )
        if version != ray.__version__:
            raise ClusterError(
                f"{self.address} runs Ray {version}, this machine Ray {ray.__version__}, and they must be "
                f"equal: pip install ray=={version} here, or change the images in the cluster's file"
            )
        headers = {"Authorization": f"Bearer {token}"} if token else None
        with self.translated_errors():
            self.client = JobSubmissionClient(self.address, headers=headers)

    def ray_version(self, token: str | None = None) -> str | None:
        """The head's Ray version; None if it wants another token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{self.address}/api/version", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S) as answer:
                return json.load(answer)["ray_version"]
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                return None
            raise self.not_a_head(f"HTTP {error.code}") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ClusterError(
                f"no answer from {self.address} ({reason}); is the cluster up, and the tunnel to it open? "
                f"`ray dashboard cluster.yaml` opens one at http://127.0.0.1:8265 and must keep running"
            ) from error
        except (ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            # Another service answers, the answer is no HTTP, or the address is malformed.
            raise self.not_a_head(f"{type(error).__name__}: {error}".strip()) from error

    def read_token(self) -> str:
        """This machine's token, from where Ray looks for it."""
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        with contextlib.suppress(OSError):
            if token := (os.environ.get("RAY_AUTH_TOKEN") or file.read_text(encoding="utf-8")).strip():
                return token
        raise ClusterError(
            f"{self.address} wants a token, and this machine has none in RAY_AUTH_TOKEN or {file}; copy the "
            f"one that the cluster was started with to {file}"
        )

    def not_a_head(self, found: str) -> ClusterError:
        """The error for an address where something else than a Ray head with jobs answers."""
        return ClusterError(
            f"{self.address} is not a Ray head that accepts jobs ({found}); give the dashboard's address, "
            f'such as http://127.0.0.1:8265, and install pip install "ray[default]" on the head'
        )

    @contextlib.contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Turn errors of Ray and of the network into ClusterError."""
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(f"{self.address} refuses this machine's token; set RAY_AUTH_TOKEN") from error
        except (RuntimeError, ConnectionError, OSError) as error:
            if "status code 404" in str(error):
                raise self.not_a_head("HTTP 404") from error
            raise ClusterError(f"{self.address}: {str(error).splitlines()[0]}") from error

    # -- jobs --------------------------------------------------------------------------------------

    def jobs(self, study: str | None = None) -> list[Job]:
        """Runs of all studies, or of one, oldest first."""
        with self.translated_errors():
            all_jobs = self.client.list_jobs()
        jobs = [parse_job(details) for details in all_jobs if METADATA_KEY in (details.metadata or {})]
        wanted = [job for job in jobs if study in (None, job.study)]
        return sorted(wanted, key=lambda job: (job.study, job.number))

    def last_job(self, study: str) -> Job | None:
        """The study's latest run."""
        jobs = self.jobs(study)
        return jobs[-1] if jobs else None

    def submit(
        self, job_id: str, command: str, metadata: Mapping[str, Any], **runtime_environment: Any
    ) -> bool:
        """Start a job; False if one with this id exists already.

        runtime_environment: Ray's, such as working_dir.
        """
        runtime_environment["env_vars"] = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT_S)}
        try:
            self.client.submit_job(
                entrypoint=command,
                submission_id=job_id,
                metadata={METADATA_KEY: json.dumps(metadata)},
                runtime_env=runtime_environment,
            )
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            with self.translated_errors():
                raise
        return True

    def stop(self, job: Job) -> Job:
        """Ask the job to end as Ctrl-C does, wait for its end, and return its last state."""
        with self.translated_errors():
            self.client.stop_job(job.id)
            deadline = time.monotonic() + STOP_TIMEOUT_S + CONNECT_TIMEOUT_S
            while not (job := self.refreshed(job)).is_over and time.monotonic() < deadline:
                time.sleep(0.2)
        return job

    def refreshed(self, job: Job) -> Job:
        """The job in its present state."""
        with self.translated_errors():
            return parse_job(self.client.get_job_info(job.id))

    def log(self, job: Job) -> str:
        """The job's output so far."""
        with self.translated_errors():
            return self.client.get_job_logs(job.id)

    def follow(self, job: Job, write: Callable[[str], Any]) -> Job:
        """Pass the job's output to `write` until it ends; survive a tunnel that is closed and reopened."""
        written, lost_since = 0, 0.0

        async def tail() -> None:
            nonlocal written, lost_since
            position = 0
            async for text in self.client.tail_job_logs(job.id):  # each connection begins at the log's start
                write(text[max(0, written - position) :])
                position, lost_since = position + len(text), 0.0
                written = max(written, position)

        while True:
            try:
                asyncio.run(tail())
                now = self.refreshed(job)
                if now.is_over:
                    return now
            except Exception as error:  # a broken connection raises many types
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > RECONNECT_S:
                    raise ClusterError(
                        f"{self.address} does not answer any more ({error}); the run itself continues. "
                        f"`dgg-ray logs {job.study} --follow --dashboard {self.address}` shows it again"
                    ) from error
            time.sleep(1)


def bypass_proxy_for_localhost(address: str) -> None:
    """Except this machine, where tunnels begin, from the environment's HTTP proxy."""
    host = urlsplit(address).hostname or ""
    if host == "localhost" or host.startswith("127.") or host == "::1":
        # Python prefers the name in lower case.
        excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        hosts = [name.strip() for name in excluded.split(",")]
        if host not in hosts and hosts != ["*"]:
            os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [excluded, host]))


def parse_job(details: Any) -> Job:
    """A Job from Ray's JobDetails."""
    metadata = json.loads(details.metadata[METADATA_KEY])
    return Job(
        id=details.submission_id,
        study=metadata["study"],
        number=int(details.submission_id.rpartition("-")[2]),
        state=details.status.value,
        started=(details.start_time or 0) / 1000,
        ended=(details.end_time or 0) / 1000,
        message=details.message or "",
        exit_code=details.driver_exit_code,
        metadata=metadata,
    )
