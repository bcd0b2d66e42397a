"""Ray for the studies of one process: started for each, or kept with its worker groups from one to the next.

    with RaySession() as session:
        for study in studies:
            run_study(study, f"out/{study.name}", session=session)

Nothing is started before the first study that has something to train. Ray is started again only where a study
needs more logical cores than it has, or plug-ins from a folder that its processes do not know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Self

import ray

from dgg_ray.config.study import Study
from dgg_ray.core.errors import ClusterError
from dgg_ray.execution import cluster
from dgg_ray.execution.warm_groups import KEEP_WARM_S, MAX_KEEP_WARM_S, WarmGroups


class RaySession:
    """Ray at an address, or on this machine. Entered, it stays up until the end of the block.

    A study takes a waiting worker group if both agree in hardware, engine, base model and code; its results
    are the same as without. Waiting groups end when anyone in the cluster waits for their machines.

    address: of a Ray cluster; None starts one on this machine.
    keep_warm_s: seconds for which a worker group waits for the next study, at most 1200; 0 ends the groups
        with each study.
    warm: the worker groups of the session; None where they end with the study.
    """

    def __init__(self, address: str | None = None, keep_warm_s: float = KEEP_WARM_S) -> None:
        if not 0 <= keep_warm_s <= MAX_KEEP_WARM_S:
            raise ValueError(f"keep_warm_s must be from 0 to {MAX_KEEP_WARM_S:g} seconds, not {keep_warm_s}")
        self.address, self.keep_warm_s = address, keep_warm_s
        self.warm: WarmGroups | None = None
        self.entered = self.studying = False
        self.stack = contextlib.ExitStack()
        self.cores, self.environment = 0, dict[str, str]()  # with which Ray was started

    def __enter__(self) -> Self:
        self.entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self.entered = False
        self._stop()

    @contextlib.contextmanager
    def connected(self, study: Study) -> Iterator[None]:
        """Run a study's block with Ray. Raises ClusterError where the cluster can never hold its groups."""
        if not self.entered:
            with cluster.connected(study, self.address):
                yield
            return
        if self.studying:
            raise ClusterError(
                f"{study.name}: the session runs another study; start this one after it or in another one"
            )
        self.studying = True
        try:
            self._start_for(study)
            cluster.check_resources(study)
            yield
        finally:
            self.studying = False

    def _start_for(self, study: Study) -> None:
        """Start Ray, unless it runs as the study needs it."""
        cores, environment = cluster.cores_for(study), cluster.plugin_environment()
        enough = self.address or cores <= self.cores
        if ray.is_initialized() and self.cores and enough and environment == self.environment:
            return
        self._stop()
        self.stack.enter_context(cluster.started(cores, self.address))
        self.cores, self.environment = cores, environment
        if self.keep_warm_s:
            self.warm = WarmGroups(self.keep_warm_s)
            self.stack.callback(self._end_groups, self.warm)

    def _end_groups(self, warm: WarmGroups) -> None:
        with contextlib.suppress(Exception):  # Ray may be gone
            warm.close()

    def _stop(self) -> None:
        self.warm, self.cores = None, 0
        self.stack.close()
