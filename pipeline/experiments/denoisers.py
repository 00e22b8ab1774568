"""Tables IV and V, Figs. 4 to 7: the searched network against hand-made denoisers at equal training.

arXiv 2502.13359, Section IV-B. All networks are trained from scratch with L1, the same seeds, patches and steps, and
scored on the sets that `experiment.data` names; quality is drawn against measured milliseconds.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import nn

from pipeline.baselines import build_baseline, save_baseline
from pipeline.checkpoint import save_weights
from pipeline.config import Config
from pipeline.data.datasets import Dataset, open_dataset
from pipeline.data.images import read_image, to_8_bit, white_level, write_image
from pipeline.denoise import denoise_image
from pipeline.evaluate import ImageScore, evaluate_denoiser, mean_score, score_image
from pipeline.evaluation.noise import PAIRS, NoisySample, TestNoise, noises_of
from pipeline.experiments.cells import FILES_FOLDER, cell_name
from pipeline.experiments.drawing import new_figure, save_figure
from pipeline.experiments.experiment import CellJob, Claim, Column, Experiment, Values, ValuesBySeed, Variant, compare
from pipeline.experiments.networks import COST_COLUMNS, PSNR, time_network, train, with_l1_alone
from pipeline.experiments.searches import GENOTYPE_FILE, find_network
from pipeline.metrics import psnr_db
from pipeline.pictures import most_detailed_crop
from search_space import Genotype, build_network

SEARCHED, NOISY, BLOCK_MATCHING = "searched", "noisy", "bm3d"
CLEAN = "clean"  # beside the variants, in the figure of crops
WEIGHTS_FILE = "model.safetensors"
_CROP_SIZE, _CROP_FILES = 96, "crop*.png"

# Sizes that train on two cores; at the paper's scale the baselines' own are used.
_SMALL: dict[str, dict[str, object]] = {
    "dncnn": {"num_channels": 24, "num_layers": 8},
    "nafnet": {"num_channels": 8, "encoder_blocks": (1, 1, 2), "middle_blocks": 2, "decoder_blocks": (1, 1, 1)},
    "mirnet": {"num_channels": 8, "num_blocks": 1},
    "plain-unet": {"num_channels": 16},
}
# Columns of the tables: sets by the name of their folder, and noises.
_COLUMNS = [
    *((name, f"{kind}:{level}") for name in ("CBSD68", "Set5") for kind, levels in
      (("awgn", (15, 25, 50)), ("niid", (1, 2, 3))) for level in levels),
    ("PolyU100", PAIRS),
]  # fmt: skip
# Table V, in the order of the columns. The paper has no NAFNet and no plain U-Net.
_PAPER = {
    "bm3d": (32.67, 29.83, 26.81, 26.51, 25.28, 26.44, 33.42, 30.92, 28.16, 27.76, 26.34, 27.88),
    "dncnn": (33.87, 31.22, 27.91, 28.73, 28.15, 28.11, 34.04, 31.88, 28.95, 29.85, 29.04, 29.13),
    "mirnet": (34.09, 31.48, 28.25, 29.07, 28.72, 28.50, 34.59, 32.44, 29.52, 30.46, 29.93, 29.83),
    "searched": (34.49, 31.89, 28.71, 29.36, 28.99, 28.79, 35.07, 32.92, 30.10, 30.82, 30.12, 30.13),
}


def run(job: CellJob) -> Values:
    """Train, where there is something to train, and score on the validation images and on the sets of the settings."""
    config = with_l1_alone(job.config, job.config.experiment.denoiser_epochs)
    if config.experiment.data and config.noise.model != PAIRS:  # several kinds and strengths of noise are asked for
        blind = {"noise.model": "mixed", "noise.sigma_255": [0.0, 55.0]}
        config = config.with_settings(blind | {"noise.validation_sigma_255": config.noise.validation_level_255})
    if job.variant == NOISY:
        return _scores(job, config, lambda sigma: nn.Identity())
    if job.variant == BLOCK_MATCHING:
        return _block_matching(job, config)
    torch.manual_seed(config.seed)
    if job.variant == SEARCHED:
        genotype, _ = find_network(job, config)
        genotype.save(job.folder / GENOTYPE_FILE)
        torch.manual_seed(config.seed)
    network = _build(job)
    trained = train(job, config, network)
    if job.variant == SEARCHED:
        save_weights(job.folder / WEIGHTS_FILE, network.state_dict())
    else:
        save_baseline(network, job.folder / WEIGHTS_FILE)
    return _scores(job, config, lambda sigma: network) | trained


def measure(job: CellJob) -> Values:
    """Time the network of the cell, whose weights do not matter; nothing for the noisy input and BM3D."""
    if job.variant in (NOISY, BLOCK_MATCHING):
        return {}
    return time_network(job.config, _build(job))


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of those (ms, PSNR) that no other one beats or equals in both, from fast to slow."""
    best = [
        name
        for name, (ms, psnr) in points.items()
        if not any(
            other_ms <= ms and other_psnr >= psnr and (other_ms, other_psnr) != (ms, psnr)
            for other_ms, other_psnr in points.values()
        )
    ]
    return sorted(best, key=lambda name: points[name])


def draw(values: ValuesBySeed, folder: Path) -> list[Path]:
    """Draw PSNR against measured milliseconds with the front, and the crops of the first seed, a row per image."""
    labels = {variant.name: variant.label for variant in EXPERIMENT.variants}
    points = {
        name: (fmean(of_seed[name]["measured_ms"] for of_seed in values.values()),
               fmean(of_seed[name]["psnr_db"] for of_seed in values.values()))
        for name in labels
        if all("measured_ms" in of_seed.get(name, {}) for of_seed in values.values())
    }  # fmt: skip
    best = front(points)
    figure, ((axis,),) = new_figure(1, 1, inches=(6.5, 4.5))
    axis.plot([points[name][0] for name in best], [points[name][1] for name in best], color="tab:orange", zorder=1)
    for name, (ms, psnr) in points.items():
        color = "tab:orange" if name in best else "0.6"
        axis.scatter([ms], [psnr], color=color, zorder=2)
        text = labels[name] if name in best else f"{labels[name]} (dominated)"
        axis.annotate(text, (ms, psnr), textcoords="offset points", xytext=(5, -11))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.set_xlabel("measured ms")
    axis.set_ylabel("PSNR (rounded), dB")
    paths = [save_figure(figure, folder, "front")]
    rows = _crops(folder, min(values))
    if rows:
        columns = [name for name in (*labels, CLEAN) if any(name in row for row in rows.values())]
        figure, grid = new_figure(len(rows), len(columns), inches=(1.7 * len(columns), 2.0 * len(rows)))
        for (image_name, row), axes in zip(rows.items(), grid, strict=True):
            axes[0].set_ylabel(image_name, fontsize=8)
            for name, axis in zip(columns, axes, strict=True):
                axis.set(xticks=[], yticks=[], frame_on=False)
                if name in row:
                    crop, decibels = row[name]
                    axis.imshow(to_8_bit(crop), interpolation="nearest")
                    under = "" if decibels is None else f"\n{decibels:.2f} dB"
                    axis.set_xlabel(labels.get(name, name) + under, fontsize=8)
        paths.append(save_figure(figure, folder, "crops"))
    return paths


def _build(job: CellJob) -> nn.Module:
    if job.variant == SEARCHED:
        return build_network(Genotype.load(job.folder / GENOTYPE_FILE))
    sizes = {} if job.config.name.startswith("paper") else _SMALL[job.variant]
    return build_baseline(job.variant.replace("-", "_"), **sizes)


def _block_matching(job: CellJob, config: Config) -> Values:
    """Score BM3D with the true sigma where there is one."""
    from pipeline.evaluation.block_matching import BM3D

    return _scores(job, config.with_settings({"device": "cpu"}), lambda sigma: BM3D(sigma=sigma))


def _scores(job: CellJob, config: Config, denoiser: Callable[[float | None], nn.Module]) -> Values:
    """Return `psnr_db` and `ssim` on the validation images, and the same with ` SET NOISE` on the sets of the settings.

    Args:
        job: of the cell; crops of the first validation image, and of the first image of every set with the last noise
            of every kind, are left in its folder.
        config: its settings.
        denoiser: from sigma on the [0, 1] scale, or None where it varies, to a network.
    """
    images, sigma, tile_size = job.inputs.validation_images, config.noise.validation_sigma, config.evaluate.tile_size
    is_real = config.noise.model == PAIRS
    scores = evaluate_denoiser(
        denoiser(None if is_real else sigma), images, sigma=sigma, device=config.device, tile_size=tile_size,
        keep_images=True,
    )  # fmt: skip
    name, image = next(iter(images.items()))
    _save_crop(job.folder, 0, name, scores[0].denoised, image[..., :3])
    mean = mean_score(scores)
    values = {"psnr_db": mean.psnr_db, "ssim": mean.ssim}
    for number, (dataset, noise, is_drawn) in enumerate(_sets(config), start=1):
        denoise = partial(denoise_image, denoiser(noise.sigma), tile_size=tile_size, device=config.device)
        found: list[ImageScore] = []
        for sample in _spread(noise.samples(dataset), len(dataset), config.experiment.max_images):
            score = score_image(
                denoise, name=sample.name, clean=sample.clean, noisy=sample.noisy, keep_images=is_drawn and not found
            )
            if score.denoised is not None:
                _save_crop(job.folder, number, f"{dataset.name} {noise.name}", score.denoised, sample.clean)
            found.append(score)
        mean = mean_score(found)
        values |= {f"psnr_db {dataset.name} {noise.name}": mean.psnr_db, f"ssim {dataset.name} {noise.name}": mean.ssim}
    return values


def _sets(config: Config) -> Iterator[tuple[Dataset, TestNoise, bool]]:
    """Yield every set with every noise, and whether a crop is drawn: with the last noise of every kind."""
    for source in config.experiment.data:
        dataset = open_dataset(source, promote_grey=config.data.promote_grey)
        noises = noises_of(dataset, config.experiment.noise)
        last = {noise.name.partition(":")[0]: noise.name for noise in noises}
        for noise in noises:
            yield dataset, noise, noise.name in last.values()


def _spread(samples: Iterable[NoisySample], num: int, most: int | None) -> Iterator[NoisySample]:
    """Return at most so many of `num` samples, at equal distances; noise is as it is in the whole set."""
    return islice(samples, 0, None, 1 if most is None else math.ceil(num / most))


def _save_crop(folder: Path, number: int, name: str, denoised: np.ndarray | None, clean: np.ndarray) -> None:
    """Keep the most detailed piece of an image, denoised, above the clean one."""
    assert denoised is not None, "the score was asked for with its image"
    top, left, height, width = most_detailed_crop(clean, _CROP_SIZE)
    window = np.s_[top : top + height, left : left + width]
    name = name.replace(":", "-").replace("/", "-")
    write_image(folder / f"crop{number:02} {name}.png", np.concatenate([denoised[window], clean[window]]))


def _crops(folder: Path, seed: int) -> dict[str, dict[str, tuple[np.ndarray, float | None]]]:
    """Return what was kept of every image: by variant, and `clean`, the crop and its PSNR."""
    rows: dict[str, dict[str, tuple[np.ndarray, float | None]]] = {}
    for variant in EXPERIMENT.variants:
        cell = folder / FILES_FOLDER / cell_name(variant.name, seed)
        for path in sorted(cell.glob(_CROP_FILES)):
            denoised, clean = np.split(read_image(path), 2)
            row = rows.setdefault(path.stem.partition(" ")[2], {})
            row[variant.name] = (denoised, psnr_db(denoised, clean, data_range=white_level(clean)))
            row[CLEAN] = (clean, None)
    return rows


def _paper(variant: str) -> dict[str, float]:
    """Return the paper's figures by column."""
    pairs = zip(_COLUMNS, _PAPER[variant], strict=False)  # it has no PolyU
    return {f"psnr_db {name} {noise}": value for (name, noise), value in pairs}


EXPERIMENT = Experiment(
    name="denoisers",
    title="the searched network against hand-made denoisers (Tables IV, V, Figs. 4 to 7)",
    description=(
        "All networks are trained from scratch with L1, with the same seeds, patches and steps; small versions of the "
        "baselines except in the paper's presets. The search keeps to `search.target_ms` where the preset has it. The "
        "first column is the mean of the validation images. `experiment.data` names further sets (CBSD68, Set5, "
        "PolyU100 have columns; others are in the records alone), `experiment.noise` the noises of the clean ones; "
        "training is then blind (VDN's maps and sigma 0 to 55, half each), or on the pairs that the preset trains on. "
        "Of every set at most `experiment.max_images` count, at equal distances. BM3D knows sigma where it is "
        "constant, and needs its package; without it its row is empty."
    ),
    variants=(
        Variant(name=NOISY, label="noisy input", is_seeded=False),
        Variant(name=BLOCK_MATCHING, label="BM3D", is_seeded=False, package="bm3d", paper=_paper(BLOCK_MATCHING)),
        Variant(name="dncnn", label="DnCNN", paper=_paper("dncnn")),
        Variant(name="plain-unet", label="plain U-Net"),
        Variant(name="nafnet", label="NAFNet"),
        Variant(name="mirnet", label="MIRNet", paper=_paper("mirnet")),
        Variant(name=SEARCHED, label="searched", paper=_paper(SEARCHED)),
    ),
    columns=(
        PSNR, *COST_COLUMNS,
        *(Column(key=f"psnr_db {name} {noise}", title=f"{name} {noise}, dB") for name, noise in _COLUMNS),
        Column(key=f"ssim PolyU100 {PAIRS}", title=f"PolyU100 {PAIRS}, SSIM", digits=4),
    ),
    claims=tuple(
        Claim(text=f"the searched network is better than {label}", estimate=compare("psnr_db", SEARCHED, name),
              unit="dB", is_papers=name in ("dncnn", "mirnet"))
        for name, label in
        (("dncnn", "DnCNN"), ("plain-unet", "the plain U-Net"), ("nafnet", "NAFNet"), ("mirnet", "MIRNet"))
    ),
    run=run,
    measure=measure,
    needs_prices=True,
    draw=draw,
)  # fmt: skip
