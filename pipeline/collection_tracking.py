"""A collection in MLflow: one parent run, and one child run per architecture, made from the records.

Called by the commands `collect` and `track`, from one process. The records on disk are the truth: what MLflow lacks is
sent, what it has is left alone, so sending again after any interruption is harmless.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.files import write_atomically
from pipeline.config import Config
from pipeline.priors import NUM_PARTS
from pipeline.records import Record
from pipeline.sending import UNSENT_FILE, BackgroundSender, FolderRun
from pipeline.tracking import RUN_ID_FILE, Tracker
from search_space import Genotype

# In `UNSENT_FILE` of a collection that is finished.
_FINISHED = "finished; `denoise-nas track`, or the same command, sends what MLflow lacks\n"
KIND_COLLECTION, KIND_ARCHITECTURE = "collection", "architecture"
COLUMNS = (
    "metrics.`proxy_psnr_db`", "metrics.`own_psnr_db`", "metrics.`predicted_ms`", "metrics.`gmacs`",
    "metrics.`parameters_k`", "params.`origin`", "params.`complexity_weight`", "params.`genotype_id`",
)  # fmt: skip


class CollectionTracking(FolderRun):
    """The parent run of a collection and what its children hold already.

    The server of a collection that goes on may be away: it is asked when something is sent.

    Args:
        folder: of the collection; remembers the parent run.
        uri: of the tracking server or database.
        config: settings of the collection.

    Raises:
        ConnectionError: the server does not answer when a collection begins.
        ValueError: the URI cannot be used when a collection begins.
    """

    def __init__(self, folder: Path, uri: str, config: Config) -> None:
        self._uri = uri
        self._config = config
        self._unsent = folder / UNSENT_FILE
        self._sent: dict[str, tuple[str, bool]] = {}
        super().__init__(folder)

    @property
    def link(self) -> str:
        """The page of all architectures of the collection, best first, without the server's address."""
        parent = self.reach()
        return f"/#/experiments/{parent.experiment_id}/runs?viewStateShareKey={parent.run_id}"

    def send(self, records: Sequence[Record]) -> int:
        """Send the records that MLflow lacks; return how many."""
        parent = self.reach()
        num_sent = 0
        for record in records:
            run_id, is_finished = self._sent.get(record["key"], (None, False))
            if not is_finished:
                self._sent[record["key"]] = (self._send(parent, record, run_id), True)
                num_sent += 1
        return num_sent

    def end(self, records: Sequence[Record]) -> int:
        """Send the records that MLflow lacks, write the collection's totals and end the parent run; return how many."""
        num_sent = self.send(records)
        parent = self.reach()
        searched = [record for record in records if record["origin"] == "searched"]
        parent.log_metrics(
            {
                "num_searched": len(searched),
                "num_random": len(records) - len(searched),
                "num_distinct": len({record["genotype_id"] for record in records}),
            },
            len(records),
        )
        parent.end()
        self._unsent.unlink(missing_ok=True)
        return num_sent

    def catch_up(self, records: Sequence[Record]) -> int:
        """Send the records that MLflow lacks, and end the parent run if the collection is finished; return how many."""
        if not self._unsent.exists() or self._unsent.read_text(encoding="utf-8") == _FINISHED:
            return self.end(records)
        num_sent = self.send(records)
        self.reach().leave()
        return num_sent

    def mark_finished(self) -> None:
        """Remember that nothing but MLflow lacks anything of the collection."""
        write_atomically(self._unsent, _FINISHED)

    def sender(self) -> BackgroundSender[Record]:
        """Return what sends records while the collection grows."""
        write_atomically(self._unsent, "the same command goes on; `denoise-nas track` sends what there is\n")
        return BackgroundSender(self.send, promise="records stay on disk for `denoise-nas track`")

    def _open(self) -> Tracker:
        config = self._config
        parent = Tracker.open(
            self._uri, f"{config.tracking.experiment}-collections", f"collection {self._folder.name}",
            kind=KIND_COLLECTION, tags={"preset": config.name}, remember=self._folder / RUN_ID_FILE,
        )  # fmt: skip
        settings = config.lasting_settings()
        parent.log_params({name: settings[name] for name in ("seed", "device", "space", "search", "collect")})
        parent.share_view(parent.run_id, _view(parent))
        self._sent = parent.children("record")
        return parent

    def _send(self, parent: Tracker, record: Record, run_id: str | None) -> str:
        child = parent.child(
            run_name(record), kind=KIND_ARCHITECTURE, run_id=run_id,
            tags={"record": record["key"], "origin": record["origin"]},
        )  # fmt: skip
        self._sent[record["key"]] = (child.run_id, False)  # the next attempt goes on with it
        names = ("origin", "index", "seed", "genotype_id", "complexity_weight", "cost", "weights")
        params = {name: record[name] for name in names if record.get(name) is not None}
        child.log_params(params | {name: _short(value) for name, value in json.loads(record["varied"]).items()})
        child.log_metrics(record_metrics(record), 0)
        with tempfile.TemporaryDirectory() as folder:
            genotype = Genotype.from_dict(json.loads(record["genotype"]))
            genotype.save(Path(folder) / "genotype.json")
            _draw(genotype, record, Path(folder) / "genotype.svg")
            for path in sorted(Path(folder).iterdir()):
                child.log_artifact(path)
        child.end()
        return child.run_id


def track_study(folder: Path, uri: str, config: Config, files: Sequence[Path]) -> None:
    """Attach the files of a study to the collection's run.

    Raises:
        ConnectionError: the server does not answer.
        TrackingError: it does not have the run, or refuses.
    """
    parent = CollectionTracking(folder, uri, config).reach()
    for path in files:
        parent.log_artifact(path, "study" if path.suffix == ".html" else f"study/{path.parent.name}")
    parent.leave()


def run_name(record: Record) -> str:
    """Return what a table of runs shows, short enough for its column: `s017 27.31 dB 12.3 ms`, r for random ones."""
    letter = record["origin"][0]
    return f"{letter}{record['index']:03d} {record['proxy_psnr_db']:.2f} dB {record['predicted_ms']:.1f} ms"


def record_metrics(record: Record) -> dict[str, float]:
    """Return the numbers of a record under the names that MLflow shows, parts as prefixes."""
    metrics = {
        "proxy_psnr_db": record["proxy_psnr_db"],
        "predicted_ms": record["predicted_ms"],
        "gmacs": record["macs"] / 1e9,
        "parameters_k": record["num_parameters"] / 1e3,
    }
    for name in ("own_psnr_db", "retrained_psnr_db", "search_seconds", "score_seconds", "cpu_seconds"):
        if record.get(name) is not None:
            metrics[name] = record[name]
    for part in range(NUM_PARTS):
        metrics[f"part{part}/gmacs"] = record[f"macs_part{part}"] / 1e9
        metrics[f"part{part}/predicted_ms"] = record[f"predicted_ms_part{part}"]
        if record.get(f"l_dp_part{part}") is not None:
            metrics[f"part{part}/l_dp"] = record[f"l_dp_part{part}"]
    return {name: round(value, 4) for name, value in metrics.items()}


def _view(parent: Tracker) -> dict[str, Any]:
    return {
        "searchFilter": f"tags.kind = '{KIND_ARCHITECTURE}' and tags.mlflow.parentRunId = '{parent.run_id}'",
        "orderByKey": "metrics.`proxy_psnr_db`",
        "orderByAsc": False,
        "selectedColumns": ["attributes.`Created`", *COLUMNS],
        "viewMaximized": True,
        "runListHidden": False,
    }


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _draw(genotype: Genotype, record: Record, path: Path) -> None:
    from search_space.draw import draw_genotype

    caption = (
        f"{record['proxy_psnr_db']:.2f} dB with shared weights, {record['num_parameters'] / 1e3:.1f} k parameters, "
        f"{record['predicted_ms']:.1f} ms predicted at {record['image_size']} x {record['image_size']}"
    )
    draw_genotype(genotype, path, caption=caption)
