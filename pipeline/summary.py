"""What a finished run leaves for people: `summary.json`, and its numbers and files in MLflow.

Called by the command `run`.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.files import write_atomically
from pipeline.report import decibels
from pipeline.run import Run

if TYPE_CHECKING:
    from pipeline.tracking import Tracker  # mlflow is imported by commands that record

ARTIFACTS = (
    "config.yaml", "genotype.json", "genotype.svg", "comparison.png", "latency.parquet", "model.safetensors",
)  # fmt: skip


def record_run(run: Run, tracker: "Tracker", summary: dict[str, Any]) -> None:
    """Send the final numbers and files of a run to its tracker."""
    numbers = {
        "psnr_db": summary["psnr_db"]["denoised"],
        "psnr_db_prior": summary["psnr_db"]["prior"],
        "psnr_db_noisy": summary["psnr_db"]["noisy"],
        "ssim": summary["ssim"]["denoised"],
        "parameters_k": summary["num_parameters"] / 1e3,
        "gmacs": summary["macs"] / 1e9,
        "measured_latency_ms": summary["measured_latency_ms"],
        "predicted_latency_ms": summary["predicted_latency_ms"],
        "seconds_total": summary["seconds"]["total"],
    }
    metrics = {name: value for name, value in numbers.items() if value is not None}
    tracker.log_metrics(metrics, run.config.retrain.num_epochs)
    tracker.set_description(_description(summary))
    tracker.rename(f"{summary['genotype_id']} {metrics['psnr_db']:.2f} dB {metrics['measured_latency_ms']:.1f} ms")
    for name in ARTIFACTS:
        if run.path(name).exists():
            tracker.log_artifact(run.path(name))


def _description(summary: dict[str, Any]) -> str:
    psnr = summary["psnr_db"]
    return (
        f"## Denoiser {summary['genotype_id']}: {psnr['denoised']:.2f} dB at "
        f"{summary['measured_latency_ms']:.1f} ms\n\n"
        "Pictures among the artifacts: `genotype.svg` (the architecture), `comparison.png` (noisy, prior, denoised, "
        "clean).\n\n"
        "| | noisy | prior | found network |\n|---|---|---|---|\n"
        f"| PSNR, dB | {decibels(psnr['noisy'])} | {psnr['prior']:.2f} | {psnr['denoised']:.2f} |\n"
        f"| parameters, k | | {summary['prior_num_parameters'] / 1e3:.1f} | {summary['num_parameters'] / 1e3:.1f} |\n"
        f"| ms at {summary['latency_image_size']} px | | {summary['prior_latency_ms']:.1f} | "
        f"{summary['measured_latency_ms']:.1f} |\n"
    )


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`; what is not finite, as the PSNR of pairs without noise, becomes null."""
    write_atomically(folder / "summary.json", json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
