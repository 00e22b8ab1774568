"""An experiment in MLflow: one parent run with the table, and one child run per task of a cell.

Called by `command`, from one process. The files on disk are the truth: what MLflow lacks is sent.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.experiments.cells import CellRecord
from pipeline.experiments.experiment import Experiment
from pipeline.experiments.report import Results
from pipeline.tracking import RUN_ID_FILE, TRACKING_ERRORS, Tracker

_logger = logging.getLogger(__name__)
KIND_EXPERIMENT, KIND_CELL = "experiment", "cell"


class ExperimentTracking:
    """The parent run of an experiment and what its children hold already.

    Args:
        folder: of the experiment; remembers the parent run.
        uri: of the tracking server or database.
        experiment: which.
        config: the preset.

    Raises:
        ConnectionError: the server does not answer.
        ValueError: the URI or the remembered run cannot be used.
    """

    def __init__(self, folder: Path, uri: str, experiment: Experiment, config: Config) -> None:
        self.parent = Tracker.open(
            uri, f"{config.tracking.experiment}-experiments", f"{experiment.name} {config.name}", kind=KIND_EXPERIMENT,
            tags={"preset": config.name, "experiment": experiment.name},
            remember=folder / RUN_ID_FILE,
        )  # fmt: skip
        settings = config.to_dict()
        names = ("seed", "device", "data", "noise", "space", "prior", "search", "retrain", "experiment")
        self.parent.log_params({name: settings[name] for name in names})
        self._sent = self.parent.children("record")

    def send(self, records: Sequence[CellRecord]) -> None:
        """Send the records that MLflow lacks."""
        for record in records:
            key = f"{record.stage}/{record.name}"
            run_id, is_finished = self._sent.get(key, (None, False))
            if is_finished:
                continue
            tags = {"record": key, "variant": record.variant, "seed": str(record.seed)}
            with self.parent.child(f"{record.stage} {record.name}", kind=KIND_CELL, tags=tags, run_id=run_id) as child:
                child.log_params({"variant": record.variant, "seed": record.seed})
                values = record.values | {"seconds": record.seconds}
                child.log_metrics({_metric_name(name): value for name, value in values.items()}, 0)
            self._sent[key] = (child.run_id, True)

    def offer(self, record: CellRecord) -> None:
        """Send a record, or warn: a server that went away shall not end the experiment; `send` comes at its end."""
        try:
            self.send([record])
        except TRACKING_ERRORS as error:
            _logger.warning("record %s is not in MLflow yet: %s", record.name, error)

    def finish(self, results: Results) -> None:
        """Send means, table and figures, and end the parent run."""
        rows = results.table.to_dict("records")
        means = {_metric_name(f"{row['variant']}/{row['quantity']}"): row["mean"] for row in rows}
        self.parent.log_metrics(means, len(results.seeds))
        self.parent.set_description(results.markdown)
        for path in results.files:
            self.parent.log_artifact(path)
        self.parent.end()


def _metric_name(name: str) -> str:
    """Return `name` with what MLflow refuses replaced; sets of images are named after folders."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
