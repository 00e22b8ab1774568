"""Fig. 3: statistics of the features that hin, swin and ib generate in the same place.

arXiv 2502.13359, Section III-B. A supernet of each part with these three operators on offer is trained to imitate the
prior, a random path in every step, so that none is preferred. Then all three operators of a cell are run on the same
input, and the mean and standard deviation of what they return are taken; the cells after it see the output of one of
them, drawn at random.

Legend: B batch, C channels, H height, W width.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from pipeline.checkpoint import load_weights, save_weights
from pipeline.data.images import to_tensor, white_level
from pipeline.data.noise import add_test_awgn
from pipeline.data.part_data import PartData
from pipeline.experiments.cells import FILES_FOLDER, cell_name
from pipeline.experiments.drawing import new_figure, save_figure
from pipeline.experiments.experiment import CellJob, Claim, Column, Experiment, Values, ValuesBySeed, Variant
from pipeline.experiments.intervals import Estimate, share_estimate
from pipeline.experiments.searches import search_inputs
from pipeline.figure_style import BLUE, GREEN, VERMILION
from pipeline.losses import feature_distance
from pipeline.priors import NUM_PARTS, Prior, load_prior
from pipeline.search_inputs import part_data, space_of
from pipeline.shared_supernet import load_supernet, train_shared_supernet
from search_space import CellPosition, MixedCell, PartSupernet
from search_space.supernet import cell_key

OPERATORS = ("hin", "swin", "ib")
FEATURES_FILE = "features.safetensors"
_NUM_PATHS = 16  # random paths, each with a batch of its own, that the statistics are of
_CROP = 128  # pixels, of the image whose features are drawn
_COLOURS = {"hin": VERMILION, "swin": BLUE, "ib": GREEN}
_LARGEST_RADIUS = 11.0  # points, of the circle of the largest standard deviation


def run(job: CellJob) -> Values:
    """Train the supernet of one part and return the statistics of its operators; leaves features to draw.

    Returns:
        For every operator and cell `mean_OP_CELL` and `std_OP_CELL`, their averages over the cells `mean_OP` and
        `std_OP`, and `l_dp`, the distance to the prior over random paths on D_archi.
    """
    part_index = int(job.variant.removeprefix("part-"))
    config = job.config.with_settings({"space.candidate_ops": list(OPERATORS)})
    device = torch.device(config.device)
    prior = load_prior(config.prior.weights, device=device)
    space = space_of(config, prior.num_channels)
    data = part_data(config, search_inputs(job, config, prior), part_index)
    weights = train_shared_supernet(
        part_index, space, data, num_steps=config.retrain.num_epochs * config.retrain.steps_per_epoch,
        batch_size=config.search.batch_size, learning_rate=config.search.weight_learning_rate, seed=config.seed,
        device=device, max_bad_steps=config.search.max_bad_steps, threshold=config.search.threshold,
    )  # fmt: skip
    supernet = PartSupernet(part_index, space, generator=torch.Generator().manual_seed(config.seed))
    load_supernet(supernet, weights)
    supernet.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(config.seed)
    values = feature_statistics(supernet, data, batch_size=config.search.batch_size, generator=generator)
    _save_features(job, supernet, prior)
    return values


def operator_outputs(supernet: PartSupernet, x: Tensor, path: Sequence[int]) -> list[dict[str, Tensor]]:
    """Run all operators of every cell on the same input, at full width, with all pathways equally weighted.

    Args:
        supernet: of one part.
        x: (B, 3, H, W) noisy image or (B, C, H, W) features.
        path: index of the operator of every cell whose output the next cells see.

    Returns:
        For every cell the (B, C, H, W) output of each operator.
    """
    space = supernet.space
    uniform = supernet.arch.uniform_probabilities()
    features = {CellPosition(0, 0): supernet.stem(x)}
    outputs = []
    for n, (cell, chosen) in enumerate(zip(space.cells, path, strict=True)):
        mixed = supernet.cells[cell_key(cell)]
        assert isinstance(mixed, MixedCell)
        gathered = mixed.gather(
            features, space.num_channels, space.pathways(cell), uniform["beta"][n], uniform["delta"][n]
        )
        outputs.append({name: mixed.ops[name](gathered, space.num_channels) for name in space.candidate_ops})
        features[cell] = outputs[-1][space.candidate_ops[chosen]]
    return outputs


@torch.inference_mode()
def feature_statistics(
    supernet: PartSupernet, data: PartData, *, batch_size: int, generator: torch.Generator
) -> Values:
    """Return mean and standard deviation of every operator in every cell, over random paths and all their elements."""
    space = supernet.space
    cells = [cell_key(cell) for cell in space.cells]
    sums = {(name, cell): np.zeros(3) for name in space.candidate_ops for cell in cells}  # count, sum, sum of squares
    distances = []
    for _ in range(_NUM_PATHS):
        x, target = data.sample("architecture", batch_size, generator)
        path = torch.randint(len(space.candidate_ops), (len(cells),), generator=generator).tolist()
        outputs = operator_outputs(supernet, x, path)
        last = outputs[-1][space.candidate_ops[path[-1]]]
        distances.append(feature_distance(supernet.close(x, supernet.stem(x), last), target).item())
        for cell, by_name in zip(cells, outputs, strict=True):
            for name, y in by_name.items():
                y = y.double()
                sums[name, cell] += (y.numel(), y.sum().item(), y.square().sum().item())
    values: Values = {"l_dp": fmean(distances)}
    for name in space.candidate_ops:
        means, deviations = [], []
        for cell in cells:
            count, total, squares = sums[name, cell]
            means.append(total / count)
            deviations.append(max(0.0, squares / count - means[-1] ** 2) ** 0.5)
            values |= {f"mean_{name}_{cell}": means[-1], f"std_{name}_{cell}": deviations[-1]}
        values |= {f"mean_{name}": fmean(means), f"std_{name}": fmean(deviations)}
    return values


@torch.inference_mode()
def _save_features(job: CellJob, supernet: PartSupernet, prior: Prior) -> None:
    """Keep a noisy crop, and the root mean square over channels of each operator's output in the last cell."""
    image = next(iter(job.inputs.validation_images.values()))
    size = min(_CROP, *(side - side % prior.size_multiple for side in image.shape[:2]))
    crop = image[:size, :size]
    is_pair = crop.shape[2] == 6
    sigma = job.config.noise.validation_sigma
    noisy = to_tensor(crop[..., 3:] if is_pair else add_test_awgn(crop / white_level(crop), sigma))
    x = noisy.to(next(prior.parameters()).device, memory_format=torch.channels_last)
    for part_index in range(supernet.part_index):
        x = prior.run_part(part_index, x)
    outputs = operator_outputs(supernet, x, [0] * len(supernet.space.cells))[-1]
    maps = {name: y[0].square().mean(dim=0).sqrt() for name, y in outputs.items()}  # (C, H, W) -> (H, W)
    save_weights(job.folder / FEATURES_FILE, {"noisy": noisy[0].clamp(0, 1)} | maps)


def draw(values: ValuesBySeed, folder: Path) -> list[Path]:
    """Draw the circles of Fig. 3 for every part, averaged over seeds, and the features of the first seed."""
    figure, (panels,) = new_figure(1, NUM_PARTS, inches=(11.5, 3.4))
    for part_index, axes in enumerate(panels):
        _draw_circles(axes, [of_seed[f"part-{part_index}"] for of_seed in values.values()])
        axes.set_title(f"part {part_index}")
        axes.set_xlabel("cell")
    panels[0].set_ylabel("mean; radius: standard deviation")
    circles = [Line2D([], [], marker="o", linestyle="", color=_COLOURS[name], alpha=0.6) for name in OPERATORS]
    figure.legend(circles, OPERATORS, loc="outside lower center", ncols=len(OPERATORS), frameon=False)
    return [save_figure(figure, folder, "statistics"), _draw_features(folder, min(values))]


def _draw_circles(axes: Axes, seeds: Sequence[Values]) -> None:
    cells = [key.removeprefix("std_hin_") for key in seeds[0] if key.startswith("std_hin_")]

    def averages(statistic: str, name: str) -> list[float]:
        return [fmean(values[f"{statistic}_{name}_{cell}"] for values in seeds) for cell in cells]

    largest = max(max(averages("std", name)) for name in OPERATORS)
    for offset, name in zip((-0.2, 0.0, 0.2), OPERATORS, strict=True):
        radii = [_LARGEST_RADIUS * deviation / largest for deviation in averages("std", name)]
        axes.scatter(
            [index + offset for index in range(len(cells))], averages("mean", name), s=[(2 * r) ** 2 for r in radii],
            color=_COLOURS[name], alpha=0.4,
        )  # fmt: skip
    axes.set_xticks(range(len(cells)), [cell.replace("_", "\n") for cell in cells], fontsize=7)
    axes.margins(0.12)  # room for the circles


def _draw_features(folder: Path, seed: int) -> Path:
    figure, rows = new_figure(NUM_PARTS, 1 + len(OPERATORS), inches=(8.4, 6.4))
    for part_index, row in enumerate(rows):
        stored = load_weights(folder / FILES_FOLDER / cell_name(f"part-{part_index}", seed) / FEATURES_FILE)
        row[0].imshow(stored["noisy"].permute(1, 2, 0).numpy())  # (3, H, W) -> (H, W, 3)
        brightest = max(stored[name].max().item() for name in OPERATORS)
        for axes, name in zip(row[1:], OPERATORS, strict=True):
            axes.imshow(stored[name].numpy(), cmap="viridis", vmin=0, vmax=brightest)
        for axes, name in zip(row, ("noisy", *OPERATORS), strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"part {part_index}: {name}")
    return save_figure(figure, folder, "features")


def _wider(name: str) -> Claim:
    def estimate(values: ValuesBySeed) -> Estimate:
        return share_estimate(
            [
                fmean(math.log(part["std_swin"] / part[f"std_{name}"]) for part in of_seed.values())
                for of_seed in values.values()
            ]
        )

    return Claim(
        text=f"features of swin spread more than those of {name}", estimate=estimate, unit=f"of the spread of {name}"
    )


EXPERIMENT = Experiment(
    name="operators",
    title="feature statistics of hin, swin and ib in one place (Fig. 3)",
    description=(
        "A supernet of each part with hin, swin and ib on offer is trained with random paths; then the three "
        "operators of every cell are run on the same input. Mean and standard deviation (std) of their outputs over "
        "all elements, averaged over the cells; in the figure for each cell (r resolution, l layer). The pictures "
        "show the root mean square over channels in the last cell."
    ),
    variants=tuple(Variant(name=f"part-{index}", label=f"part {index}") for index in range(NUM_PARTS)),
    columns=(
        *(Column(key=f"std_{name}", title=f"std of {name}", digits=3) for name in OPERATORS),
        *(Column(key=f"mean_{name}", title=f"mean of {name}", digits=3) for name in OPERATORS),
        Column(key="l_dp", title="L_dp", digits=3),
    ),
    claims=(_wider("hin"), _wider("ib")),
    run=run,
    draw=draw,
)
