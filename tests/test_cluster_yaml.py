"""The cluster file is checked as `ray up` checks it, without a cloud."""

from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture
def cluster():
    return yaml.safe_load(FILE.read_text())


def validate(cluster):
    """As `ray up` does before it asks the cloud for anything: the defaults filled in."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    return prepared


@pytest.mark.ray
def test_ray_accepts_the_cluster_file(cluster):
    assert validate(cluster)["available_node_types"].keys() == {"head", "gpu"}


@pytest.mark.ray
def test_the_check_would_notice_a_misspelt_setting(cluster):
    cluster["idle_timeout_minute"] = cluster.pop("idle_timeout_minutes")
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate(cluster)


@pytest.mark.ray
def test_the_check_would_notice_a_head_that_is_not_there(cluster):
    cluster["head_node_type"] = "haed"
    with pytest.raises(ValueError, match="head_node_type"):
        validate(cluster)


def test_gpu_machines_are_spot_and_there_are_none_until_they_are_wanted(cluster):
    worker = cluster["available_node_types"]["gpu"]
    assert worker["min_workers"] == 0
    assert 0 < worker["max_workers"] <= cluster["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_the_head_is_on_demand_and_offers_nothing_to_train_on(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0, "GPU": 0}


def test_the_package_is_installed_from_the_folder_that_is_mounted(cluster):
    (remote,) = cluster["file_mounts"]
    assert any(
        f"--constraint {remote}/constraints.txt {remote}" in command for command in cluster["setup_commands"]
    )
