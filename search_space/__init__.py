"""Which networks exist, and how one is written down, searched over and built.

Read by `pipeline`; knows the operators and nothing of devices, data or training loops.
"""

from search_space.arch_parameters import LEVELS, ArchParameters, Choices
from search_space.complexity import (
    genotype_macs,
    genotype_num_parameters,
    network_macs,
    num_parameters,
    op_macs,
    op_num_parameters,
)
from search_space.derive import DEFAULT_THRESHOLD, choices_of, derive, derive_probabilities, perturb, redraw
from search_space.estimators import ESTIMATORS, Estimator, Selection, gumbel_noise, select
from search_space.expected_cost import LEVEL_WEIGHTS, CostModel, PartCost, restrict_to_budget, space_op_specs
from search_space.genotype import NUM_PARTS, CellGenotype, Genotype, PartGenotype
from search_space.network import (
    DenoisingNetwork,
    PartNetwork,
    build_network,
    cell_op_specs,
    genotype_op_specs,
    inherit_weights,
    part_op_specs,
)
from search_space.sample import randomise_levels, sample_genotype, sample_part
from search_space.space import DEFAULT_OPS, DIRECTIONS, WIDTHS, CellPosition, Direction, SearchSpace
from search_space.supernet import MixedCell, PartSupernet

__all__ = [
    "DEFAULT_OPS",
    "DEFAULT_THRESHOLD",
    "DIRECTIONS",
    "ESTIMATORS",
    "LEVELS",
    "LEVEL_WEIGHTS",
    "NUM_PARTS",
    "WIDTHS",
    "ArchParameters",
    "CellGenotype",
    "CellPosition",
    "Choices",
    "CostModel",
    "DenoisingNetwork",
    "Direction",
    "Estimator",
    "Genotype",
    "MixedCell",
    "PartCost",
    "PartGenotype",
    "PartNetwork",
    "PartSupernet",
    "SearchSpace",
    "Selection",
    "build_network",
    "cell_op_specs",
    "choices_of",
    "derive",
    "derive_probabilities",
    "genotype_macs",
    "genotype_num_parameters",
    "genotype_op_specs",
    "gumbel_noise",
    "inherit_weights",
    "network_macs",
    "num_parameters",
    "op_macs",
    "op_num_parameters",
    "part_op_specs",
    "perturb",
    "randomise_levels",
    "redraw",
    "restrict_to_budget",
    "sample_genotype",
    "sample_part",
    "select",
    "space_op_specs",
]
