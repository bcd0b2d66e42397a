"""Record each training of a stage: a line `begin|end KEY PID SECONDS` in $DGG_TRACE.

Python imports this file by its name at the start of every process with this folder in PYTHONPATH. So workers
that Ray starts are traced without any code in the package.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time

RUNNERS = {"dgg_ray.training.simulated_runner": "SimulatedRunner", "dgg_ray.training.loop": "StageRunner"}


def record(event, key):
    line = f"{event} {key} {os.getpid()} {time.time():.6f}\n".encode()
    file = os.open(os.environ["DGG_TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line)  # a short line is written as a whole, even if other processes append
    finally:
        os.close(file)


def traced(train):
    def wrapper(self, stage):
        if not stage.trained_tasks:
            return train(self, stage)
        record("begin", stage.key)
        result = train(self, stage)
        record("end", stage.key)
        return result

    return wrapper


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the stage runners as usual, and wraps `train` when they are loaded."""

    def find_spec(self, name, path, target=None):
        if name not in RUNNERS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            runner = getattr(module, RUNNERS[name])
            runner.train = traced(runner.train)

        spec.loader.exec_module = exec_module
        return spec


if "DGG_TRACE" in os.environ:
    sys.meta_path.insert(0, Finder())
