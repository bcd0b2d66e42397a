"""Everything that a process needs to run a study's work items, alone or in a worker group.

    build_stage_runner   the runner with its model, data and store
    run_item             one item; its error is the stage's fault or the machine's
    keep_model           the end of a study, in a process that goes on to another one

Nothing here needs Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from socket import gethostname
from typing import TYPE_CHECKING, Any

from dgg_ray.config.study import Study
from dgg_ray.core import error_records, event_log, plugins
from dgg_ray.core.errors import (
    ClusterError,
    DggError,
    Fault,
    IncompatibleCheckpointError,
    PluginError,
    StageError,
    StoreError,
    StudyError,
    error_record,
)
from dgg_ray.core.interfaces import Task
from dgg_ray.core.stage import WorkItem
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training.process_group import world_size
from dgg_ray.training.simulated_runner import SimulatedRunner

if TYPE_CHECKING:
    from dgg_ray.training.kept_model import KeptModel
    from dgg_ray.training.loop import StageRunner

LOADING = "reading the data and loading the model"  # this phase's name in the progress display


def run_item(runner: StageRunner | SimulatedRunner, item: WorkItem) -> tuple[dict[str, str] | None, bool]:
    """Run the item; return (the record of its error, if any; whether the stage is at fault).

    An error is returned only if all workers of the group see it, and if it does not speak against this
    process: the stage's own error, the store's, or a mistake in a program that any process would repeat.
    Every other error is raised. It ends the group, and Ray Train restarts it.
    """
    try:
        with event_log.stage_context(item):
            runner.run(item)
    except (StageError, IncompatibleCheckpointError) as error:
        return error_records.located_error_record(error), True
    except StoreError as error:
        return error_record(error), False
    except Exception as error:
        if world_size() > 1 or not error_records.is_permanent_error(error):
            raise
        return error_records.located_error_record(error), True
    return None, True


def startup_error(error: Exception) -> ClusterError:
    """The error to end a worker with where its machine may be the reason that it cannot start."""
    return ClusterError(f"a worker on {gethostname()} cannot start: {type(error).__name__}: {error}")


def build_stage_runner(
    study: Study,
    store: StageStore,
    zero: int = 0,
    on_answers: Callable[[], None] = lambda: None,
    kept: KeptModel | None = None,
) -> StageRunner | SimulatedRunner:
    """The runner for a study's work items, configured to give the same bytes whenever it runs.

    on_answers: called after each batch of answers.
    kept: the base model of the process's study before this one, taken if it is the same.

    Raises PluginError where a plug-in of the user's own fails.
    """
    if study.workers.engine == "simulated":
        return SimulatedRunner.of(study, store)
    try:
        return build_training_runner(study, store, zero, on_answers, kept)
    except Exception as error:
        location = error_records.plugin_location(error, users_only=True)
        if isinstance(error, DggError) or not location:
            raise
        raise PluginError(f"{location}: {type(error).__name__}: {error}") from error


def build_training_runner(
    study: Study, store: StageStore, zero: int, on_answers: Callable[[], None], kept: KeptModel | None
) -> StageRunner:
    """The runner that trains the study's model."""
    import torch

    from dgg_ray.training.checkpoints import CheckpointPolicy
    from dgg_ray.training.learner import PeftLearner, silence_libraries
    from dgg_ray.training.loop import StageRunner
    from dgg_ray.training.stage_context import LearnerContext

    workers = study.workers
    silence_libraries()
    if workers.threads:
        torch.set_num_threads(workers.threads)
    torch.use_deterministic_algorithms(True, warn_only=workers.gpus > 0)
    if workers.gpus and not torch.cuda.is_available():
        raise ClusterError(
            f"workers.gpus is {workers.gpus:g}, and PyTorch {torch.__version__} finds no GPU on "
            f"{gethostname()}: install the PyTorch build for its GPUs, or set workers.gpus to 0"
        )
    tasks = study.read_tasks()
    if changed := changed_inputs(study, tasks):
        rule = "has changed on this machine since the study was checked; run the study again"
        raise StudyError([Fault(path, rule) for path in changed], study.name)
    device = "cuda" if workers.gpus else "cpu"
    loaded = kept.take(study.model, study.data.fingerprint, torch.device(device)) if kept else None
    return StageRunner(
        PeftLearner(study.model, device, zero, workers.offload, on_answers, loaded),
        tasks,
        store,
        study.protocol.max_new_tokens,
        checkpoint_policy=CheckpointPolicy(workers.checkpoint_steps, workers.checkpoint_minutes),
        make_context=LearnerContext,
        origin={"study": study.name, "workers": workers.setup},
        source_hashes=study.data.source_hashes,
    )


def keep_model(runner: StageRunner | SimulatedRunner, kept: KeptModel) -> None:
    """Keep the base model for the next study, and nothing else; the runner must not be used any more."""
    from dgg_ray.training import features  # late: it needs torch

    if isinstance(runner, SimulatedRunner):
        return
    learner: Any = runner.learner
    loaded = learner.release()
    if learner.zero < 3:  # stage 3 leaves the base model in shards
        kept.put_back(loaded)
    features.load_clip.cache_clear()


def changed_inputs(study: Study, tasks: Mapping[str, Task]) -> list[str]:
    """Paths of the study's data, model and plug-ins whose content here is not what the stage keys name."""
    changed = [
        f"tasks.{name}"
        for name, task in tasks.items()
        if dict(task.digests) != study.data.tasks[name].digests
    ]
    if study.local_fingerprint() != study.data.fingerprint:
        changed.append("model")
    here = plugins.plugin_hashes(study.plugins_used)
    changed += [
        plugins.describe_plugin(plugin)
        for plugin, source_hash in study.data.source_hashes.items()
        if here.get(plugin, source_hash) != source_hash
    ]
    return changed
