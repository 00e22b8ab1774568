"""An evaluation in MLflow: one parent run with the table, and one child run per row.

Called by `pipeline.evaluation.command`, from one process. The files on disk are the truth: what MLflow lacks is sent.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.evaluation.table import IMAGES_FILE, PAGE_FILE, TABLE_FILE, Row
from pipeline.tracking import RUN_ID_FILE, Tracker

EXPERIMENT = "denoise-nas-evaluations"
KIND_EVALUATION, KIND_ROW = "evaluation", "evaluation row"


class EvaluationTracking:
    """The parent run of an evaluation; a context that ends it as `Tracker` does.

    Args:
        folder: of the evaluation; remembers the parent run.
        uri: of the tracking server or database.

    Raises:
        ConnectionError: the server does not answer.
        ValueError: the URI or the remembered run cannot be used.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.parent = Tracker.open(
            uri, EXPERIMENT, f"evaluation {folder.name}", kind=KIND_EVALUATION,
            remember=folder / RUN_ID_FILE,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self.parent.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.parent.__exit__(kind, error, trace)

    def send(self, rows: Sequence[Row], page: str) -> None:
        """Send the rows that MLflow lacks, the table in Markdown as the description, and the files."""
        sent = self.parent.children("row")
        for row in rows:
            tag = " ".join((*row.key, row.fingerprint))
            run_id, is_finished = sent.get(tag, (None, False))
            if is_finished:
                continue
            values = dataclasses.asdict(row)
            with self.parent.child(" ".join(row.key), kind=KIND_ROW, tags={"row": tag}, run_id=run_id) as child:
                child.log_params({name: value for name, value in values.items() if isinstance(value, str)})
                child.log_metrics({name: value for name, value in values.items() if isinstance(value, int | float)}, 0)
        self.parent.set_description(page)
        for name in (TABLE_FILE, IMAGES_FILE, PAGE_FILE):
            self.parent.log_artifact(self.folder / name)
