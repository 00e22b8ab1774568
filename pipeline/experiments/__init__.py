"""The paper's experiments: each one file that says what is compared, and small machinery that carries it out.

Called by `denoise-nas experiment`. An experiment is a list of cells, variant x seed, each a plain function from
settings to numbers; `runner` gives the cells to Ray and keeps what they return, `table` and `claims` say what came out.
A new experiment is one file with a constant `EXPERIMENT` and one line in `registry`.
"""

from pipeline.experiments.experiment import CellJob, Claim, Column, Experiment, Inputs, Values, Variant, compare
from pipeline.experiments.registry import EXPERIMENTS, load_experiment

__all__ = [
    "EXPERIMENTS",
    "CellJob",
    "Claim",
    "Column",
    "Experiment",
    "Inputs",
    "Values",
    "Variant",
    "compare",
    "load_experiment",
]
