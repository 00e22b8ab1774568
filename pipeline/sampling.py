"""What the trials of a collection differ in, drawn by Optuna for Ray Tune.

Called by `pipeline.collect`. Optuna is asked and told directly, so that recorded trials of an earlier, interrupted run
count as told, and so that the random sampler gives trial i the same settings whatever came before it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import optuna
from ray.tune.search import Searcher

from pipeline.records import Record
from pipeline.settings import NUM_SEEDS, SearchConfig

_WHOLE_NUMBERS = {f"search.{field.name}" for field in fields(SearchConfig) if field.type is int}


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """One architecture to make: the `index`-th searched or random one."""

    origin: str
    index: int


class CollectionSearcher(Searcher):
    """Hand out jobs in order; searched ones with settings from an Optuna sampler.

    Args:
        jobs: what is missing in the collection.
        vary: setting -> choices, as in `CollectConfig.vary`.
        sampler: `random`, `tpe` or `nsga2`; the latter two maximise proxy PSNR and minimise predicted latency.
        seed: of the sampler.
        recorded: architectures that the collection has already.
    """

    def __init__(
        self, jobs: Sequence[TrialJob], vary: Mapping[str, Any], *, sampler: str, seed: int, recorded: Sequence[Record]
    ) -> None:
        super().__init__(metric="proxy_psnr_db", mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._jobs = list(jobs)
        self._vary = dict(vary)
        self._seed = seed
        self._is_random = sampler == "random"
        self._distributions = {name: _distribution(name, choices) for name, choices in vary.items()}
        make: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
            "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
        }
        self._study = optuna.create_study(sampler=make[sampler](), directions=["maximize", "minimize"])
        self._open: dict[str, optuna.trial.Trial] = {}
        for record in recorded:
            if record["origin"] == "searched":
                self._study.add_trial(self._finished(record))

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # Ray's FINISHED is a string
        """Return origin, index and settings of the next job, or that there is none."""
        if not self._jobs:
            return Searcher.FINISHED
        job = self._jobs.pop(0)
        settings = self._ask(trial_id, job.index) if job.origin == "searched" else {}
        return {"origin": job.origin, "index": job.index, "settings": settings}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what came out."""
        trial = self._open.pop(trial_id, None)
        if trial is None:
            return
        if error or not result or math.isnan(result.get("proxy_psnr_db", math.nan)):
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, [result["proxy_psnr_db"], result["predicted_ms"]])

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the records are what a collection goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, see `save`."""

    def _ask(self, trial_id: str, index: int) -> dict[str, Any]:
        if self._is_random:
            self._study.sampler = optuna.samplers.RandomSampler(seed=(self._seed * 1_000_003 + index) % NUM_SEEDS)
        trial = self._study.ask(self._distributions)
        self._open[trial_id] = trial
        return {
            name: choices[trial.params[name]] if isinstance(choices, list) else trial.params[name]
            for name, choices in self._vary.items()
        }

    def _finished(self, record: Record) -> optuna.trial.FrozenTrial:
        settings = json.loads(record["varied"])
        params = {
            name: choices.index(settings[name]) if isinstance(choices, list) else settings[name]
            for name, choices in self._vary.items()
        }
        values = [record["proxy_psnr_db"], record["predicted_ms"]]
        return optuna.trial.create_trial(params=params, distributions=self._distributions, values=values)


def _distribution(name: str, choices: Any) -> optuna.distributions.BaseDistribution:
    if isinstance(choices, dict):
        low, high, log = choices["low"], choices["high"], bool(choices.get("log", False))
        if name in _WHOLE_NUMBERS:
            return optuna.distributions.IntDistribution(low, high, log=log)
        return optuna.distributions.FloatDistribution(float(low), float(high), log=log)
    return optuna.distributions.CategoricalDistribution(tuple(range(len(choices))))  # positions: choices may be lists
