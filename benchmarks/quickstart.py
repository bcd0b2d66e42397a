"""How the quickstart spends its time.

    python benchmarks/quickstart.py

Runs studies/quickstart.yaml into an empty folder. Prints the seconds per stage of training, of evaluations
and of everything else, the numbers of stages requested and trained, and the peak memory of all processes
together.
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
    """Records the peak of the summed unique memory of this process and its descendants."""

    peak_gb = 0.0

    def run(self) -> None:
        while not finished.wait(4):  # each sample reads the page tables of twenty processes
            total = 0
            for process in (parent := psutil.Process(), *parent.children(recursive=True)):
                try:
                    total += process.memory_full_info().uss
                except psutil.Error:
                    continue
            self.peak_gb = max(self.peak_gb, total / 1e9)


finished = threading.Event()


def main() -> None:
    memory = Memory(daemon=True)
    memory.start()
    with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
        began = time.perf_counter()
        study = load_study(STUDY)
        loaded = time.perf_counter() - began
        outcome = run_study(study, folder)
        wall = time.perf_counter() - began
    finished.set()
    costs, tally = outcome.results.costs, outcome.tally
    training, evaluation = costs["train_seconds"].sum(), costs["evaluation_seconds"].sum()
    stages, groups = tally["trained"], study.workers.groups
    # Worker seconds from the first stage to the end:
    working = (tally["seconds"] - tally["seconds_to_first_stage"]) * groups
    other = working - training - evaluation
    print(f"wall                       {wall:7.1f} s, of which {loaded:.1f} s reading the study")
    print(f"until the first stage      {tally['seconds_to_first_stage']:7.1f} s")
    print(f"stages requested / trained {tally['asked']:7d} / {stages}")
    print(
        f"training                   {training / stages:7.2f} s per stage, {training / working:.0%} of time"
    )
    print(f"evaluations                {evaluation / stages:7.2f} s per stage, {evaluation / working:.0%}")
    print(f"everything else            {other / stages:7.2f} s per stage, {other / working:.0%}")
    print(f"peak memory                {memory.peak_gb:7.1f} GB, all processes together")


if __name__ == "__main__":
    main()
