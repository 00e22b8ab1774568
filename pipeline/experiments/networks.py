"""Train, score and time one network inside a cell; called by the experiments.

Trainings of an experiment are compared at equal steps: with the same seed, all variants see the same patches and noise
in the same order.
"""

import numpy as np
import torch
from torch import nn

from latency import TimingRule, measure_network_ms
from pipeline.config import Config
from pipeline.data.distilled import training_patches
from pipeline.data.patches import PatchSource, noisy_patches
from pipeline.evaluate import evaluate_denoiser, mean_score
from pipeline.experiments.experiment import CellJob, Column, Values
from pipeline.plain import hash_of
from pipeline.priors import load_prior
from pipeline.training import Trainer, train_to_the_end
from search_space import DenoisingNetwork, network_macs, num_parameters

TRAINING_FILE = "training.pt"
_NETWORK_TIME = 50  # a network is timed for up to so many times the seconds that `latency` grants an operator
_MAX_SECONDS = 6.0

PSNR = Column(key="psnr_db", title="PSNR (rounded), dB")
PARAMETERS = Column(key="num_parameters", title="parameters, k", scale=1e3, digits=1, paper_title="paper, M")
MACS = Column(key="macs", title="MACs, G", scale=1e9, digits=3, paper_title="paper, G")
LATENCY = Column(key="measured_ms", title="measured, ms", digits=2, paper_title="paper, s")
COST_COLUMNS = (PARAMETERS, MACS, LATENCY)


def with_l1_alone(config: Config, num_epochs: int | None) -> Config:
    """Return the settings of trainings with L1 alone, of so many epochs where an experiment has a length of its own."""
    num_epochs = num_epochs or config.retrain.num_epochs
    return config.with_settings({"retrain.distill_share": 0.0, "retrain.num_epochs": num_epochs})


def train_and_score(job: CellJob, config: Config, network: nn.Module) -> Values:
    """Train a freshly initialised network as `retrain` says, and score it on the validation images.

    A training that was interrupted goes on from its last epoch, unless it was of another network: a search that is
    repeated need not find the same one.

    Args:
        job: of the cell.
        config: its settings, with what the experiment changes.
        network: to train.

    Returns:
        `psnr_db` and `ssim` of the rounded images, `num_parameters`, `macs` at `evaluate.image_size`, `num_steps`.

    Raises:
        FloatingPointError: the training diverged.
    """
    trained = train(job, config, network)
    score = mean_score(
        evaluate_denoiser(
            network, job.inputs.validation_images, sigma=config.noise.validation_sigma, device=config.device,
            tile_size=config.evaluate.tile_size,
        )
    )  # fmt: skip
    return {"psnr_db": score.psnr_db, "ssim": score.ssim} | trained


def train(job: CellJob, config: Config, network: nn.Module) -> Values:
    """Train as `train_and_score` does, without scoring: `num_parameters`, `macs` and `num_steps` are returned.

    Raises:
        FloatingPointError: the training diverged.
    """
    device = torch.device(config.device)
    prior = load_prior(config.prior.weights, device=device)
    trainer = Trainer(
        network,
        training_patches(config, list(job.inputs.training_images.values()), prior, seed=config.seed),
        config.retrain,
        prior=prior,
        seed=config.seed,
        device=device,
    )
    train_to_the_end(trainer, job.folder / TRAINING_FILE, network_id=_network_id(network))
    network.eval()
    size = config.evaluate.image_size
    return {
        "num_parameters": num_parameters(network),
        "macs": network_macs(network, height=size, width=size),
        "num_steps": trainer.num_steps,
    }


def _network_id(network: nn.Module) -> str:
    """Return what tells the networks apart that one cell may train; baselines and peers are known by their sizes."""
    if isinstance(network, DenoisingNetwork):
        return network.genotype.genotype_id
    return hash_of(getattr(network, "sizes", None))


def time_network(config: Config, network: nn.Module) -> Values:
    """Return `measured_ms` of one image at `latency.image_size`; to be called while nothing else runs."""
    latency = config.latency
    rule = TimingRule(
        warmup_runs=latency.warmup_runs,
        min_repeats=latency.min_repeats,
        max_repeats=latency.max_repeats,
        max_seconds=min(_MAX_SECONDS, _NETWORK_TIME * latency.max_seconds),
    )
    ms = measure_network_ms(
        network, height=latency.image_size, width=latency.image_size, device=torch.device(latency.device),
        num_threads=latency.num_threads, rule=rule,
    )  # fmt: skip
    return {"measured_ms": ms}


def patch_source(config: Config, images: dict[str, np.ndarray]) -> PatchSource:
    """Return the source of training patches that `retrain` and `noise` describe."""
    return noisy_patches(list(images.values()), config.noise, patch_size=config.retrain.patch_size)
