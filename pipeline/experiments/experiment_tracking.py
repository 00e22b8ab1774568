"""An experiment in MLflow: one parent run with the table, and one child run per task of a cell.

Called by `command`, from one process. The files on disk are the truth: what MLflow lacks is sent.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.experiments.cells import CellRecord
from pipeline.experiments.experiment import Experiment
from pipeline.experiments.report import Results
from pipeline.sending import BackgroundSender, FolderRun
from pipeline.tracking import RUN_ID_FILE, Tracker

KIND_EXPERIMENT, KIND_CELL = "experiment", "cell"


class ExperimentTracking(FolderRun):
    """The parent run of an experiment and what its children hold already.

    The server of an experiment that goes on may be away: it is asked when something is sent.

    Args:
        folder: of the experiment; remembers the parent run.
        uri: of the tracking server or database.
        experiment: which.
        config: the preset.

    Raises:
        ConnectionError: the server does not answer when an experiment begins.
        ValueError: the URI cannot be used when an experiment begins.
    """

    def __init__(self, folder: Path, uri: str, experiment: Experiment, config: Config) -> None:
        self._uri = uri
        self._experiment = experiment
        self._config = config
        self._sent: dict[str, tuple[str, bool]] = {}
        super().__init__(folder)

    def sender(self) -> BackgroundSender[CellRecord]:
        """Return what sends records while the experiment goes on."""
        return BackgroundSender(self.send, promise="records and tables stay on disk, the same command sends them later")

    def send(self, records: Sequence[CellRecord]) -> None:
        """Send the records that MLflow lacks."""
        parent = self.reach()
        for record in records:
            key = f"{record.stage}/{record.name}"
            run_id, is_finished = self._sent.get(key, (None, False))
            if is_finished:
                continue
            tags = {"record": key, "variant": record.variant, "seed": str(record.seed)}
            child = parent.child(f"{record.stage} {record.name}", kind=KIND_CELL, tags=tags, run_id=run_id)
            self._sent[key] = (child.run_id, False)  # the next attempt goes on with it
            child.log_params({"variant": record.variant, "seed": record.seed})
            values = record.values | {"seconds": record.seconds}
            child.log_metrics({_metric_name(name): value for name, value in values.items()}, 0)
            child.end()
            self._sent[key] = (child.run_id, True)

    def finish(self, records: Sequence[CellRecord], results: Results) -> None:
        """Send the records that MLflow lacks, means, table and figures, and end the parent run."""
        self.send(records)
        parent = self.reach()
        rows = results.table.to_dict("records")
        means = {_metric_name(f"{row['variant']}/{row['quantity']}"): row["mean"] for row in rows}
        parent.log_metrics(means, len(results.seeds))
        parent.set_description(results.markdown)
        for path in results.files:
            parent.log_artifact(path)
        parent.end()

    def _open(self) -> Tracker:
        config = self._config
        parent = Tracker.open(
            self._uri, f"{config.tracking.experiment}-experiments", f"{self._experiment.name} {config.name}",
            kind=KIND_EXPERIMENT, tags={"preset": config.name, "experiment": self._experiment.name},
            remember=self._folder / RUN_ID_FILE,
        )  # fmt: skip
        settings = config.lasting_settings()
        names = ("seed", "device", "data", "noise", "space", "prior", "search", "retrain", "experiment")
        parent.log_params({name: settings[name] for name in names})
        self._sent = parent.children("record")
        return parent


def _metric_name(name: str) -> str:
    """Return `name` with what MLflow refuses replaced; sets of images are named after folders."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
