"""What an experiment is: variants, a function that makes the numbers of one cell, columns, and the paper's claims.

Made by the files of this folder, one experiment each; carried out by `runner`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from latency import LatencyTable
from pipeline.config import Config
from pipeline.experiments.intervals import Estimate, mean_estimate, share_estimate

# Of a cell that runs alone: nothing competes with it, and the processes that it starts need GPUs. Ray lends the CPUs of
# a waiting task to others, but not its GPUs.
ALONE_GPUS = 0.1
Values = dict[str, float]  # what a cell returns: finite numbers by name
ValuesBySeed = Mapping[int, Mapping[str, Values]]  # by seed, then by variant


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What all cells of an experiment share; travels once through Ray's object store.

    Attributes:
        training_images: (H, W, 3) uint8 or uint16 clean images by name, or (H, W, 6) pairs.
        validation_images: likewise, disjoint.
        table: prices of all operators of the space, where the experiment asks for them.
    """

    training_images: dict[str, np.ndarray]
    validation_images: dict[str, np.ndarray]
    table: LatencyTable | None = None


@dataclass(frozen=True, kw_only=True)
class CellJob:
    """One cell: a variant with a seed.

    Attributes:
        variant: name of the variant.
        config: the preset with the experiment's sizes; its `seed` is the cell's.
        folder: for files of this cell alone: checkpoints, genotypes, pictures. A cell that was interrupted finds it as
            it left it.
        inputs: images and prices.
        num_threads: that the cell may compute with.
    """

    variant: str
    config: Config
    folder: Path
    inputs: Inputs
    num_threads: int

    @property
    def table(self) -> LatencyTable:
        """The prices of an experiment that asks for them."""
        assert self.inputs.table is not None, "the experiment asks for prices"
        return self.inputs.table


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Attributes:
        name: in files and on the command line: lower case letters, digits and hyphens.
        label: in tables and figures.
        is_seeded: its numbers depend on the seed. Otherwise they are made once, for the first seed, and hold for all.
        package: that it needs. While it is not installed its row is empty; a later command makes up for it.
        paper: the paper's own figures, by key of a column.
    """

    name: str
    label: str
    is_seeded: bool = True
    package: str | None = None
    paper: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_possible(self) -> bool:
        """Whether the package that it needs is installed."""
        return self.package is None or find_spec(self.package) is not None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table.

    Attributes:
        key: in the values of a cell; a cell without it leaves a gap.
        title: with its unit.
        scale: the shown number is value / scale.
        digits: after the decimal point.
        paper_title: what the paper's figure beside it is, where its unit or data differ.
    """

    key: str
    title: str
    scale: float = 1.0
    digits: int = 2
    paper_title: str = "paper"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something the paper found, as a number that is larger than `threshold` where it holds.

    Attributes:
        text: the finding in words.
        estimate: from the values of every variant by seed to the number with its 95 % interval, or to None where these
            seeds do not tell.
        unit: of the number.
        threshold: a smaller difference does not count.
        paper: the number that the paper's own figures give, or None.
        digits: after the decimal point.
        is_papers: False for a control of ours, which the verdict on the paper's finding leaves out.
    """

    text: str
    estimate: Callable[[ValuesBySeed], Estimate | None]
    unit: str
    threshold: float = 0.0
    paper: float | None = None
    digits: int = 2
    is_papers: bool = True


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A second table, of what all cells say together.

    Attributes:
        name: of its CSV file.
        frame: its numbers.
        markdown: the same for people, with a sentence on how it is read.
    """

    name: str
    frame: pd.DataFrame
    markdown: str


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table or figure of the paper.

    Attributes:
        name: of its file and of the command.
        title: heading of its section.
        description: what is compared with what, and where it departs from the paper; one paragraph.
        variants: rows of the table.
        columns: columns of the table.
        claims: what the paper found.
        run: makes the numbers of one cell: the same settings and seed give the same numbers.
        run_alone: the numbers of `run` depend on the clock or on the whole machine: cells run one at a time, with all
            the threads that `retrain.threads_per_worker` grants. Otherwise as many at a time as there are processors,
            one thread each.
        measure: numbers that depend on the clock, made for one cell at a time after all cells have run.
        searches: the cells divide the training images into those for weights and those for the architecture.
        needs_prices: the cells read `Inputs.table`.
        collect_settings: those of `collect` that the cells read; most experiments read none.
        required_settings: of `search`, what settings must be that some of the compared searches do not have.
        summarise: makes a second table from the values of every variant by seed, where rows per variant do not tell.
        draw: writes figures into `figures` of the experiment's folder and returns their paths; called with the values
            of every variant by seed, and the folder.
    """

    name: str
    title: str
    description: str
    variants: Sequence[Variant]
    columns: Sequence[Column]
    claims: Sequence[Claim]
    run: Callable[[CellJob], Values]
    run_alone: bool = False
    measure: Callable[[CellJob], Values] | None = None
    searches: bool = True
    needs_prices: bool = False
    collect_settings: Sequence[str] = ()
    required_settings: Mapping[str, object] = field(default_factory=dict)
    summarise: Callable[[ValuesBySeed], Summary] | None = None
    draw: Callable[[ValuesBySeed, Path], list[Path]] | None = None


def compare(key: str, more: str, less: str, *, relative: bool = False) -> Callable[[ValuesBySeed], Estimate]:
    """Return the estimate of a claim: by how much `key` of the variant `more` exceeds that of `less`, paired by seed.

    Args:
        key: in the values of both; positive where `relative`.
        more: the variant for which the paper found more.
        less: the other one.
        relative: as a share of the value of `less`.
    """

    def estimate(values: ValuesBySeed) -> Estimate:
        pairs = [(of_seed[more][key], of_seed[less][key]) for of_seed in values.values()]
        if relative:
            return share_estimate([math.log(a / b) for a, b in pairs])
        return mean_estimate([a - b for a, b in pairs])

    return estimate
