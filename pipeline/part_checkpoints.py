"""Checkpoints of part searches: all lie on the disk of the command's own node, their home.

Called by `pipeline.search`, and by `pipeline.part_actors` where a part is searched. A part at home writes into the
folder itself; those of other nodes, which may not share that disk, travel there and back.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ops.files import write_atomically
from pipeline.cluster import own_folder

if TYPE_CHECKING:
    from pipeline.part_actors import PartJob


def with_checkpoint(job: "PartJob") -> "PartJob":
    """Return the job with what its checkpoint holds, wherever it will run."""
    if job.checkpoint_path is None:
        return job
    return replace(job, checkpoint=_at_home(job, _content, job.checkpoint_path))


def keep_checkpoint(job: "PartJob", content: bytes) -> None:
    """Write what a part on another node has saved into the file at home."""
    assert job.checkpoint_path is not None
    _at_home(job, write_atomically, job.checkpoint_path, content)


def _at_home(job: "PartJob", function: Callable, *arguments: Any) -> Any:
    """Call a function on the home node of `job`, which is that of a run's driver, but not of every trial."""
    if ray.get_runtime_context().get_node_id() == job.home:
        return function(*arguments)
    home = NodeAffinitySchedulingStrategy(job.home, soft=False)
    return ray.get(ray.remote(function).options(num_cpus=0, scheduling_strategy=home).remote(*arguments))


def _content(path: str) -> bytes:
    return Path(path).read_bytes() if Path(path).exists() else b""


@contextmanager
def checkpoint_file(job: "PartJob", *, is_home: bool) -> Iterator[Path | None]:
    """Provide the file that the search of `job` keeps its checkpoint in, or None if it keeps none.

    Args:
        job: with what its checkpoint holds.
        is_home: this is its home node.

    Raises:
        FloatingPointError, ValueError: as the block's; they name the file at home, whichever the search has.
    """
    if job.checkpoint_path is None or is_home:
        yield None if job.checkpoint_path is None else Path(job.checkpoint_path)
        return
    path = own_folder() / Path(job.checkpoint_path).name
    try:
        if job.checkpoint:
            path.write_bytes(job.checkpoint)
        yield path
    except (FloatingPointError, ValueError) as error:
        if str(path) not in str(error):
            raise
        kind = FloatingPointError if isinstance(error, FloatingPointError) else ValueError
        raise kind(str(error).replace(str(path), job.checkpoint_path)) from error
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)
