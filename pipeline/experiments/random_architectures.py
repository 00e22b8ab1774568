"""Random architectures of near-equal predicted milliseconds, and supernets that lend them weights.

Called by `proxies`. Made by the first cell that asks, the supernets once per seed, and kept beside the cells' folders.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ops.files import write_atomically
from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.config import Config
from pipeline.experiments.experiment import CellJob
from pipeline.priors import NUM_PARTS
from pipeline.search_inputs import SearchInputs, part_data, predicted_ms
from pipeline.shared_supernet import load_supernets, train_shared_supernet
from search_space import Genotype, PartSupernet, SearchSpace, sample_genotype

SHARED_SETTINGS = ("shared_steps", "shared_batch_size", "shared_learning_rate")  # of `collect`: how supernets train
_SEED = 0  # of the draws, whatever the seed of a cell: all seeds train the same architectures
_NUM_DRAWS = 1500  # of which those nearest to the wanted milliseconds are kept
_FASTEST = 0.05  # quantile of the draws' milliseconds; architectures around faster ones differ too much in cost
_SKIP_SHARES = (0.1, 0.3, 0.5, 0.7)  # random networks of one weight of `skip` would all cost about the same


def shared_architectures(
    job: CellJob, config: Config, space: SearchSpace, inputs: SearchInputs, *, num: int
) -> tuple[list[Genotype], list[PartSupernet]]:
    """Return `num` architectures, the same for all cells, and three supernets, the same for all cells of a seed."""
    folder = job.folder.parent
    drawn = folder / "architectures.json"
    with _locked(folder / "architectures.lock"):
        if not drawn.exists():
            genotypes = _near_equal(job, config, space, num)
            write_atomically(drawn, json.dumps([genotype.to_dict() for genotype in genotypes]))
    supernets = load_supernets(space, _supernet_weights(folder, config, space, inputs))
    return [Genotype.from_dict(record) for record in json.loads(drawn.read_text())], supernets


def _supernet_weights(
    folder: Path, config: Config, space: SearchSpace, inputs: SearchInputs
) -> list[dict[str, Tensor]]:
    """Return the weights of the three supernets; cells that need them at the same time train different parts."""
    collect = config.collect
    paths = [folder / f"supernet-{config.seed}-part{index}.pt" for index in range(NUM_PARTS)]
    for waits in (False, True):
        for index, path in enumerate(paths):
            with _locked(path.with_suffix(".lock"), waits=waits) as is_ours:
                if not is_ours or path.exists():
                    continue
                weights = train_shared_supernet(
                    index, space, part_data(config, inputs, index), num_steps=collect.shared_steps,
                    batch_size=collect.shared_batch_size, learning_rate=collect.shared_learning_rate, seed=config.seed,
                    device=torch.device(config.device), max_bad_steps=config.search.max_bad_steps,
                    threshold=config.search.threshold,
                )  # fmt: skip
                save_checkpoint(path, weights)
    return [load_checkpoint(path) for path in paths]


def _near_equal(job: CellJob, config: Config, space: SearchSpace, num: int) -> list[Genotype]:
    """Draw random architectures and keep those nearest to the budget, or to the median where there is none.

    Where hardly any is as fast as the budget, the nearest would differ widely; then those around a fast one serve.
    """
    generator = torch.Generator().manual_seed(_SEED)
    others = {name: 1.0 for name in space.candidate_ops if name != "skip"}
    found: dict[str, tuple[float, Genotype]] = {}
    for number in range(_NUM_DRAWS):
        share = _SKIP_SHARES[number % len(_SKIP_SHARES)]
        weights = others | {"skip": share / (1 - share) * len(others)} if "skip" in space.candidate_ops else others
        genotype = sample_genotype(space, generator=generator, op_weights=weights, threshold=config.search.threshold)
        found[genotype.genotype_id] = (predicted_ms(job.table, genotype, config.latency.image_size), genotype)
    fastest, median = np.quantile([ms for ms, _ in found.values()], (_FASTEST, 0.5))
    target = float(median) if config.search.target_ms is None else max(float(fastest), config.search.target_ms)
    nearest = sorted(found.values(), key=lambda pair: abs(pair[0] - target))[:num]
    return [genotype for _, genotype in nearest]


@contextmanager
def _locked(path: Path, *, waits: bool = True) -> Iterator[bool]:
    """Let one cell at a time in, and tell whether it is this one; a process that dies lets go."""
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
