"""Retraining with Ray Train over several workers, and what Ray is asked for."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray  # noqa: TID251  # as the workers of the pipeline do
import ray.train  # noqa: TID251
import torch

from ops import registry
from pipeline import cluster
from pipeline.cluster import load_op_files, ray_session, read_op_files
from pipeline.config import Config, load_config
from pipeline.data.patches import PatchSource
from pipeline.part_actors import PartActors
from pipeline.retrain import _run_name, retrain
from pipeline.training import Trainer
from search_space import Genotype, SearchSpace, build_network, sample_genotype

# Convolves; where there is a file `armed`, its process waits in its second epoch for `broken`, and then fails. Where
# there is a file `poisoned`, its process says there that it began, and from its second epoch on makes NaN.
FAILING_OPERATOR = """
import time
from pathlib import Path

from ops import SlimmableConv2d, register_op

FOLDER = Path({folder!r})
STEPS = []  # 30 in an epoch: ten steps of three parts


class Failing(SlimmableConv2d):
    def forward(self, x, out_channels=None):
        STEPS.append(1)
        if (FOLDER / "poisoned").exists():
            if len(STEPS) == 1:
                with (FOLDER / "poisoned").open("a") as file:
                    file.write("began ")
            return super().forward(x, out_channels) * (float("nan") if len(STEPS) > 30 else 1)
        if len(STEPS) == 36 and (FOLDER / "armed").exists():
            end = time.monotonic() + 30
            while not (FOLDER / "broken").exists() and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.5)  # the report of the epoch arrives
            raise RuntimeError("the power is gone")
        return super().forward(x, out_channels)


@register_op("failing")
def build(spec):
    return Failing(spec.in_channels, spec.out_channels, 1)
"""


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """A Ray that believes in four processors and one GPU, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="nas-test-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (cluster._ENVIRONMENT | cluster._LOCAL_ENVIRONMENT).items():
            patch.setenv(name, value)
        cluster._read_environment_again()
        with cluster._loopback() as address:
            ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder),
                     object_store_memory=100 * 1024**2, _node_ip_address=address)  # fmt: skip
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register the failing operator here, and return the file that makes workers register it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(cluster, "_loaded_op_files", set())
    path = tmp_path / "failing.py"
    path.write_text(FAILING_OPERATOR.format(folder=str(tmp_path)))
    load_op_files(read_op_files((str(path),)))
    return path


def tiny(op_file: Path, num_workers: int) -> Config:
    return load_config("tiny", [f"space.op_files=['{op_file}']", "space.candidate_ops=[failing]",
                                f"retrain.num_workers={num_workers}", "retrain.num_epochs=3", "retrain.start=scratch",
                                "retrain.steps_per_epoch=10", "retrain.distill_share=0"])  # fmt: skip


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("failing_workers", [(1,), pytest.param((2, 1), marks=pytest.mark.faults)])
def test_training_goes_on_with_other_numbers_of_workers(
    failing_workers: tuple[int, ...],
    failing: Path,
    tmp_path: Path,
    images: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    listens_beyond_loopback: Callable[[int], bool],
) -> None:
    """Some workers fail, the first in the second epoch, two end it; the network is that of an undisturbed one."""
    space = SearchSpace(num_channels=16, num_resolutions=1, num_layers=1, candidate_ops=("failing",))
    genotype = sample_genotype(space, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(ray.train, "FailureConfig", partial(_no_second_try, ray.train.FailureConfig))
    armed, broken = tmp_path / "armed", tmp_path / "broken"
    epochs: list[tuple[int, float]] = []
    is_open: list[bool] = []

    def log(epoch: int, metrics: dict[str, float]) -> None:
        epochs.append((epoch, metrics["loss"]))
        is_open.append(listens_beyond_loopback(os.getpid()))
        broken.touch()

    def train(num_workers: int, storage_path: Path | None = None) -> dict[str, torch.Tensor]:
        broken.unlink(missing_ok=True)
        config = tiny(failing, num_workers)
        if storage_path is not None:
            config = config.with_settings({"ray.storage_path": str(storage_path)})
        return retrain(config, genotype, images, inherited=None, folder=tmp_path / "train", log=log)

    armed.touch()
    for num_workers in failing_workers:
        with pytest.raises(RuntimeError, match="the power is gone"):
            train(num_workers)
        assert is_open and not any(is_open)
    armed.unlink()
    weights = train(2, tmp_path / "train")
    assert not any(is_open), "not even where workers might be on several machines"
    assert [epoch for epoch, _ in sorted(set(epochs))] == [1, 2, 3], "an epoch is told again, but not done twice"
    config = tiny(failing, 1)
    torch.manual_seed(config.seed)
    sigma = config.noise.sigma_range
    source = PatchSource(images, patch_size=config.retrain.patch_size, sigma_range=sigma)
    undisturbed = Trainer(
        build_network(genotype), source, config.retrain, prior=None, seed=0, device=torch.device("cpu")
    )
    losses = [undisturbed.run_epoch()["loss"] for _ in range(3)]
    assert losses[2] < 0.9 * losses[0], "there is something to learn"
    assert dict(epochs)[3] == pytest.approx(losses[2], rel=1e-3)
    for name, tensor in undisturbed.network.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("num_workers", [2, 1])
def test_a_loss_that_is_not_a_number_is_not_tried_again(
    num_workers: int, failing: Path, tmp_path: Path, images: list[np.ndarray]
) -> None:
    """These workers meet it and end; one goes on after the epoch that was good."""
    space = SearchSpace(num_channels=16, num_resolutions=1, num_layers=1, candidate_ops=("failing",))
    genotype = sample_genotype(space, generator=torch.Generator().manual_seed(0))
    config = tiny(failing, num_workers)
    epochs: list[int] = []

    def train(num_workers: int) -> dict[str, torch.Tensor]:
        return retrain(tiny(failing, num_workers), genotype, images, inherited=None, folder=tmp_path / "train",
                       log=lambda epoch, metrics: epochs.append(epoch))  # fmt: skip

    (tmp_path / "poisoned").touch()
    assert config.ray.max_failures > 0 and config.retrain.max_bad_steps > 10
    message = "epoch 2: no step of the epoch had a finite loss; lower .*; the last good checkpoint is epoch 1"
    with pytest.raises(FloatingPointError, match=f"retraining failed: {message}"):
        train(num_workers)
    assert (tmp_path / "poisoned").read_text().count("began") == num_workers, "the workers were started once"
    assert epochs == [1]
    (tmp_path / "poisoned").unlink()
    assert all(tensor.isfinite().all() for tensor in train(1).values())
    assert sorted(epochs[1:]) == [1, 2, 3], "the first is told again, the training went on after it"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_part_asks_for_its_share_of_a_gpu() -> None:
    config = load_config("tiny", ["ray.gpus_per_part=0.25", "ray.cpus_per_part=0.5"])
    with ray_session(config.ray):
        actors = PartActors(config)
        ray.get([actor.host.remote() for actor in actors])
        for _ in range(100):  # what is free is told with a delay
            free = ray.available_resources()
            if (free["GPU"], free["CPU"]) == (0.25, 2.5):
                break
            time.sleep(0.1)
        actors.end()
    assert (free["GPU"], free["CPU"]) == (0.25, 2.5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ray.gpus_per_part=-1", "`ray.gpus_per_part` must be between 0 and 1, or a whole number, got -1"),
        ("ray.gpus_per_part=1.5", "`ray.gpus_per_part` must be between 0 and 1, or a whole number, got 1.5"),
        ("ray.gpus_per_part=.nan", "`ray.gpus_per_part` must be between 0 and 1"),
        ("ray.cpus_per_part=.inf", "`ray.cpus_per_part` must be finite and at least 0, got inf"),
        ("search.precision=float16", "`search.precision` must be one of float32, bfloat16, got 'float16'"),
        ("retrain.precision=half", "`retrain.precision` must be one of float32, bfloat16, got 'half'"),
    ],
)
def test_impossible_resources_and_precisions_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("tiny", [setting])


def test_the_number_of_workers_does_not_name_a_training(tiny_space: SearchSpace) -> None:
    genotype: Genotype = sample_genotype(tiny_space, generator=torch.Generator().manual_seed(0))
    one, two, other = (load_config("tiny", overrides) for overrides in
                       ([], ["retrain.num_workers=2"], ["retrain.num_epochs=9"]))  # fmt: skip
    assert _run_name(one, genotype) == _run_name(two, genotype) != _run_name(other, genotype)
    assert one.config_hash == two.config_hash != other.config_hash


def _no_second_try(failure_config: Any, max_failures: int) -> Any:
    """Stand in for Ray's `FailureConfig`: a worker that died is not started again."""
    return failure_config(max_failures=0)
