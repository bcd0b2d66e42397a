"""Demands that a machine can never meet are told at once."""

from dataclasses import replace

import pytest

from dgg_ray import cluster
from dgg_ray.errors import ClusterError
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.sections import Workers
from dgg_ray.strategies.dgg import DGG
from dgg_ray.study import Study
from dgg_ray.tasks.embedded import Embedded

STUDY = Study("toy", Model(), {"digits": Embedded(), "words": Embedded()}, DGG())


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})


def test_a_fleet_that_fits_is_no_error(machine):
    cluster.demand(replace(STUDY, workers=Workers(per_fleet=4)))
    cluster.demand(replace(STUDY, workers=Workers(gpus=1)))


def test_more_gpus_than_there_are_name_both_numbers_and_the_way_out(machine):
    with pytest.raises(ClusterError, match=r"wants 2 GPUs, this machine has 1; lower workers.per_fleet"):
        cluster.demand(replace(STUDY, workers=Workers(per_fleet=2, gpus=1)))


def test_many_small_fleets_are_no_error(machine):
    cluster.demand(replace(STUDY, workers=Workers(fleets=50)))
