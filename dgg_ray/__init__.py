"""Study how a vision-language model learns one dataset after another without forgetting.

from dgg_ray import Study

study = Study.load("studies/quickstart.yaml")
result = study.run(out="out/quickstart")
result.table, result.best, result.report()
"""

from dgg_ray import surroundings

surroundings.prepare()  # before anything is imported that takes it for granted

from dgg_ray.study import Study  # noqa: E402

__all__ = ["Study"]
