"""Study how a vision-language model learns one dataset after another without forgetting.

import dgg_ray
from dgg_ray import Study

study = Study.load("studies/quickstart.yaml")       # or Study.from_dict({...})
result = study.run(out="out/quickstart")
result.table, result.best, result.report()

result = dgg_ray.open("out/quickstart")             # later, also while it runs
result.scores(), result.predictions("charts"), result.adapter()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dgg_ray import surroundings

surroundings.prepare()  # before anything is imported that takes it for granted

if TYPE_CHECKING:
    from dgg_ray.face import Outcome as Outcome
    from dgg_ray.face import open as open
    from dgg_ray.study import Study as Study

__all__ = ["Outcome", "Study"]  # not `open`: a star import would put it in the place of Python's own

__version__ = "0.1.0"

WHERE = {"Study": "study", "Outcome": "face", "open": "face"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `dgg-ray --version` waits for nothing else."""
    from importlib import import_module

    if name not in WHERE:
        raise AttributeError(f"module 'dgg_ray' has no attribute {name!r}")
    return getattr(import_module(f"dgg_ray.{WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *WHERE])
