"""A retraining that loses its worker, a search and a collection that lose a machine, on a cluster of three.

The head has no processor: trials and parts of a collection are all on other nodes than their command.
"""

import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray  # noqa: TID251  # as the pipeline does
import torch
from ray.cluster_utils import Cluster  # noqa: TID251

from pipeline import cluster, part_actors, search_inputs
from pipeline import search as stage
from pipeline.checkpoint import load_checkpoint
from pipeline.collect import claim_collection, collect
from pipeline.config import load_config
from pipeline.data.images import TRAINING_PHOTOGRAPHS, photographs
from pipeline.data.patches import noisy_patches
from pipeline.priors import load_prior
from pipeline.retrain import retrain
from pipeline.run import open_run
from pipeline.settings import RayConfig
from pipeline.training import Trainer
from search_space import Genotype, SearchSpace, build_network, sample_genotype

pytestmark = [pytest.mark.slow, pytest.mark.ray]

MARK = f"DENOISE_NAS_LOST={uuid.uuid4()}"  # in the environment of all processes of the cluster
NODE = {"object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1"}


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    """A head without processors, and two machines with two each."""
    folder = Path(tempfile.mkdtemp(prefix="nas-test-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (cluster._ENVIRONMENT | cluster._LOCAL_ENVIRONMENT).items():
            patch.setenv(name, value)
        patch.setenv(*MARK.split("="))
        patch.setenv("RAY_TMPDIR", str(folder))  # where the cluster notes its address
        (folder / "ray").mkdir()
        cluster._read_environment_again()
        with cluster._loopback() as address:
            machines = Cluster(
                initialize_head=True,
                head_node_args=NODE | {"num_cpus": 0, "temp_dir": str(folder), "include_dashboard": False},
            )
            for _ in range(2):
                machines.add_node(num_cpus=2, **NODE)
            ray.init(address=machines.address, log_to_driver=False, _node_ip_address=address)
        yield machines
        ray.shutdown()
        machines.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.usefixtures("machines")
def test_a_cluster_on_loopback_listens_there_alone(listens_beyond_loopback: Callable[[int], bool]) -> None:
    assert not listens_beyond_loopback(os.getpid())


@pytest.mark.usefixtures("machines")
def test_gpus_that_a_cluster_lacks_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    for share in (0.0, 0.5):
        assert not caplog.records
        cluster._tell_of_missing_gpus(RayConfig(gpus_per_part=share))
    (message,) = caplog.messages
    assert message.startswith("the cluster has no GPU at present, `ray.gpus_per_part` is 0.5: part searches wait")


@pytest.mark.faults
def test_a_retraining_whose_worker_is_killed_repeats_no_finished_epoch(
    machines: Cluster, tmp_path: Path, images: list[np.ndarray], processes: Callable[[tuple[str, ...], str], list[int]]
) -> None:
    config = load_config("tiny", ["retrain.num_epochs=8", "retrain.steps_per_epoch=6", "retrain.distill_share=0",
                                  "retrain.start=scratch", f"ray.storage_path={tmp_path / 'shared'}"])  # fmt: skip
    space = SearchSpace(num_channels=16, num_resolutions=1, num_layers=1, candidate_ops=("conv_r",))
    genotype = sample_genotype(space, generator=torch.Generator().manual_seed(0))
    losses: dict[int, list[float]] = {}
    killed: list[int] = []

    def log(epoch: int, metrics: dict[str, float]) -> None:
        losses.setdefault(epoch, []).append(metrics["loss"])
        if epoch == 2 and not killed:
            killed.extend(processes(("ray::RayTrainWorker",), MARK))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    retrain(config, genotype, images, inherited=None, folder=tmp_path / "train", log=log)
    assert len(killed) == 1
    assert sorted(losses) == list(range(1, 9)) and all(len(told) == 1 for told in losses.values())
    torch.manual_seed(config.seed)
    source = noisy_patches(images, config.noise, patch_size=config.retrain.patch_size)
    undisturbed = Trainer(
        build_network(genotype), source, config.retrain, prior=None, seed=config.seed, device=torch.device("cpu")
    )
    assert [losses[epoch][0] for epoch in range(1, 9)] == pytest.approx(
        [undisturbed.run_epoch()["loss"] for _ in range(8)], rel=1e-4
    )


@pytest.mark.faults
def test_a_search_whose_machine_is_gone_goes_on_at_another(
    machines: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config("tiny", ["search.cost=macs", "search.num_epochs=24"])
    prior = load_prior(config.prior.weights)
    space = search_inputs.space_of(config, prior.num_channels)
    inputs = search_inputs.prepare_inputs(config, prior, photographs(TRAINING_PHOTOGRAPHS))
    nodes: list[Any] = []  # of every process that is started; asked for first, as they do one thing after the other
    start = part_actors.start_part_actor

    def remembered(*arguments: Any, **options: Any) -> Any:
        actor = start(*arguments, **options)
        nodes.append(actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))
        return actor

    monkeypatch.setattr(part_actors, "start_part_actor", remembered)

    def searched(name: str, log: Any = None) -> Genotype:
        costs = search_inputs.cost_models(config, space, None)
        return stage.search(config, space, costs, inputs, checkpoint_folder=tmp_path / name, log=log).genotype

    lost: list[str] = []

    def log(part_index: int, epoch: int, metrics: dict[str, float]) -> None:
        if part_index == 1 and not lost:
            lost.append(ray.get(nodes[1]))
            (node,) = [node for node in machines.worker_nodes if node.node_id == lost[0]]
            machines.remove_node(node, allow_graceful=False)

    interrupted = searched("interrupted", log)
    assert len(nodes) > 3 and "the process that searched part 1 died; the same command goes on" in caplog.text
    assert sorted(path.name for path in (tmp_path / "interrupted").iterdir()) == ["part0.pt", "part1.pt", "part2.pt"]
    deadline = time.monotonic() + 60
    while sum(node["Alive"] for node in ray.nodes()) > 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert interrupted == searched("undisturbed")


@pytest.mark.faults
def test_a_collection_whose_machine_is_gone_goes_on_at_another(
    machines: Cluster, tmp_path: Path, processes: Callable[[tuple[str, ...], str], list[int]]
) -> None:
    with cluster._loopback():
        machines.add_node(num_cpus=2, **NODE)  # the test before lost one

    def collected(name: str) -> str:
        config = load_config("tiny", ["search.num_epochs=40", "ray.cpus_per_part=0.3", "collect.shared_steps=6",
                                      "collect.proxy_size=32", f"latency.table={tmp_path / 'prices.parquet'}",
                                      f"collect.supernets={tmp_path / 'undisturbed'}",
                                      f"output={tmp_path / name}"])  # fmt: skip
        claim_collection(tmp_path / name, config)
        (record,) = collect(open_run(config), num_searched=1, num_random=0)
        return record["genotype_id"]

    def history() -> list[tuple[int, dict[str, float]]]:
        found = list((tmp_path / "interrupted" / "checkpoints").glob("searched-00000-*/part1.pt"))
        return load_checkpoint(found[0])["history"] if found else []

    def more_than(num_epochs: int) -> list[tuple[int, dict[str, float]]]:
        """Wait for that many in the checkpoint."""
        deadline = time.monotonic() + 180
        while len(epochs := history()) <= num_epochs:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return epochs

    def lose_the_machine_of_the_trial() -> bool:
        more_than(1)
        (part, *_) = processes(("ray::PartActor",), MARK)
        parent = int(Path(f"/proc/{part}/stat").read_text().rpartition(") ")[2].split()[1])
        (node,) = [n for n in machines.worker_nodes if n.all_processes["raylet"][0].process.pid == parent]
        before = history()
        machines.remove_node(node, allow_graceful=False)
        return more_than(len(before))[: len(before)] == before

    undisturbed = collected("undisturbed")
    with ThreadPoolExecutor() as executor:
        is_same_epoch = executor.submit(lose_the_machine_of_the_trial)
        assert collected("interrupted") == undisturbed
        assert is_same_epoch.result(), "no epoch that had arrived was made again"
    assert list((tmp_path / "interrupted" / "checkpoints").iterdir()) == []
