"""A training whose list of checkpoints was cut off goes on from the last of them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint import save_checkpoint
from pipeline.cluster import ray_session
from pipeline.config import load_config
from pipeline.retrain import _run_name, retrain
from pipeline.settings import RayConfig
from pipeline.train_folder import SNAPSHOT_FILE, STATE_FILE, mend_train_folder
from search_space import SearchSpace, sample_genotype


def write_checkpoint(folder: Path, name: str, num_epochs: int) -> Path:
    history = [(epoch, {"loss": 1 / epoch}) for epoch in range(1, num_epochs + 1)]
    save_checkpoint(folder / f"checkpoint_{name}" / STATE_FILE, {"history": history})
    return folder / f"checkpoint_{name}" / STATE_FILE


@pytest.mark.parametrize("cut", ["", '{"ray_version":"2.60.0","checkpoint_results":[{"ver'])
def test_a_list_that_was_cut_off_is_written_again(tmp_path: Path, cut: str) -> None:
    for name, num_epochs in (("b", 1), ("a", 2), ("c", 3)):
        newest = write_checkpoint(tmp_path, name, num_epochs)
    os.truncate(newest, newest.stat().st_size // 2)
    (tmp_path / "checkpoint_d").mkdir()
    (tmp_path / SNAPSHOT_FILE).write_text(cut)
    mend_train_folder(tmp_path)
    found = json.loads((tmp_path / SNAPSHOT_FILE).read_text())
    assert [result["checkpoint_dir_name"] for result in found["checkpoint_results"]] == ["checkpoint_b", "checkpoint_a"]
    assert found["latest_checkpoint_result"]["metrics"] == {"loss": 0.5}
    assert (tmp_path / f"{SNAPSHOT_FILE}.damaged").read_text() == cut


def test_a_list_without_a_whole_checkpoint_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT_FILE).write_text("{")
    mend_train_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{SNAPSHOT_FILE}.damaged"]


def test_sound_and_missing_lists_are_left_alone(tmp_path: Path) -> None:
    mend_train_folder(tmp_path / "none")
    mend_train_folder(Path("s3://bucket") / "training")
    write_checkpoint(tmp_path, "a", 1)
    mend_train_folder(tmp_path)
    assert not (tmp_path / SNAPSHOT_FILE).exists()
    (tmp_path / SNAPSHOT_FILE).write_text("{}")
    mend_train_folder(tmp_path)
    assert (tmp_path / SNAPSHOT_FILE).read_text() == "{}" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.faults
@pytest.mark.ray
def test_ray_goes_on_from_the_list_and_finds_what_it_wrote_itself(tmp_path: Path, images: list[np.ndarray]) -> None:
    config = load_config("tiny", ["retrain.start=scratch", "retrain.distill_share=0"])
    space = SearchSpace(num_channels=16, num_resolutions=1, num_layers=1, candidate_ops=("conv_d1",))
    genotype = sample_genotype(space, generator=torch.Generator().manual_seed(0))
    folder = tmp_path / _run_name(config, genotype)
    told: list[int] = []

    def train() -> dict[str, torch.Tensor]:
        told.clear()
        return retrain(
            config, genotype, images, inherited=None, folder=tmp_path, log=lambda epoch, _: told.append(epoch)
        )

    with ray_session(RayConfig()):
        weights = train()
        written = (folder / SNAPSHOT_FILE).read_text()
        checkpoints = sorted(folder.glob("checkpoint_*/*"))
        os.truncate(folder / SNAPSHOT_FILE, len(written) // 2)
        again = train()
    assert json.loads((folder / SNAPSHOT_FILE).read_text()) == json.loads(written)
    assert sorted(folder.glob("checkpoint_*/*")) == checkpoints, "no epoch was done again"
    assert sorted(told) == [1, 2]
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
