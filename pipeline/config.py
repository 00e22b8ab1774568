"""Everything one run depends on: the settings of all phases, read from YAML presets and dotted overrides.

Read by every module of `pipeline`; `configs/*.yaml` hold only values, their meaning stands in `pipeline.settings`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pipeline.checkpoint import write_atomically
from pipeline.plain import from_plain, hash_of, set_dotted, to_plain
from pipeline.settings import (
    DEVICES,
    CollectConfig,
    DataConfig,
    EvaluateConfig,
    ExperimentConfig,
    LatencyConfig,
    NoiseConfig,
    PriorConfig,
    PriorTrainConfig,
    RayConfig,
    RetrainConfig,
    SearchConfig,
    SpaceConfig,
    TrackingConfig,
    check,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything one run depends on."""

    name: str = "quick"
    seed: int = 0
    device: str = "cpu"
    """Where search and retraining compute: `cpu` or `cuda`."""
    output: str = "runs/quick"
    """Folder for everything the run leaves."""
    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    prior_train: PriorTrainConfig = field(default_factory=PriorTrainConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)

    def __post_init__(self) -> None:
        check(self.device in DEVICES, "device", f"one of {', '.join(DEVICES)}", self.device)

    def to_dict(self) -> dict[str, Any]:
        """Return plain YAML types."""
        return to_plain(self)

    def lasting_settings(self) -> dict[str, Any]:
        """Return `to_dict` without what changes no result: when to give up, and where decoded images lie.

        Work that ended for one of them goes on with more patience or more memory.
        """
        settings = self.to_dict()
        del settings["data"]["cache"]
        for key in ("search", "retrain"):
            del settings[key]["max_bad_steps"]
        return settings

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits over everything that can change a result; paths of outputs are left out."""
        settings = self.lasting_settings()
        for key in ("name", "output", "tracking", "ray", "prior_train", "collect", "experiment"):
            del settings[key]
        return hash_of(settings)

    @property
    def tracking_uri(self) -> str:
        """Where MLflow records: `tracking.uri`, or MLFLOW_TRACKING_URI, or a database beside the run folders."""
        database = Path(self.output).absolute().parent / "mlflow.db"
        return self.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"

    def with_settings(self, settings: Mapping[str, Any]) -> "Config":
        """Return a copy with dotted settings replaced, such as `{"search.num_epochs": 3}`; checked like a file.

        Raises:
            ValueError: unknown key, wrong type or impossible value.
        """
        values = self.to_dict()
        for name, value in settings.items():
            set_dotted(values, name, value)
        return from_plain(Config, values, "")

    def save(self, path: Path) -> None:
        """Write the resolved settings as YAML."""
        write_atomically(path, yaml.safe_dump(self.to_dict(), sort_keys=False))


def list_presets() -> list[str]:
    """Return the names of the shipped presets."""
    folder = resources.files("pipeline") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(source: str, overrides: list[str] | None = None) -> Config:
    """Read a preset or a YAML file and apply dotted overrides.

    Args:
        source: name of a shipped preset, or path of a YAML file.
        overrides: such as `search.num_epochs=3`; values are parsed as YAML.

    Raises:
        FileNotFoundError: neither a preset nor a file.
        ValueError: unknown key, wrong type or impossible value; the message names the key.
    """
    preset = resources.files("pipeline") / "configs" / f"{source}.yaml"
    if source in list_presets():
        text = preset.read_text(encoding="utf-8")
    elif Path(source).is_file():
        text = Path(source).read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(
            f"configuration {source!r} is neither a file nor a preset; presets are {', '.join(list_presets())}"
        )
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"configuration {source} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"configuration {source} must hold keys and values, got {type(values).__name__}")
    for override in overrides or []:
        _apply_override(values, override)
    return from_plain(Config, values, "")


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ValueError(f"an override must look like `search.num_epochs=3`, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of override {override!r} is not YAML: {error}") from error
    set_dotted(values, path, value)
