"""The same settings and orders, through the stage tree and as a plain Ray Tune study.

    python benchmarks/naive_tune.py

The plain study is written as Ray's documentation teaches it: a function trainable launches a TorchTrainer
for each trial, and the trial trains every sequence from its start. Model, training, evaluations, number of
worker processes and settings are the same. The plain study shares no stages and keeps no model warm. Both run
one after the other; the benchmark prints the ratio of their wall times, and the stage counts that explain it.
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
from dgg_ray.search.comparison import make_search
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.stage_store import open_store
from dgg_ray.training.setup import build_stage_runner

STUDY = Path(__file__).parent.parent / "studies" / "quickstart.yaml"


def train_all(config: dict[str, Any]) -> None:
    """Train every order of one setting from its start, in a worker."""
    study: Study = config["study"]
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(study.runs):
            # Each run has an empty store of its own, so no stages are shared.
            runner = build_stage_runner(study, open_store(Path(folder) / str(number)))
            for item in study.runs.work_items(run):
                runner.run(item)


def trial(config: dict[str, Any]) -> None:
    TorchTrainer(
        train_all,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=f"{config['study'].id}-{os.getpid()}", storage_path=config["folder"]
        ),
    ).fit()
    ray.tune.report({"trained": sum(len(run.stages) for run in config["study"].runs)})


def main() -> None:
    study = load_study(STUDY)
    study = replace(
        study, protocol=replace(study.protocol, baselines=(), final_seeds=None, held_out=0, evaluate="seen")
    )
    with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
        began = time.perf_counter()
        outcome = run_study(study, Path(folder) / "tree", quiet=True)
        tree_seconds = time.perf_counter() - began
        store = study.store(Path(folder) / "tree")
        search = EvidenceReader(study, store).fast_forward_past_failures(make_search(study))
        settings = [query.setting for query in search.proposed]

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
        naive_seconds = time.perf_counter() - began
    requested = sum(len(run.stages) for setting in settings for run in study.at(setting).runs)
    print(f"settings × orders           {len(settings)} × {len(study.all_orders)}")
    print(f"stage tree                  {tree_seconds:6.1f} s, {outcome.tally['trained']} stages trained, "
          f"{study.workers.groups} start-ups, the winner's test evaluations included")  # fmt: skip
    print(
        f"plain Ray Tune              {naive_seconds:6.1f} s, {requested} stages trained, "
        f"{len(settings)} start-ups"
    )
    print(f"ratio of wall times         {naive_seconds / tree_seconds:6.2f}")


if __name__ == "__main__":
    main()
