"""The seconds before a study's first stage: in a new process, as the second study of one, and in a session.

    python benchmarks/warm_groups.py [--rounds 3]

The embedded model, one worker group of one process. The time ends when the worker asks for its first item:
its data are read and its model is loaded. Two studies with other tasks, strategies and adapters follow each
other; the second is the one that is timed. The rounds alternate between the two ways, and the ratio is that
of the medians in this run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

STUDY = {
    "model": "embedded",
    "training": {"batch_size": 8, "learning_rate": 5e-3},
    "protocol": {"max_new_tokens": 2, "baselines": []},
}
STUDIES = [
    (("words", "digits"), {"name": "o_lora"}, {"rank": 4}),
    (("charts", "shapes"), {"name": "dgg", "buffer": 4}, {"rank": 2}),
]


def run_two(folder: Path, warm: bool) -> list[tuple[float, float]]:
    """Run the studies in this process; return for each when it was called and when its worker was ready."""
    from dgg_ray import RaySession, load_study, run_study

    times = []
    with RaySession() if warm else nullcontext() as session:
        for number, (tasks, strategy, adapter) in enumerate(STUDIES):
            called = time.time()
            sizes = {"reader": "embedded", "train": 16, "validation": 10, "test": 10}
            tasks = [{"name": name, **sizes} for name in tasks]
            settings = {"name": f"study{number}", "tasks": tasks, "strategy": strategy, "adapter": adapter}
            out = folder / str(number)
            run_study(load_study(STUDY | settings), out, quiet=True, session=session)
            times.append((called, ready(out)))
    return times


def ready(out: Path) -> float:
    """When the first worker of a study was ready for its first item, from its log; a Unix time."""
    (file,) = (out / "logs").glob("group-001-*")
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return next(
        datetime.fromisoformat(line["time"]).timestamp() for line in lines if line["event"] == "started"
    )


def measure(warm: bool) -> dict[str, float]:
    """Run the studies in a new process; return its seconds before the first stages."""
    with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
        start = time.time()
        command = [sys.executable, __file__, "--child", folder, *["--warm"] * warm]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    (_, first), (called, second) = json.loads(output.splitlines()[-1])
    return {"new process": first - start, "second study": second - called}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.child:
        print(json.dumps(run_two(o.child, o.warm)))
        return
    seconds: dict[str, list[float]] = {"new process": [], "second study": [], "second study in a session": []}
    for _ in range(o.rounds):
        alone, warm = measure(False), measure(True)
        for how, value in (*alone.items(), ("second study in a session", warm["second study"])):
            seconds[how].append(value)
            print(f"{how:26} {value:6.1f} s", flush=True)
    medians = {how: statistics.median(values) for how, values in seconds.items()}
    in_session = medians["second study in a session"]
    for how in ("new process", "second study"):
        print(f"a session starts the second study {medians[how] / in_session:.1f} times as fast as a {how}")


if __name__ == "__main__":
    main()
