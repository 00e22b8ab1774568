"""The folder that Ray Train keeps of one training: its list of checkpoints, made whole again.

Called by `pipeline.retrain` before a training goes on. Ray writes the list in place after every report, so a kill at
that moment leaves half of it, and Ray refuses to go on from there.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

import ray

from ops.files import write_atomically
from pipeline.checkpoint import load_checkpoint

STATE_FILE = "state.pt"  # in every checkpoint; holds `history`, (epoch, metrics) of all epochs so far
SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"  # Ray's name
_logger = logging.getLogger(__name__)


def mend_train_folder(folder: Path) -> None:
    """Move a list of checkpoints that cannot be read aside, and write one of the whole checkpoints that are there.

    Args:
        folder: of one training, STORAGE/NAME of Ray's `RunConfig`; there may be none yet. Where the storage is a URI
            there is none: such stores write files whole.
    """
    path = folder / SNAPSHOT_FILE
    if not path.is_file():
        return
    try:
        json.loads(path.read_bytes())
        return
    except ValueError:
        os.replace(path, path.with_name(f"{SNAPSHOT_FILE}.damaged"))
    histories = {}
    for checkpoint in folder.glob("checkpoint_*"):
        try:
            history = load_checkpoint(checkpoint / STATE_FILE)["history"]
        except (FileNotFoundError, ValueError):
            continue  # it was being written too
        histories[checkpoint.name] = history
    names = sorted(histories, key=lambda name: (len(histories[name]), name))
    if names:
        write_atomically(path, json.dumps(_snapshot(names, [histories[name] for name in names])))
    _logger.warning("%s was half written; the training goes on from %s", path, names[-1] if names else "its start")


def _snapshot(names: list[str], histories: list[list[tuple[int, dict[str, float]]]]) -> dict[str, Any]:
    """Return the list as Ray writes it, for checkpoints from the oldest to the newest."""
    results = [
        {"version": 0, "checkpoint_dir_name": name, "metrics": history[-1][1]}
        for name, history in zip(names, histories, strict=True)
    ]
    return {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": [len(history) - 1 for history in histories],
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(histories[-1]),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
