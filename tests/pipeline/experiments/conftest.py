"""What the tests of experiments share: a made-up experiment of two variants, and the inputs of a cell."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config, load_config
from pipeline.data.images import TRAINING_PHOTOGRAPHS, VALIDATION_PHOTOGRAPHS, photographs
from pipeline.experiments import CellJob, Claim, Column, Experiment, Inputs, Variant, compare


def _never(job: CellJob) -> dict[str, float]:
    raise AssertionError("the cells of this experiment are not run")


@pytest.fixture
def two_variants() -> Experiment:
    """A slow and a fast variant; the paper has a figure for one of them."""
    return Experiment(
        name="resampling",  # a name that the registry knows
        title="two variants",
        description="One against the other.",
        variants=(Variant(name="slow", label="the slow one", paper={"psnr_db": 30.5}), Variant(name="fast", label="B")),
        columns=(Column(key="psnr_db", title="PSNR, dB"), Column(key="num_parameters", title="k", scale=1e3, digits=1)),
        claims=(Claim(text="slow wins", estimate=compare("psnr_db", "slow", "fast"), unit="dB", paper=0.5),),
        run=_never,
    )


@pytest.fixture(scope="session")
def inputs() -> Inputs:
    """Crops of the photographs that the tiny preset takes."""
    training, validation = photographs(TRAINING_PHOTOGRAPHS), photographs(VALIDATION_PHOTOGRAPHS)
    return Inputs(
        training_images={name: np.ascontiguousarray(image[:64, :96]) for name, image in training.items()},
        validation_images={name: np.ascontiguousarray(image[64:96, 64:96]) for name, image in validation.items()},
    )


@pytest.fixture
def make_job(tmp_path: Path, inputs: Inputs) -> Callable[..., CellJob]:
    """Make the job of a cell with the tiny preset and further settings; each has a folder of its own."""

    def make(variant: str, *settings: str, seed: int = 0, **more: object) -> CellJob:
        config: Config = load_config("tiny", [f"seed={seed}", *settings])
        folder = tmp_path / f"{variant}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        values = {"inputs": inputs} | more
        return CellJob(variant=variant, config=config, folder=folder, num_threads=1, **values)

    return make
