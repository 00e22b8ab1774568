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

from ops.files import write_atomically
from pipeline.plain import dotted, from_plain, hash_of, set_dotted, to_plain
from pipeline.settings import (
    DEVICES,
    NUM_SEEDS,
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

# Where a leading `~` is the home folder; `pipeline.data.datasets` sees to image sources.
_PATHS = (
    "output", "data.cache", "space.op_files", "prior.weights", "latency.table", "ray.storage_path", "collect.supernets",
)  # fmt: skip
_MAX_FILE_BYTES = 1_000_000
_MAX_VALUES, _MAX_DEPTH = 10_000, 20  # far above any configuration


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything one run depends on."""

    name: str = "quick"
    """Of the run in MLflow."""
    seed: int = 0
    """Of everything that is random: 0 to 2**32 - 1."""
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
        check(0 <= self.seed < NUM_SEEDS, "seed", f"in [0, {NUM_SEEDS})", self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain YAML types."""
        return to_plain(self)

    def lasting_settings(self) -> dict[str, Any]:
        """Return `to_dict` without what work goes on with when it changes.

        That is when to give up, where decoded images and shared supernets lie (the key in the files of these says what
        they are), whether grey images are let in (a run with any in its data did not begin without), and how many
        workers retrain.
        """
        settings = self.to_dict()
        for name in ("cache", "promote_grey"):
            del settings["data"][name]
        for key in ("search", "retrain"):
            del settings[key]["max_bad_steps"]
        for name in ("num_workers", "threads_per_worker"):
            del settings["retrain"][name]
        del settings["collect"]["supernets"]
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
    """Read a preset or a YAML file and apply dotted overrides; `~` and the path of a prior become absolute.

    Args:
        source: name of a shipped preset, or path of a YAML file.
        overrides: such as `search.num_epochs=3`; values are parsed as YAML.

    Raises:
        FileNotFoundError: neither a preset nor a file.
        ValueError: unknown key, wrong type or impossible value; the message names the key.
    """
    preset = resources.files("pipeline") / "configs" / f"{source}.yaml"
    if source in list_presets():
        text = preset.read_bytes()
    elif Path(source).is_file():
        if Path(source).stat().st_size > _MAX_FILE_BYTES:
            raise ValueError(f"configuration {source} is larger than {_MAX_FILE_BYTES} bytes")
        text = Path(source).read_bytes()
    else:
        raise FileNotFoundError(
            f"configuration {source!r} is neither a file nor a preset; presets are {', '.join(list_presets())}"
        )
    values = _read_yaml(text, f"configuration {source}") or {}
    if not isinstance(values, dict):
        raise ValueError(f"configuration {source} must hold keys and values, got {type(values).__name__}")
    for override in overrides or []:
        _apply_override(values, override)
    try:
        return _expand_paths(from_plain(Config, values, ""))
    except ValueError as error:
        raise ValueError(f"configuration {source}: {error}") from None


def _expand_paths(config: Config) -> Config:
    settings = dict(dotted(config.to_dict()))
    paths = {name: _expand(settings[name]) for name in _PATHS}
    if os.path.isfile(prior := paths["prior.weights"]):  # read by processes that work in other folders
        paths["prior.weights"] = os.path.abspath(prior)
    return config.with_settings(paths)


def _expand(paths: Any) -> Any:
    if isinstance(paths, list):
        return [_expand(path) for path in paths]
    return None if paths is None else os.path.expanduser(paths)


def _read_yaml(text: bytes | str, what: str) -> Any:
    """Read plain values; what anchors repeat counts every time, so that a few lines cannot stand for gigabytes."""
    try:
        values = yaml.safe_load(text)
    except Exception as error:  # tags such as !!timestamp make the safe loader raise nearly every kind
        raise ValueError(f"{what} is not YAML: {error}") from error
    found = [(values, 0)]
    for value, depth in found:  # grows while it is walked
        if isinstance(value, dict | list):
            found += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
        if len(found) > _MAX_VALUES or depth > _MAX_DEPTH:
            raise ValueError(f"{what} must hold at most {_MAX_VALUES} values, {_MAX_DEPTH} levels deep")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ValueError(f"an override must look like `search.num_epochs=3`, got {override!r}")
    set_dotted(values, path, _read_yaml(text, f"the value of override {override!r}"))
