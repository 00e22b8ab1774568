"""The two cluster files, checked as Ray checks them, and against what is said of them."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = ("ray_cluster.yaml", "docs/cluster-cloud.yaml")
EDITED = ("provider", "auth", "cluster_name", "max_workers", "idle_timeout_minutes", "available_node_types",
          "head_node_type", "initialization_commands")  # fmt: skip


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", FILES)
def test_ray_would_refuse_a_typo(name: str) -> None:
    cluster = load(name) | {"head_start_commands": []}
    with pytest.raises(jsonschema.ValidationError, match="head_start_commands"):
        validate_config(prepare_config(cluster))


def test_machines_of_ones_own_are_edited_in_three_lines() -> None:
    lines = (REPOSITORY / "ray_cluster.yaml").read_text(encoding="utf-8").splitlines()
    edited = [line.split(":")[0].strip() for line in lines if "# edit: " in line]
    assert edited == ["head_ip", "worker_ips", "ssh_user"]
    prepared = prepare_config(load("ray_cluster.yaml"))
    assert prepared["max_workers"] == len(load("ray_cluster.yaml")["provider"]["worker_ips"])


def test_a_cluster_of_one_machine_is_accepted() -> None:
    cluster = load("ray_cluster.yaml")
    cluster["provider"]["worker_ips"] = []
    validate_config(prepare_config(cluster))


def test_workers_with_gpus_come_and_go_in_the_cloud() -> None:
    cluster = prepare_config(load("docs/cluster-cloud.yaml"))
    workers = cluster["available_node_types"]["gpu"]
    assert workers["min_workers"] == 0 < workers["max_workers"] <= cluster["max_workers"]
    assert workers["resources"]["GPU"] == 1


def test_images_in_the_cloud_are_named_by_their_users() -> None:
    """Ray's default is a system whose Python is too old."""
    lines = (REPOSITORY / "docs/cluster-cloud.yaml").read_text(encoding="utf-8").splitlines()
    edited = [line for line in lines if "# edit: " in line]
    assert len(edited) == len(load("docs/cluster-cloud.yaml")["available_node_types"])
    assert all(re.search(r"ImageId: ami-\w+  # edit: .*Ubuntu\b.* 24\.04", line) for line in edited)


@pytest.mark.parametrize("name", FILES)
def test_the_settings_of_the_tracking_server_are_for_their_owner(name: str) -> None:
    """They may hold a password."""
    (command,) = [c for c in load(name)["head_setup_commands"] if "> ~/tracking/environment" in c]
    assert command.startswith("umask 077; ")


def test_the_files_differ_in_machines_alone() -> None:
    own, cloud = ({key: value for key, value in load(name).items() if key not in EDITED} for name in FILES)
    starts = [commands.pop("head_start_ray_commands") for commands in (own, cloud)]
    assert own == cloud
    assert [command.replace(" RAY_enable_autoscaler_v2=0", "") for command in starts[0]] == starts[1]


def test_everything_mounted_exists_and_holds_the_packages() -> None:
    mounts = load("ray_cluster.yaml")["file_mounts"]
    sources = {target: source for target, source in mounts.items() if not source.startswith("~")}
    assert all((REPOSITORY / source).exists() for source in sources.values())
    assert {"ops", "search_space", "latency", "pipeline", "constraints.txt", "pyproject.toml"} <= set(sources.values())


def test_torch_is_installed_first_and_from_the_constraints_as_in_the_makefile() -> None:
    installs = [command for command in load("ray_cluster.yaml")["setup_commands"] if "pip install" in command]
    assert re.search(r"--constraint constraints.txt torch$", installs[0])
    assert all("--constraint constraints.txt" in command for command in installs)
    makefile = re.findall(r"--constraint constraints.txt (.*)", (REPOSITORY / "Makefile").read_text(encoding="utf-8"))
    assert makefile[0] == "torch"
    assert makefile[1].startswith("--editable") and "--editable" in installs[1]


def test_tokens_are_on_statistics_off_and_servers_on_loopback() -> None:
    cluster = load("ray_cluster.yaml")
    everywhere = " ".join(cluster["setup_commands"])
    for setting in ("RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", "MLFLOW_DISABLE_TELEMETRY=true"):
        assert setting in everywhere
    tracking = " ".join(cluster["head_setup_commands"])
    for setting in ("MLFLOW_HOST=127.0.0.1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
                    "MLFLOW_SERVER_ALLOWED_HOSTS=localhost:5000,127.0.0.1:5000"):  # fmt: skip
        assert setting in tracking
    start = cluster["head_start_ray_commands"][1]
    assert "--dashboard-host=127.0.0.1" in start and "--disable-usage-stats" in start
