"""An evaluation in MLflow: one parent run with the table, and one child run per row.

Called by `pipeline.evaluation.command`, from one process. The files on disk are the truth: what MLflow lacks is sent.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.table import IMAGES_FILE, PAGE_FILE, TABLE_FILE, Row
from pipeline.sending import FolderRun
from pipeline.tracking import RUN_ID_FILE, TRACKING_ERRORS, Tracker

EXPERIMENT = "denoise-nas-evaluations"
KIND_EVALUATION, KIND_ROW = "evaluation", "evaluation row"
_logger = logging.getLogger(__name__)


class EvaluationTracking(FolderRun):
    """The parent run of an evaluation.

    The server of an evaluation that goes on may be away: it is asked when something is sent.

    Args:
        folder: of the evaluation; remembers the parent run.
        uri: of the tracking server or database.

    Raises:
        ConnectionError: the server does not answer when an evaluation begins.
        ValueError: the URI cannot be used when an evaluation begins.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self._uri = uri
        super().__init__(folder)

    def send(self, rows: Sequence[Row], page: str) -> None:
        """Send the rows that MLflow lacks, the table in Markdown as the description, and the files; end the run.

        A server that is away is a warning: the same command sends them later.
        """
        try:
            self._send(rows, page)
        except TRACKING_ERRORS as error:
            _logger.warning("MLflow fails; the table stays in %s, the same command sends it: %s", self._folder, error)

    def _send(self, rows: Sequence[Row], page: str) -> None:
        parent = self.reach()
        sent = parent.children("row")
        for row in rows:
            tag = " ".join((*row.key, row.fingerprint))
            run_id, is_finished = sent.get(tag, (None, False))
            if is_finished:
                continue
            values = dataclasses.asdict(row)
            child = parent.child(" ".join(row.key), kind=KIND_ROW, tags={"row": tag}, run_id=run_id)
            child.log_params({name: value for name, value in values.items() if isinstance(value, str)})
            child.log_metrics({name: value for name, value in values.items() if isinstance(value, int | float)}, 0)
            child.end()
        parent.set_description(page)
        for name in (TABLE_FILE, IMAGES_FILE, PAGE_FILE):
            parent.log_artifact(self._folder / name)
        parent.end()

    def _open(self) -> Tracker:
        return Tracker.open(
            self._uri, EXPERIMENT, f"evaluation {self._folder.name}", kind=KIND_EVALUATION,
            remember=self._folder / RUN_ID_FILE,
        )  # fmt: skip
