"""The shared supernets of a collection: trained once, the three at the same time, or read where they are.

Called by `pipeline.collect`; `pipeline.shared_supernet` trains one of them.
"""

from pathlib import Path

import ray
import torch
from ray.util.queue import Queue
from torch import Tensor

from pipeline.checkpoint import load_metadata, load_weights, save_weights
from pipeline.cluster import driver_queue, prepare_worker, read_op_files
from pipeline.config import Config
from pipeline.plain import hash_of
from pipeline.priors import NUM_PARTS
from pipeline.run import Run
from pipeline.search_inputs import SearchInputs, part_data
from pipeline.settings import CollectConfig
from pipeline.shared_supernet import train_shared_supernet
from search_space import DEFAULT_THRESHOLD, SearchSpace

_PROGRESS_EVERY = 25  # steps


def shared_supernets(run: Run, inputs: "ray.ObjectRef[SearchInputs]") -> list[dict[str, Tensor]]:
    """Train the shared supernets of the three parts at the same time, or read those that are there.

    Raises:
        ValueError: supernets of other settings.
        RuntimeError: a training failed; the message names the cause.
    """
    config = run.config
    paths = supernet_paths(run.folder, config)
    key = supernet_key(config)
    for path in paths:
        if path.exists() and (found := load_metadata(path).get("supernet_key")) != key:
            raise ValueError(f"shared supernet {path} was trained with other settings (key {found}, this is {key})")
    queue = driver_queue()
    sources = read_op_files(config.space.op_files)
    tasks = {
        _train_supernet.options(num_cpus=config.ray.cpus_per_part, num_gpus=config.ray.gpus_per_part).remote(
            i, config, run.space, inputs, sources, queue
        ): i
        for i, path in enumerate(paths)
        if not path.exists()
    }
    steps = dict.fromkeys(tasks.values(), 0)
    pending = list(tasks)
    while pending:
        done, pending = ray.wait(pending, timeout=1.0)
        for part_index, step in queue.get_nowait_batch(queue.qsize()):
            steps[part_index] = step
            run.progress("shared supernets", sum(steps.values()), len(tasks) * config.collect.shared_steps)
        for task in done:
            try:
                weights = ray.get(task)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ray.exceptions.RayError):
                    raise  # told by `ray_session`
                raise RuntimeError(f"the training of shared supernets failed: {error.cause}") from error
            save_weights(paths[tasks[task]], weights, metadata={"supernet_key": key})
    queue.shutdown()
    return [load_weights(path) for path in paths]


def supernet_paths(folder: Path, config: Config) -> list[Path]:
    """Return the files of the shared supernets of the collection in `folder`."""
    place = Path(config.collect.supernets) if config.collect.supernets else folder
    return [place / f"supernet{i}.safetensors" for i in range(NUM_PARTS)]


def supernet_key(config: Config) -> str:
    """Return what shared supernets depend on, as a hash."""
    settings = config.lasting_settings()
    search = {name: settings["search"][name] for name in ("num_patches", "patch_size", "prior_features")}
    if config.search.threshold != DEFAULT_THRESHOLD:  # supernets trained before it counted keep their key
        search["threshold"] = config.search.threshold
    shared = {name: value for name, value in settings["collect"].items() if name.startswith("shared_")}
    keys = ("seed", "device", "data", "noise", "space", "prior")
    return hash_of([{name: settings[name] for name in keys}, search, shared])


@ray.remote(max_retries=2)
def _train_supernet(
    part_index: int, config: Config, space: SearchSpace, inputs: SearchInputs, op_sources: dict[str, str], queue: Queue
) -> dict[str, Tensor]:
    prepare_worker(op_sources)
    torch.set_num_threads(config.search.threads_per_part)
    settings: CollectConfig = config.collect

    def progress(step: int, l_dp: float | None) -> None:
        if step % _PROGRESS_EVERY == 0 or step == settings.shared_steps:
            queue.put((part_index, step))

    return train_shared_supernet(
        part_index,
        space,
        part_data(config, inputs, part_index),
        num_steps=settings.shared_steps,
        batch_size=settings.shared_batch_size,
        learning_rate=settings.shared_learning_rate,
        seed=config.seed,
        device=torch.device(config.device),
        max_bad_steps=config.search.max_bad_steps,
        threshold=config.search.threshold,
        progress=progress,
    )
