"""The processes that search parts: what they are asked for, how they are started, what the death of one looks like.

Called by `pipeline.search` for one search, and by `pipeline.trial` for one search after the other.
"""

import gc
import importlib
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from pipeline.cluster import prepare_worker, read_op_files
from pipeline.config import Config
from pipeline.part_checkpoints import checkpoint_file
from pipeline.part_search import PartEpoch, PartSearchResult, search_part
from pipeline.priors import NUM_PARTS
from pipeline.search_inputs import SearchInputs, part_budgets, part_data, search_key
from pipeline.time_slice import lengthen_time_slice
from search_space import CostModel, SearchSpace

# What a caller sees of an actor that died, was killed for its memory, or was on a machine that is gone.
DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)
_MOST_UNREAD = 4  # news of a part, each with a checkpoint; it waits then, or they would fill the object store


@dataclass(frozen=True, kw_only=True)
class PartJob:
    """What one part search needs besides its data.

    Attributes:
        config: settings of the whole search.
        space: the search space.
        costs: what the complexity regulariser counts in this part.
        budget: of this part in the unit of `costs`, or None.
        checkpoint_path: of this part, on the command's own node; None keeps nothing.
        home: Ray's id of the command's own node. On another one the checkpoint is kept in a temporary file, to be
            fetched.
        checkpoint: what `checkpoint_path` holds, for other nodes; empty where there is none yet.
    """

    config: Config
    space: SearchSpace
    costs: CostModel
    budget: float | None
    checkpoint_path: str | None
    home: str
    checkpoint: bytes = b""


def part_jobs(
    config: Config,
    space: SearchSpace,
    costs: list[CostModel],
    *,
    checkpoint_folder: Path | None,
    home: str | None = None,
) -> list[PartJob]:
    """Return the jobs of the three parts; checkpoints are kept where a folder is given, on the disk of node `home`.

    By default that is this node.
    """
    folder = None if checkpoint_folder is None else checkpoint_folder.absolute()
    return [
        PartJob(
            config=config, space=space, costs=cost, budget=budget, home=home or ray.get_runtime_context().get_node_id(),
            checkpoint_path=None if folder is None else str(folder / f"part{index}.pt"),
        )
        for index, (cost, budget) in enumerate(zip(costs, part_budgets(config, costs), strict=True))
    ]  # fmt: skip


class PartActors:
    """The processes of three part searches; one that died is started again in its place. Needs an initialised Ray.

    Args:
        config: resources and operator files.
        reserved: Ray's strategies for places that are kept for them, one for each. Processes in such places stay for a
            next search; others end with their search, since another part may wait for their place.
    """

    def __init__(self, config: Config, reserved: Sequence[Any] = ()) -> None:
        self._config = config
        self._reserved = reserved
        self._actors = [self._start(index) for index in range(NUM_PARTS)]

    def __getitem__(self, part_index: int) -> Any:
        return self._actors[part_index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._actors)

    @property
    def are_reserved(self) -> bool:
        """Whether their places are kept for them."""
        return bool(self._reserved)

    def start_again(self, part_index: int) -> None:
        """Start another process for a part whose process died."""
        ray.kill(self._actors[part_index])  # it may live on behind a lost connection
        self._actors[part_index] = self._start(part_index)

    def release(self, part_index: int) -> None:
        """Let the process of a finished part go where others may wait for its place."""
        if not self._reserved:
            ray.kill(self._actors[part_index])

    def end(self) -> None:
        """End all three."""
        for actor in self._actors:
            ray.kill(actor)

    def _start(self, part_index: int) -> Any:
        place = {"scheduling_strategy": self._reserved[part_index]} if self._reserved else {}
        return start_part_actor(self._config, part_index, **place)


def start_part_actor(config: Config, part_index: int, **options: Any) -> Any:
    """Start a process for the searches of one part; needs an initialised Ray.

    Args:
        config: resources and operator files.
        part_index: 0, 1 or 2.
        options: more of Ray's options, such as a scheduling strategy.

    Returns:
        An actor whose `run` takes a `PartJob` and a reference to `SearchInputs`, and yields `PartNews`.
    """
    resources = {"num_cpus": config.ray.cpus_per_part, "num_gpus": config.ray.gpus_per_part}
    actor = PartActor.options(**resources, **options)  # type: ignore[attr-defined]
    return actor.remote(part_index, read_op_files(config.space.op_files))


class PartDiedError(RuntimeError):
    """The process that searched a part died, or its machine."""


@contextmanager
def naming_part(part_index: int) -> Iterator[None]:
    """Let errors of a call to the process of a part name the part and the cause.

    Raises:
        OSError: its checkpoint cannot be written.
        FloatingPointError: too many of its steps had no finite loss.
        RuntimeError: it failed otherwise.
        PartDiedError: the process died.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        kinds: tuple[type[Exception], ...] = (OSError, FloatingPointError)
        failure = next((kind for kind in kinds if isinstance(cause, kind)), RuntimeError)
        raise failure(f"the search of part {part_index} failed: {type(cause).__name__}: {cause}") from error
    except DEATHS as error:
        why = ", its memory was full" if isinstance(error, ray.exceptions.OutOfMemoryError) else ""
        raise PartDiedError(
            f"the process that searched part {part_index} died{why}; the same command goes on from its last epoch"
        ) from error


@dataclass(frozen=True, kw_only=True)
class PartNews:
    """What the process of a part tells while it searches.

    Attributes:
        news: an epoch, or at last the result.
        checkpoint: what the search has saved after that epoch, where it is not at home.
    """

    news: PartEpoch | PartSearchResult
    checkpoint: bytes = b""


@ray.remote
class PartActor:
    """Searches of one part in a process of their own, one after the other.

    A search depends on nothing that an earlier one leaves: it seeds all its random numbers itself. One call at a time
    keeps it in the main thread, which otherwise asks for Python's lock a hundred times a second.
    """

    def __init__(self, part_index: int, op_sources: dict[str, str]) -> None:
        prepare_worker(op_sources)
        importlib.import_module("torch._dynamo")  # the first step of an optimiser would
        gc.freeze()  # what has been imported stays; walking it again and again took 3 % of a search
        self.part_index = part_index
        self.cpu_before = 0.0

    @ray.method(num_returns="streaming", _generator_backpressure_num_objects=_MOST_UNREAD)
    def run(
        self, job: PartJob, inputs: SearchInputs, initial_weights: Sequence[dict[str, Tensor]] | None = None
    ) -> Iterator[PartNews]:
        """Search the part and tell of it; `initial_weights` are those of three supernets to begin from."""
        config = job.config
        lengthen_time_slice()
        torch.set_num_threads(config.search.threads_per_part)
        self.cpu_before = time.process_time()
        is_home = ray.get_runtime_context().get_node_id() == job.home
        with checkpoint_file(job, is_home=is_home) as path:
            for news in search_part(
                self.part_index,
                job.space,
                part_data(config, inputs, self.part_index),
                job.costs,
                config.search,
                budget=job.budget,
                seed=config.seed,
                device=torch.device(config.device),
                initial_weights=None if initial_weights is None else initial_weights[self.part_index],
                checkpoint_path=path,
                checkpoint_key=search_key(config),
            ):
                checkpoint = b""
                if path is not None and not is_home and isinstance(news, PartEpoch) and not news.is_told_again:
                    checkpoint = path.read_bytes()
                yield PartNews(news=news, checkpoint=checkpoint)

    def host(self) -> str:
        """Return the name and address of this node."""
        return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"

    def cpu_seconds(self) -> float:
        """Return the processor time of this process since its search began."""
        return time.process_time() - self.cpu_before
