"""From the name of an experiment to its file.

Read by the command line, by the runner and inside Ray's workers. An experiment is a module of this folder with a
constant `EXPERIMENT`, and a line here; the modules are imported when they are asked for, so that `--help` stays quick.
"""

import importlib

from pipeline.experiments.experiment import Experiment

# In the order of the paper.
EXPERIMENTS: dict[str, str] = {
    "resampling": "down- and up-sampling modules (Table I)",
    "operators": "feature statistics of hin, swin and ib in one place (Fig. 3)",
    "estimators": "memory and quality of three gradients of alpha (Table II, Fig. 9)",
    "nas": "architecture searches: ours, CLEARER, HiNAS, random search (Table III)",
    "denoisers": "the searched network against hand-made ones (Tables IV, V, Figs. 4 to 7)",
    "levels": "each level of the search space at random (Table VI)",
    "prior": "three parts against the prior, or one search of the whole without it (Table VII)",
    "cost": "parameters, multiply-adds or milliseconds as the regulariser (Table VIII)",
    "proxies": "what a search can see, and what counts: rank correlations",
}


def load_experiment(name: str) -> Experiment:
    """Return the experiment of that name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; known are {', '.join(EXPERIMENTS)}")
    experiment: Experiment = importlib.import_module(f"pipeline.experiments.{name}").EXPERIMENT
    assert experiment.name == name, f"{experiment.name} stands in the file of {name}"
    return experiment
