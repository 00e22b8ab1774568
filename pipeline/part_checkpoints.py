"""Checkpoints of part searches on nodes that may not share the driver's disk: they travel there and back.

Called by `pipeline.search`. A part on the driver's own node writes into the run's folder itself.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from pipeline.checkpoint import write_atomically

if TYPE_CHECKING:
    from pipeline.search import PartJob


def with_checkpoint(job: "PartJob") -> "PartJob":
    """Return the job with what its checkpoint holds, wherever it will run; called on the driver's node."""
    if job.checkpoint_path is None or not Path(job.checkpoint_path).exists():
        return job
    return replace(job, checkpoint=Path(job.checkpoint_path).read_bytes())


def fetch_checkpoint(job: "PartJob", actor: Any) -> None:
    """Write what an actor on another node has saved since the last call into the driver's file."""
    content = ray.get(actor.take_checkpoint.remote())
    if content is not None and job.checkpoint_path is not None:
        write_atomically(job.checkpoint_path, content)


@contextmanager
def checkpoint_file(job: "PartJob", *, is_home: bool) -> Iterator[Path | None]:
    """Provide the file that the search of `job` keeps its checkpoint in, or None if it keeps none.

    Args:
        job: with what its checkpoint holds.
        is_home: this is the driver's node.
    """
    if job.checkpoint_path is None or is_home:
        yield None if job.checkpoint_path is None else Path(job.checkpoint_path)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(job.checkpoint_path).name
        if job.checkpoint:
            path.write_bytes(job.checkpoint)
        yield path
