"""Where the quickstart's time goes.

    python benchmarks/quickstart.py

Runs studies/quickstart.yaml into an empty folder and prints seconds per stage in training, in exams and
in everything else, stages asked for and trained, and the peak memory of all processes together.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import psutil

from dgg_ray import load_study, run_study

STUDY = Path(__file__).parent.parent / "studies" / "quickstart.yaml"


class Memory(threading.Thread):
    """Peak of the summed unique memory of this process and all below it."""

    peak_gb = 0.0

    def run(self) -> None:
        while not over.wait(4):  # each look walks the page tables of twenty processes
            now = 0
            for process in (me := psutil.Process(), *me.children(recursive=True)):
                try:
                    now += process.memory_full_info().uss
                except psutil.Error:
                    continue
            self.peak_gb = max(self.peak_gb, now / 1e9)


over = threading.Event()


def main() -> None:
    memory = Memory(daemon=True)
    memory.start()
    with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
        began = time.perf_counter()
        study = load_study(STUDY)
        loaded = time.perf_counter() - began
        outcome = run_study(study, folder)
        wall = time.perf_counter() - began
    over.set()
    costs, tally = outcome.results.costs, outcome.tally
    learn, evaluation = costs["train_seconds"].sum(), costs["evaluation_seconds"].sum()
    stages, groups = tally["trained"], study.workers.groups
    working = (
        tally["seconds"] - tally["fleet_up"]
    ) * groups  # worker seconds from the first stage to the end
    other = working - learn - evaluation
    print(f"wall                       {wall:7.1f} s, of which {loaded:.1f} s reading the study")
    print(f"until the first stage      {tally['fleet_up']:7.1f} s")
    print(f"stages asked for / trained {tally['asked']:7d} / {stages}")
    print(
        f"training                   {learn / stages:7.2f} s a stage, {learn / working:.0%} of workers' time"
    )
    print(f"exams                      {evaluation / stages:7.2f} s a stage, {evaluation / working:.0%}")
    print(f"everything else            {other / stages:7.2f} s a stage, {other / working:.0%}")
    print(f"peak memory                {memory.peak_gb:7.1f} GB, all processes together")


if __name__ == "__main__":
    main()
