"""The same settings and orders, once through the stage tree and once as a plain Ray Tune study.

    python benchmarks/naive_tune.py

The plain study is written as Ray's documentation teaches it: a function trainable launches a TorchTrainer
for each trial, and the trial learns every sequence from its start. Model, training, exams, number of
worker processes and settings are the same; what differs is that nothing is shared and nothing is kept
warm. Both run one after the other here, and the ratio of their wall times is printed with the stage
counts that explain it.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
from ray.train.torch import TorchConfig, TorchTrainer

from dgg_ray import Study, load_study, run_study
from dgg_ray.execution import cluster
from dgg_ray.execution.worker_groups import build_stage_runner
from dgg_ray.search.comparison import make_search
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.stage_store import open_store

STUDY = Path(__file__).parent.parent / "studies" / "quickstart.yaml"


def learn_all(config: dict[str, Any]) -> None:
    """A worker: every order of one setting, from its start."""
    study: Study = config["study"]
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(study.runs):
            # A store for each run: inside one nothing is there before, so nothing is shared.
            runner = build_stage_runner(study, open_store(Path(folder) / str(number)))
            for item in study.runs.work_items(run):
                runner.run(item)


def trial(config: dict[str, Any]) -> None:
    TorchTrainer(
        learn_all,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=f"{config['study'].id}-{os.getpid()}", storage_path=config["folder"]
        ),
    ).fit()
    ray.tune.report({"trained_task": sum(len(run.stages) for run in config["study"].runs())})


def main() -> None:
    study = load_study(STUDY)
    study = replace(study, protocol=replace(study.protocol, baselines=(), final_seeds=None, evaluate="seen"))
    with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
        began = time.perf_counter()
        outcome = run_study(study, Path(folder) / "tree", quiet=True)
        by_tree = time.perf_counter() - began
        store = study.store(Path(folder) / "tree")
        found = EvidenceReader(study, store).replay_to_read(make_search(study))
        settings = [profile.setting for profile in found.proposed]

        began = time.perf_counter()
        with cluster.connected(study):
            ray.tune.Tuner(
                ray.tune.with_resources(trial, ray.tune.PlacementGroupFactory([cluster.ON_HEAD])),
                param_space={
                    "study": ray.tune.grid_search([study.at(setting) for setting in settings]),
                    "folder": folder,
                },
                tune_config=ray.tune.TuneConfig(
                    max_concurrent_trials=study.workers.groups, reuse_actors=True
                ),
                run_config=ray.tune.RunConfig(name="naive", storage_path=folder, verbose=0),
            ).fit()
        naive = time.perf_counter() - began
    asked = sum(len(run.stages) for setting in settings for run in study.at(setting).runs)
    print(f"settings × orders           {len(settings)} × {len(study.all_orders)}")
    print(f"stage tree                  {by_tree:6.1f} s, {outcome.tally['trained']} stages trained, "
          f"{study.workers.groups} start-ups, the winner's test exams among it")  # fmt: skip
    print(f"plain Ray Tune              {naive:6.1f} s, {asked} stages trained, {len(settings)} start-ups")
    print(f"ratio of wall times         {naive / by_tree:6.2f}")


if __name__ == "__main__":
    main()
