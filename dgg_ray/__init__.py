"""Study how a vision-language model learns one dataset after another without forgetting.

from dgg_ray import Study

study = Study.load("studies/quickstart.yaml")
result = study.run(out="out/quickstart")
result.table, result.best, result.report()
"""

from dgg_ray.study import Study

__all__ = ["Study"]
