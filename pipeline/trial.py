"""One trial of a collection: a complete search, or a random architecture, scored to a record.

Run by Ray Tune inside the trial's placement group; its three part searches are actors of that group, kept and used
again by the next trial. Everything that trials have in common comes once through the object store. What is killed goes
on from the checkpoints of the part searches, which lie in the collection's folder until there is a record.
"""

import datetime
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor

from latency import LatencyTable, predict_latency_ms
from pipeline.cluster import prepare_worker
from pipeline.config import Config
from pipeline.data.patches import noisy_patches
from pipeline.evaluate import evaluate_denoiser, mean_score
from pipeline.part_actors import PartActors, part_jobs
from pipeline.part_search import PartSearchResult
from pipeline.plain import hash_of
from pipeline.priors import NUM_PARTS
from pipeline.records import Record, cell_rows
from pipeline.search import search_parts
from pipeline.search_inputs import SearchInputs, cost_models, space_of
from pipeline.settings import NUM_SEEDS
from pipeline.shared_supernet import inherited_network, load_supernets
from pipeline.training import Trainer
from search_space import (
    CostModel,
    DenoisingNetwork,
    Genotype,
    SearchSpace,
    build_network,
    genotype_macs,
    genotype_num_parameters,
    genotype_op_specs,
    sample_genotype,
)

FAILURE = "failure"  # in the result of a trial without a record
RANDOM_SEED_OFFSET = 1_000_000  # random architecture i has seed + this + i, so that no search shares its seed


@dataclass(frozen=True, kw_only=True)
class SharedData:
    """What all trials of a collection have in common.

    Attributes:
        config: settings of the collection.
        space: the whole search space.
        table: latencies of this device.
        inputs: reference to `SearchInputs`, which only the part actors need.
        supernets: reference to the weights of the three shared supernets.
        training_images: for the short retraining.
        validation_images: crops that architectures are scored on.
        op_sources: operator files.
        queue: where records go, and an `OSError` that no trial will be spared.
        checkpoints: folder on the command's node with the part searches that have no record yet, each by its key.
        home: Ray's id of the command's node.
    """

    config: Config
    space: SearchSpace
    table: LatencyTable
    inputs: "ray.ObjectRef[SearchInputs]"
    supernets: "ray.ObjectRef[list[dict[str, Tensor]]]"
    training_images: list[np.ndarray]
    validation_images: dict[str, np.ndarray]
    op_sources: dict[str, str]
    queue: Any
    checkpoints: Path
    home: str


class CollectionTrial(tune.Trainable):
    """Ray Tune's view of a trial: `step` makes one record, `reset_config` readies it for the next one."""

    def setup(self, config: dict[str, Any], shared: SharedData) -> None:  # type: ignore[override]
        """Take what trials share; the part actors start with the first search, random architectures need none."""
        prepare_worker(shared.op_sources)
        torch.set_num_threads(1)
        self.shared = shared
        self.costs: dict[str, list[CostModel]] = {}
        self.actors: PartActors | None = None
        self.supernets = load_supernets(shared.space, ray.get(shared.supernets))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Accept the next trial in the same processes; a search seeds all its random numbers itself."""
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Make the architecture, score it and send its record to the driver.

        A search or training whose losses are not finite fails here, in words: Tune tries whatever is raised again, and
        it would end the same way.
        """
        try:
            record = self._record()
        except FloatingPointError as error:
            self.cleanup()  # the other parts search on
            self.actors = None
            return {"done": True, "proxy_psnr_db": math.nan, FAILURE: str(error)}
        self.shared.queue.put(record)
        return {"done": True, "proxy_psnr_db": record["proxy_psnr_db"], "predicted_ms": record["predicted_ms"]}

    def _record(self) -> Record:
        origin, index = self.config["origin"], self.config["index"]
        start_cpu = time.process_time()
        if origin == "random":
            record, genotype, results = self._draw(index)
        else:
            record, genotype, results = self._search(index, self.config["settings"])
        start = time.perf_counter()
        record |= self._score(genotype, results, seed=record["seed"])
        record["score_seconds"] = round(time.perf_counter() - start, 3)
        record["cpu_seconds"] = round(record["cpu_seconds"] + time.process_time() - start_cpu, 3)
        record["finished_at"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return record

    def cleanup(self) -> None:
        """End the part actors."""
        if self.actors is not None:
            self.actors.end()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep nothing: the part searches do, and the rest of a trial lasts seconds."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing, see `save_checkpoint`."""

    def _start_actors(self) -> PartActors:
        """Start the part actors in the bundles of this trial's placement group."""
        group = ray.util.get_current_placement_group()
        assert group is not None, "a trial runs in a placement group"
        places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i + 1) for i in range(NUM_PARTS)]
        return PartActors(self.shared.config, places)

    def _search(self, index: int, settings: dict[str, Any]) -> tuple[Record, Genotype, tuple[PartSearchResult, ...]]:
        shared = self.shared
        config = trial_config(shared.config, index, settings)
        space = space_of(config, shared.space.num_channels)
        key = f"searched-{index:05d}-{settings_hash(config, settings)}"
        jobs = part_jobs(
            config, space, self._cost_models(config, space), checkpoint_folder=shared.checkpoints / key,
            home=shared.home,
        )  # fmt: skip
        last: dict[int, dict[str, float]] = {}

        def log(part_index: int, epoch: int, metrics: dict[str, float]) -> None:
            last[part_index] = metrics

        start = time.perf_counter()
        if self.actors is None:
            self.actors = self._start_actors()
        try:
            found = search_parts(
                jobs, shared.inputs, self.actors, log=log,
                initial_weights=shared.supernets if config.collect.warm_start else None,
            )  # fmt: skip
        except OSError as error:  # the disk is full: the next trial would find it so
            shared.queue.put(error)
            raise
        seconds = time.perf_counter() - start
        genotype, results = found.genotype, found.parts
        entropies = {
            f"entropy_{name}": sum(result.entropies[name] for result in results) / NUM_PARTS
            for name in results[0].entropies
        }
        entropies = {name: value for name, value in entropies.items() if math.isfinite(value)}  # nothing to choose
        record = {
            "key": key,
            "origin": "searched",
            "index": index,
            "seed": config.seed,
            "varied": json.dumps(settings),
            "complexity_weight": config.search.complexity_weight,
            "cost": config.search.cost,
            "target_ms": config.search.target_ms,
            "candidate_ops": list(space.candidate_ops),
            "weights": "warm" if config.collect.warm_start else "independent",
            "search_seconds": round(seconds, 3),
            "cpu_seconds": sum(ray.get([actor.cpu_seconds.remote() for actor in self.actors])),
            **{f"l_dp_part{i}": last[i]["l_dp_weights"] for i in range(NUM_PARTS)},
            **entropies,
            "num_bad_steps": sum(result.num_bad_steps for result in results),
            "cells": cell_rows(
                genotype, space, [result.probabilities for result in results], size=config.latency.image_size
            ),
        }
        return record, genotype, results

    def _draw(self, index: int) -> tuple[Record, Genotype, None]:
        shared = self.shared
        seed = shared.config.seed + RANDOM_SEED_OFFSET + index
        genotype = sample_genotype(
            shared.space, generator=torch.Generator().manual_seed(seed), threshold=shared.config.search.threshold
        )
        record = {
            "key": f"random-{index:05d}-{shared.config.config_hash}",
            "origin": "random",
            "index": index,
            "seed": seed,
            "varied": "{}",
            "candidate_ops": list(shared.space.candidate_ops),
            "search_seconds": 0.0,
            "cpu_seconds": 0.0,
            "cells": cell_rows(genotype, shared.space, None, size=shared.config.latency.image_size),
        }
        return record, genotype, None

    def _score(self, genotype: Genotype, results: tuple[PartSearchResult, ...] | None, *, seed: int) -> dict[str, Any]:
        """Return id, costs and PSNR with the shared weights, with the search's own, and after a short retraining.

        All on the processor: GPUs belong to the bundles of the part searches.
        """
        config, table = self.shared.config, self.shared.table
        size = config.latency.image_size
        calls = genotype_op_specs(genotype, height=size, width=size)
        ms = [predict_latency_ms(table, specs) for specs in calls]
        macs, parameters = genotype_macs(genotype, height=size, width=size), genotype_num_parameters(genotype)
        network = inherited_network(genotype, self.supernets).eval()
        scores = {
            "genotype_id": genotype.genotype_id,
            "genotype": json.dumps(genotype.to_dict()),
            "image_size": size,
            "macs": sum(macs),
            "num_parameters": sum(parameters),
            "predicted_ms": sum(ms),
            **{f"macs_part{i}": value for i, value in enumerate(macs)},
            **{f"num_parameters_part{i}": value for i, value in enumerate(parameters)},
            **{f"predicted_ms_part{i}": value for i, value in enumerate(ms)},
            "proxy_psnr_db": self._psnr_db(network),
            "retrain_steps": config.collect.retrain_steps,
        }
        if results is not None:
            own = build_network(genotype).eval()
            for part, result in zip(own.parts, results, strict=True):
                part.load_state_dict(result.weights)
            scores["own_psnr_db"] = self._psnr_db(own)
        if config.collect.retrain_steps > 0:
            scores["retrained_psnr_db"] = self._psnr_db(self._retrained(network, seed))
        return scores

    def _psnr_db(self, network: DenoisingNetwork) -> float:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        sigma = self.shared.config.noise.validation_sigma
        scores = evaluate_denoiser(network, self.shared.validation_images, sigma=sigma, device="cpu")
        return mean_score(scores).psnr_db

    def _retrained(self, network: DenoisingNetwork, seed: int) -> DenoisingNetwork:
        config = self.shared.config
        retrain = replace(config.retrain, num_epochs=1, steps_per_epoch=config.collect.retrain_steps, distill_share=0.0)
        source = noisy_patches(self.shared.training_images, config.noise, patch_size=retrain.patch_size)
        Trainer(network, source, retrain, prior=None, seed=seed, device=torch.device("cpu")).run_epoch()
        return network.eval()

    def _cost_models(self, config: Config, space: SearchSpace) -> list[CostModel]:
        """Return the costs, made once for every kind of cost and set of operators."""
        key = json.dumps([config.search.cost, space.candidate_ops, config.latency.image_size])
        if key not in self.costs:
            self.costs[key] = cost_models(config, space, self.shared.table.__getitem__)
        return self.costs[key]


def settings_hash(config: Config, settings: dict[str, Any]) -> str:
    """Return what tells a trial from one of the same index that was given other `settings`."""
    name = "collect.warm_start"  # the only one that `config_hash` leaves out
    return hash_of([config.config_hash, settings[name]]) if name in settings else config.config_hash


def trial_config(config: Config, index: int, settings: dict[str, Any]) -> Config:
    """Return the settings of the `index`-th searched architecture."""
    return config.with_settings({**settings, "seed": (config.seed + index) % NUM_SEEDS})
