"""What a process needs to do a study's work, alone or in a group; and what it makes of errors. No Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from socket import gethostname
from typing import TYPE_CHECKING, Any

from dgg_ray.config.study import Study
from dgg_ray.core import blame, event_log, plugins
from dgg_ray.core.errors import (
    ClusterError,
    DggError,
    Fault,
    OtherVersion,
    PluginError,
    StageError,
    StoreError,
    StudyError,
    describe,
)
from dgg_ray.core.stage import WorkItem
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training.simulated import Simulated

if TYPE_CHECKING:
    from dgg_ray.training.loop import Workshop


HANDFUL_S = 0.1  # of works that a fleet has at once; who is at one of them for a whole beat begins no other
LOADING = "reading the data and loading the model"  # as people are told


def tried(shop: Workshop | Simulated, item: WorkItem) -> tuple[dict[str, str] | None, bool]:
    """Do the work: its error, if any, and whether the stage is to blame for it.

    Only errors that all of a group's workers see leave the group in step, and only those that are the
    stage's own, or a mistake in a program, say nothing against the process. Any other is raised: it ends the
    group, Ray Train starts it anew, and a stage that comes to it again and again is set aside with it.
    """
    try:
        with event_log.about(item):
            shop.obtain(item)
    except (StageError, OtherVersion) as problem:
        return blame.told(problem), True
    except StoreError as problem:
        return describe(problem), False
    except Exception as problem:
        if world() > 1 or not blame.lasting(problem):
            raise
        return blame.told(problem), True
    return None, True


def handful(work_items: Sequence[WorkItem], lead: Callable[[Callable[[], Any]], Any]) -> Iterator[WorkItem]:
    """One after another, for as long as a handful lasts; others may have what is left then."""
    over = time.monotonic() + HANDFUL_S
    for n, item in enumerate(work_items):
        if n and lead(lambda: time.monotonic() > over):
            return
        yield item


def cannot_begin(problem: Exception) -> ClusterError:
    """What a worker ends with that may be its machine's fault."""
    return ClusterError(f"a worker on {gethostname()} cannot begin: {type(problem).__name__}: {problem}")


def workshop(
    study: Study, store: StageStore, zero: int = 0, alive: Callable[[], None] = lambda: None
) -> Workshop | Simulated:
    """All that a process needs to do a study's work, set up so that it gives the same bytes again.

    alive: called after each batch of answers.

    PluginError where a plug-in of the user's own raises on the way.
    """
    if study.workers.engine == "simulated":
        return Simulated.of(study, store)
    try:
        return learning(study, store, zero, alive)
    except Exception as problem:
        if isinstance(problem, DggError) or not (where := blame.place(problem, own=True)):
            raise
        raise PluginError(f"{where}: {type(problem).__name__}: {problem}") from problem


def learning(study: Study, store: StageStore, zero: int, alive: Callable[[], None]) -> Workshop:
    """The workshop of a real model."""
    import torch

    from dgg_ray.training.checkpoints import Rhythm
    from dgg_ray.training.learner import PeftLearner, quieten
    from dgg_ray.training.loop import Workshop

    quieten()
    if study.workers.threads:
        torch.set_num_threads(study.workers.threads)
    torch.use_deterministic_algorithms(True, warn_only=study.workers.gpus > 0)
    if study.workers.gpus and not torch.cuda.is_available():
        raise ClusterError(
            f"workers.gpus is {study.workers.gpus:g}, and PyTorch {torch.__version__} finds no GPU here: "
            "install its build for your GPUs, or set workers.gpus to 0"
        )
    tasks = study.read_tasks()
    # Keys promise what was learned from: another copy of the data or of the model would be kept under a
    # false name.
    other = [f"tasks.{n}" for n, task in tasks.items() if dict(task.digests) != study.tasks[n].digests]
    other += ["model"] if study.fingerprint_here() != study.fingerprint else []
    here = plugins.codes(study.plugged)
    other += [plugins.named(plugin) for plugin, code in study.codes.items() if here.get(plugin, code) != code]
    if other:
        rule = "has other content here than when the study was checked; run the study again"
        raise StudyError([Fault(path, rule) for path in other], study.name)
    w = study.workers
    learner = PeftLearner(study.model, "cuda" if w.gpus else "cpu", zero, w.offload)
    learner.alive = alive
    rhythm = Rhythm(w.checkpoint_steps, w.checkpoint_minutes)
    shop = Workshop(learner, tasks, store, study.protocol.max_new_tokens, rhythm=rhythm)
    shop.by, shop.codes = {"study": study.name, "workers": w.setup}, study.codes
    return shop


def leading() -> Callable[[Callable[[], Any]], Any]:
    """Workshop.lead for this worker group: rank 0 computes, all get the result or its error."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return lambda compute: compute()

    def lead(compute: Callable[[], Any]) -> Any:
        box: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                box = [(True, compute())]
            except Exception as problem:
                box = [(False, problem)]
        dist.broadcast_object_list(box, src=0)
        ok, result = box[0]
        if not ok:
            raise result
        return result

    return lead


def world() -> int:
    """Processes in this one's worker group."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Of this process in its worker group."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0
