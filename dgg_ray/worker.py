"""What a process needs to do a study's work, alone or in a group; and what it makes of errors. No Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from socket import gethostname
from typing import TYPE_CHECKING, Any

from dgg_ray import logs
from dgg_ray.errors import ClusterError, Fault, OtherVersion, StageError, StoreError, StudyError, describe
from dgg_ray.pulse import HANDFUL_S
from dgg_ray.simulate import Simulated
from dgg_ray.stages import StageStore, Work
from dgg_ray.study import Study

if TYPE_CHECKING:
    from dgg_ray.loop import Workshop


def tried(shop: Workshop | Simulated, work: Work) -> tuple[dict[str, str] | None, bool]:
    """Do the work: its error, if any, and whether the stage is to blame for it.

    Only errors that all of a group's workers see leave the group in step, and only those that are the
    stage's own say nothing against the process. Any other is raised: it ends the group, Ray Train starts
    it anew, and a stage that comes to it again and again is set aside with it.
    """
    try:
        with logs.about(work):
            shop.obtain(work)
    except (StageError, OtherVersion) as problem:
        return describe(problem), True
    except StoreError as problem:
        return describe(problem), False
    return None, True


def handful(works: Sequence[Work], lead: Callable[[Callable[[], Any]], Any]) -> Iterator[Work]:
    """One after another, for as long as a handful lasts; others may have what is left then."""
    over = time.monotonic() + HANDFUL_S
    for n, work in enumerate(works):
        if n and lead(lambda: time.monotonic() > over):
            return
        yield work


def cannot_begin(problem: Exception) -> ClusterError:
    """What a worker ends with that may be its machine's fault."""
    return ClusterError(f"a worker on {gethostname()} cannot begin: {type(problem).__name__}: {problem}")


def workshop(
    study: Study, store: StageStore, zero: int = 0, alive: Callable[[], None] = lambda: None
) -> Workshop | Simulated:
    """All that a process needs to do a study's work, set up so that it gives the same bytes again.

    alive: called after each batch of answers.
    """
    if study.workers.engine == "simulated":
        return Simulated.of(study, store)
    import torch

    from dgg_ray.learner import PeftLearner, quieten
    from dgg_ray.loop import Workshop
    from dgg_ray.snapshots import Rhythm

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
    other += ["model"] if study.model.fingerprint() != study.fingerprint else []
    if other:
        rule = "has other content here than when the study was checked; run the study again"
        raise StudyError([Fault(path, rule) for path in other], study.name)
    w = study.workers
    learner = PeftLearner(study.model, "cuda" if w.gpus else "cpu", zero, w.offload)
    learner.alive = alive
    rhythm = Rhythm(w.snapshot_steps, w.snapshot_minutes)
    shop = Workshop(learner, tasks, store, study.protocol.max_new_tokens, rhythm=rhythm)
    shop.by = {"study": study.name, "workers": w.setup}
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


def rank() -> int:
    """Of this process in its worker group."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0
