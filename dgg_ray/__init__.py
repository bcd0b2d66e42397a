"""Study how a vision-language model learns one dataset after another without forgetting.

import dgg_ray
from dgg_ray import load_study, run_study

study = load_study("studies/quickstart.yaml")       # or load_study({...}), a mapping of settings
result = run_study(study, out="out/quickstart")
result.table, result.best, result.report()

result = dgg_ray.open("out/quickstart")             # later, also while it runs
result.scores(), result.predictions("charts"), result.adapter()

client = dgg_ray.Client("http://127.0.0.1:8750")    # a service: `dgg-ray serve`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dgg_ray.core import process_setup

process_setup.prepare_process()  # before anything is imported that takes it for granted

if TYPE_CHECKING:
    from dgg_ray.api import Outcome as Outcome
    from dgg_ray.api import load_study as load_study
    from dgg_ray.api import open as open
    from dgg_ray.api import run_study as run_study
    from dgg_ray.api import study_to_dict as study_to_dict
    from dgg_ray.api import study_to_yaml as study_to_yaml
    from dgg_ray.config.study import Study as Study
    from dgg_ray.execution.session import RaySession as RaySession
    from dgg_ray.service.client import Client as Client
    from dgg_ray.training.exported_adapter import load_adapter as load_adapter

# Not `open`: a star import would put it in the place of Python's own.
__all__ = [
    "Client",
    "Outcome",
    "RaySession",
    "Study",
    "load_adapter",
    "load_study",
    "run_study",
    "study_to_dict",
    "study_to_yaml",
]

__version__ = "0.1.0"

WHERE = {
    "Client": "service.client",
    "RaySession": "execution.session",
    "Study": "config.study",
    "load_adapter": "training.exported_adapter",
    **dict.fromkeys(("Outcome", "load_study", "open", "run_study", "study_to_dict", "study_to_yaml"), "api"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `dgg-ray --version` waits for nothing else."""
    from importlib import import_module

    if name not in WHERE:
        raise AttributeError(f"module 'dgg_ray' has no attribute {name!r}")
    return getattr(import_module(f"dgg_ray.{WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *WHERE])
