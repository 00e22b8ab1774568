"""Baselines trained by command, with the numbers of a searched network's training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.baseline_training import parse_sizes, train_baseline
from pipeline.baselines import PlainUNet
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.data.images import read_image, write_image
from pipeline.data.patches import PatchSource
from pipeline.models import load_denoiser
from pipeline.run import Run, open_run
from pipeline.tracking import MlflowClient, MlflowException
from pipeline.training import Trainer

SIZES = {"num_channels": 4}


def open_folder(folder: Path, progress=lambda stage, done, total: None) -> Run:
    overrides = [f"output={folder}", "retrain.num_epochs=3", "retrain.steps_per_epoch=2"]
    return open_run(load_config("tiny", overrides), progress=progress)


def weights_of(path: Path) -> dict[str, Tensor]:
    return load_denoiser(path).state_dict()


def test_a_baseline_is_trained_as_retrain_says(tmp_path: Path) -> None:
    run = open_folder(tmp_path)
    losses = []
    path = train_baseline(run, "plain_unet", SIZES, log=lambda metrics, epoch: losses.append(metrics["train/loss"]))
    config = run.config
    torch.manual_seed(config.seed)
    network = PlainUNet(**SIZES)
    source = PatchSource(
        list(run.training_images.values()), patch_size=config.retrain.patch_size, sigma_range=config.noise.sigma_range
    )
    trainer = Trainer(network, source, config.retrain, prior=None, seed=config.seed, device=torch.device("cpu"))
    assert losses == [trainer.run_epoch()["loss"] for _ in range(3)]
    trained = weights_of(path)
    assert all(torch.equal(trained[name], tensor) for name, tensor in network.state_dict().items())


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    def train(folder: str, **settings) -> list[int]:
        epochs: list[int] = []
        run = open_folder(tmp_path / folder, **settings)
        train_baseline(run, "plain_unet", SIZES, log=lambda metrics, epoch: epochs.append(epoch))
        return epochs

    assert train("whole") == [1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        train("cut", progress=interrupt)
    assert train("cut") == [3]
    assert train("cut") == []  # finished
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    with pytest.raises(ValueError, match="holds the training of .*plain_unet.* this is .*dncnn"):
        train_baseline(
            open_folder(tmp_path / "cut"), "dncnn", {"num_channels": 4, "num_layers": 3}, log=lambda m, e: None
        )


def test_the_command_leaves_what_denoise_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], images: list[np.ndarray]
) -> None:
    out = tmp_path / "base"
    assert main(["baseline", "train", "dncnn", "--config", "tiny", "--output", str(out), "--size", "num_channels=4",
                 "--size", "num_layers=3"]) == 0  # fmt: skip
    assert "mean" in capsys.readouterr().out
    write_image(tmp_path / "noisy.png", images[0])
    assert main(["denoise", str(out), str(tmp_path / "noisy.png"), "--output", str(tmp_path / "clean")]) == 0
    assert read_image(tmp_path / "clean" / "noisy.png").shape == images[0].shape


def test_a_server_that_is_away_costs_a_training_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("the server went away")

    def without_metrics(*arguments: Any, **more: Any) -> None:
        if "metrics" in more:
            refuse()
        log_batch(*arguments, **more)

    command = ["baseline", "train", "dncnn", "--config", "tiny", "--output", str(tmp_path / "base"), "--size",
               "num_channels=4", "--size", "num_layers=3", "retrain.num_epochs=2"]  # fmt: skip
    log_batch = MlflowClient.log_batch
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_batch", without_metrics)
        assert main(command) == 0
    assert caplog.text.count("MLflow fails; the run goes on") == 1
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_experiment_by_name", refuse)
        assert main(command) == 0
    assert main(command) == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run((tmp_path / "base" / "mlflow_run_id").read_text().strip())
    assert run.info.status == "FINISHED" and run.data.tags["kind"] == "baseline"
    assert run.data.params["baseline"] == "dncnn" and run.data.params["sizes.num_channels"] == "4"
    assert run.data.metrics["psnr_db"] > 5
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unet"], "`NAME` must be one of dncnn, mirnet, nafnet, plain_unet, got 'unet'"),
        (["hinas"], "`NAME` must be one of dncnn, mirnet, nafnet, plain_unet, got 'hinas'"),
        (["dncnn", "--size", "16"], "a size must look like `num_channels=16`, got '16'"),
    ],
)
def test_impossible_baselines_give_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    command = ["baseline", "train", *arguments, "--config", "tiny", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_sizes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="baseline plain_unet cannot be built with .*num_layers"):
        train_baseline(open_folder(tmp_path), "plain_unet", {"num_layers": 3}, log=lambda metrics, epoch: None)
    assert parse_sizes(["encoder_blocks=[1, 2]", "num_channels=8"]) == {"encoder_blocks": [1, 2], "num_channels": 8}
