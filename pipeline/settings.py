"""Settings of every phase as frozen dataclasses, which own the defaults and the meaning of each field.

Put together by `pipeline.config`. Sigmas are given in grey levels (`sigma_255`) and converted here, once, to the [0, 1]
scale.
"""

from dataclasses import dataclass, field
from typing import Any

from pipeline.data.noise import MAP_MODELS, NOISE_MODELS
from search_space import DEFAULT_OPS, ESTIMATORS

PHOTOGRAPHS = "photographs"
DEVICES = ("cpu", "cuda")
COSTS = ("latency", "parameters", "macs")
SAMPLERS = ("random", "tpe", "nsga2")
PRIORS = ("mirnet", "nafnet")
PRECISIONS = ("float32", "bfloat16")
NUM_SEEDS = 2**32  # all that NumPy and Optuna take, from 0 on
# What a trial of a collection reads from settings of its own. All else is shared: patches and the prior's features,
# prices, shared supernets, scoring, machines, and the threshold, which random architectures have too.
TRIAL_SETTINGS = (
    "collect.warm_start", "space.candidate_ops",
    "search.batch_size", "search.num_epochs", "search.warmup_share", "search.weight_learning_rate",
    "search.arch_learning_rate", "search.estimator", "search.temperature", "search.arch_samples", "search.cost",
    "search.complexity_weight", "search.target_ms", "search.derive_samples", "search.max_bad_steps", "search.precision",
)  # fmt: skip
# Those of them that must fit each other: a budget needs milliseconds, and something that holds it.
TOGETHER = ("search.cost", "search.target_ms", "search.complexity_weight", "search.derive_samples")
# Far above any use: more is a slip of the keyboard, and would ask for all memory or all threads of a machine.
_LARGEST = {
    "num_channels": 256, "num_blocks": 64, "middle_blocks": 64,
    "image_size": 8192, "patch_size": 2048, "batch_size": 4096, "shared_batch_size": 4096,
    "num_patches": 1_000_000, "distilled_patches": 100_000,
    "num_threads": 1024, "threads_per_part": 1024, "threads_per_worker": 1024, "num_workers": 1024,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images to search, train and validate on."""

    training: tuple[str, ...] = (PHOTOGRAPHS,)
    """One source of images or several, which are mixed (docs/data.md): folders of clean images, folders with `clean`
    and `noisy` in them, FOLDER:NOISY:CLEAN with `{}` for the common part of the names, SIDD; or `photographs`:
    astronaut, coffee and rocket of scikit-image."""
    validation: tuple[str, ...] = (PHOTOGRAPHS,)
    """Likewise; `photographs`: chelsea and a crop of motorcycle_left of scikit-image."""
    exclude: tuple[str, ...] = ()
    """Names of images to leave out of the training ones: file stems, `folder:stem` where several sources are mixed."""
    promote_grey: bool = False
    """Repeat grey images over the three channels; otherwise they are refused, all named at once."""
    cache: str | None = None
    """Folder for decoded images, which are then read from disk as patches need them; None keeps them all in memory."""
    architecture_share: float = 0.5
    """Share of the training images for the architecture step (2576 of 5576 in the paper); the rest trains weights."""

    def __post_init__(self) -> None:
        check(0 < self.architecture_share < 1, "data.architecture_share", "between 0 and 1", self.architecture_share)


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Noise added to clean training patches, and to validation images."""

    model: str = "awgn"
    """`awgn`, `niid` (VDN's training maps), `mixed` of the two, `poisson` (Poisson-Gaussian, as raw images have it), or
    `pairs`: the data are pairs, nothing is added."""
    sigma_255: tuple[float, ...] = (25.0, 25.0)
    """Lowest and highest sigma in grey levels of `awgn`, and of the Gaussian part of `poisson`."""
    gain_255: tuple[float, ...] = (1.0, 8.0)
    """Lowest and highest gain of `poisson`: the variance at grey level x is gain x + sigma^2."""
    validation_sigma_255: float | None = None
    """Sigma in grey levels of the validation noise, by default the middle of `sigma_255`. It is white Gaussian, seed 0
    for every image, whatever `model` is, but for `pairs`, whose validation images are noisy themselves."""

    def __post_init__(self) -> None:
        check(self.model in NOISE_MODELS, "noise.model", f"one of {', '.join(NOISE_MODELS)}", self.model)
        ok = len(self.sigma_255) == 2 and 0 <= self.sigma_255[0] <= self.sigma_255[1] <= 255
        check(ok, "noise.sigma_255", "two ascending numbers in [0, 255]", self.sigma_255)
        ok = len(self.gain_255) == 2 and 0 < self.gain_255[0] <= self.gain_255[1] <= 255
        check(ok, "noise.gain_255", "two ascending numbers in (0, 255]", self.gain_255)
        if self.model != "pairs":
            check(0 < self.validation_level_255 <= 255, "noise.validation_sigma_255", "in (0, 255]",
                   self.validation_level_255)  # fmt: skip

    @property
    def validation_level_255(self) -> float:
        """Sigma of the validation noise in grey levels."""
        return sum(self.sigma_255) / 2 if self.validation_sigma_255 is None else self.validation_sigma_255

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Lowest and highest sigma on the [0, 1] scale."""
        return self.sigma_255[0] / 255, self.sigma_255[1] / 255

    @property
    def gain_range(self) -> tuple[float, float]:
        """Lowest and highest gain on the [0, 1] scale."""
        return self.gain_255[0] / 255, self.gain_255[1] / 255

    @property
    def validation_sigma(self) -> float:
        """Validation sigma on the [0, 1] scale."""
        return self.validation_level_255 / 255


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """The search space of every part. C comes from the prior: the boundaries between parts have its channels."""

    num_resolutions: int = 3
    """Rows of cells; each has half the height and width of the one before."""
    num_layers: int = 6
    """Columns of cells."""
    candidate_ops: tuple[str, ...] = DEFAULT_OPS
    """Operators on offer in every cell."""
    op_files: tuple[str, ...] = ()
    """Python files of your own that register operators; loaded wherever the search runs."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The pretrained denoiser that supervises."""

    weights: str = "mirnet16"
    """Name of a shipped prior, or a checkpoint file (.safetensors, .pth): MIRNet or NAFNet by their published names."""


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """The device that architectures are priced on, and how long the pricing may take."""

    device: str = "cpu"
    """What is priced, `cpu` or `cuda`, wherever the search itself computes (`device`)."""
    num_threads: int = 2
    """CPU threads of the timed operators."""
    image_size: int = 256
    """Height and width of the image that costs are for."""
    warmup_runs: int = 10
    """Untimed runs per operator."""
    min_repeats: int = 20
    """Runs per operator at least."""
    max_repeats: int = 1000
    """Runs per operator at most (the paper's count)."""
    max_seconds: float = 6.0
    """Time per operator at most, once `min_repeats` is reached."""
    table: str | None = None
    """Parquet file to reuse or create; by default `latency.parquet` in the run's folder."""
    device_name: str | None = None
    """Name of another machine's processor or GPU that architectures are priced for; `table` is then that device's,
    made there by `denoise-nas latency build`. By default `device` of the machine that runs the command."""

    def __post_init__(self) -> None:
        _check_sizes("latency", self)
        check(self.device in DEVICES, "latency.device", f"one of {', '.join(DEVICES)}", self.device)
        check(self.num_threads >= 1, "latency.num_threads", "at least 1", self.num_threads)
        check(self.image_size >= 16, "latency.image_size", "at least 16", self.image_size)
        check(1 <= self.min_repeats <= self.max_repeats, "latency.min_repeats", "between 1 and max_repeats",
               self.min_repeats)  # fmt: skip
        check(self.warmup_runs >= 1, "latency.warmup_runs", "at least 1", self.warmup_runs)
        check(self.max_seconds > 0, "latency.max_seconds", "positive", self.max_seconds)
        if self.device_name is not None:
            check(self.table is not None, "latency.table", "a file when latency.device_name is set", self.table)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Algorithm 1 for each part."""

    num_patches: int = 512
    """Size of the patch set when features are cached; also one epoch."""
    patch_size: int = 128
    batch_size: int = 16
    num_epochs: int = 150
    warmup_share: float = 0.1
    """Share of the epochs that train weights only."""
    weight_learning_rate: float = 2e-4
    arch_learning_rate: float = 1e-4
    estimator: str = "sampled"
    """Gradient of alpha: `sampled` (Eqs. 5, 8), `gumbel` (Eqs. 5, 7) or `mixture` (Eqs. 3, 4)."""
    temperature: float = 1.0
    """lambda_tem of Eq. (6)."""
    arch_samples: int = 1
    """Architectures sampled per architecture step; their gradients are averaged."""
    cost: str = "latency"
    """What the complexity regulariser counts: `latency`, `parameters` or `macs`."""
    complexity_weight: float = 0.0
    """lambda of Eq. (13), in units of the uniform architecture's cost; 0 searches the best network regardless."""
    target_ms: float | None = None
    """Budget for the whole network in ms, for an image of `latency.image_size`: `complexity_weight` penalises expected
    latency above it, and `derive_samples` keeps candidates within it. Needs one of the two, and `cost: latency`."""
    threshold: float = 0.5
    """Pathways are kept until their softmax sums to more than this; random architectures keep what that allows."""
    derive_samples: int = 0
    """Candidates that the final softmaxes make likely; the one within budget with the lowest L_dp on D_archi is kept.
    0: the paper's argmax alone."""
    prior_features: str = "cached"
    """`cached`: computed once for a fixed patch set and shared. `live`: the prior runs in every step."""
    threads_per_part: int = 1
    """CPU threads of every part search."""
    max_bad_steps: int = 20
    """Steps of a part, or of a shared supernet, that may be skipped because their loss is not finite, before its search
    or training ends."""
    precision: str = "float32"
    """`bfloat16`: supernets compute in mixed precision; weights, losses and the prior's features stay float32."""

    def __post_init__(self) -> None:
        _check_sizes("search", self)
        for name in ("num_patches", "patch_size", "batch_size", "num_epochs", "arch_samples", "threads_per_part"):
            check(getattr(self, name) >= 1, f"search.{name}", "at least 1", getattr(self, name))
        check(self.patch_size % 4 == 0, "search.patch_size", "a multiple of 4", self.patch_size)
        check(2 * self.batch_size <= self.num_patches, "search.num_patches", "at least two batches", self.num_patches)
        check(0 <= self.warmup_share < 1, "search.warmup_share", "in [0, 1)", self.warmup_share)
        for name in ("weight_learning_rate", "arch_learning_rate"):
            check(0 < getattr(self, name) <= 1, f"search.{name}", "above 0 and at most 1", getattr(self, name))
        check(self.estimator in ESTIMATORS, "search.estimator", f"one of {', '.join(ESTIMATORS)}", self.estimator)
        check(self.precision in PRECISIONS, "search.precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        check(self.cost in COSTS, "search.cost", f"one of {', '.join(COSTS)}", self.cost)
        check(0 <= self.complexity_weight < float("inf"), "search.complexity_weight", "finite and at least 0",
               self.complexity_weight)  # fmt: skip
        check(self.temperature > 0, "search.temperature", "positive", self.temperature)
        check(0 <= self.threshold < 1, "search.threshold", "in [0, 1)", self.threshold)
        check(self.prior_features in ("cached", "live"), "search.prior_features", "cached or live",
               self.prior_features)  # fmt: skip
        check(self.max_bad_steps >= 0, "search.max_bad_steps", "at least 0", self.max_bad_steps)
        check(self.derive_samples >= 0, "search.derive_samples", "at least 0", self.derive_samples)
        if self.target_ms is not None:
            check(self.target_ms > 0, "search.target_ms", "positive", self.target_ms)
            check(self.cost == "latency", "search.cost", "latency when search.target_ms is set", self.cost)
            check(self.complexity_weight > 0 or self.derive_samples > 0, "search.complexity_weight",
                   "above 0 when search.target_ms is set and search.derive_samples is 0",
                   self.complexity_weight)  # fmt: skip

    @property
    def steps_per_epoch(self) -> int:
        """Weight steps of an epoch: as many batches as half of the patches make."""
        return max(1, self.num_patches // 2 // self.batch_size)

    @property
    def num_warmup_epochs(self) -> int:
        """Epochs that train weights only."""
        return round(self.warmup_share * self.num_epochs)


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Training of the derived network, Eq. (14)."""

    start: str = "scratch"
    """`scratch` (the paper) or `inherited` (the weights that the search left in the chosen operators)."""
    patch_size: int = 128
    batch_size: int = 32
    num_epochs: int = 300
    steps_per_epoch: int = 175
    learning_rate: float = 2e-4
    final_learning_rate: float = 1e-6
    distill_share: float = 0.2
    """Share of the epochs with L1 + L_dp (60 of 300 in the paper); L1 alone afterwards."""
    distilled_patches: int = 0
    """Patches that are drawn once and denoised by the prior, whose results are a second target of L1 beside the clean
    patches; all steps then use these. 0: fresh patches in every step (the paper)."""
    num_workers: int = 1
    """Ray Train workers; the batch is divided among them."""
    threads_per_worker: int = 2
    max_bad_steps: int = 20
    """Steps that may be skipped because their loss is not finite, before the training ends."""
    precision: str = "float32"
    """`bfloat16`: the network computes in mixed precision; weights, losses and the prior stay float32."""
    compile: bool = False
    """Let torch.compile make the network faster; the first step of every process then takes minutes."""

    def __post_init__(self) -> None:
        _check_sizes("retrain", self)
        check(self.start in ("scratch", "inherited"), "retrain.start", "scratch or inherited", self.start)
        for name in ("patch_size", "batch_size", "num_epochs", "steps_per_epoch", "num_workers", "threads_per_worker"):
            check(getattr(self, name) >= 1, f"retrain.{name}", "at least 1", getattr(self, name))
        check(self.precision in PRECISIONS, "retrain.precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        check(self.patch_size % 4 == 0, "retrain.patch_size", "a multiple of 4", self.patch_size)
        check(0 < self.learning_rate <= 1, "retrain.learning_rate", "above 0 and at most 1", self.learning_rate)
        check(0 <= self.final_learning_rate <= self.learning_rate, "retrain.final_learning_rate",
               "between 0 and retrain.learning_rate", self.final_learning_rate)  # fmt: skip
        check(self.max_bad_steps >= 0, "retrain.max_bad_steps", "at least 0", self.max_bad_steps)
        check(self.distilled_patches >= 0, "retrain.distilled_patches", "at least 0", self.distilled_patches)
        check(0 <= self.distill_share <= 1, "retrain.distill_share", "in [0, 1]", self.distill_share)
        check(self.batch_size % self.num_workers == 0, "retrain.batch_size", "a multiple of retrain.num_workers",
               self.batch_size)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured at the end."""

    image_size: int = 256
    """Height and width for MACs; latency is measured at `latency.image_size`."""
    tile_size: int | None = None
    """Tile for images that do not fit in memory; None runs whole images."""

    def __post_init__(self) -> None:
        _check_sizes("evaluate", self)
        check(self.image_size >= 16, "evaluate.image_size", "at least 16", self.image_size)
        if self.tile_size is not None:
            check(self.tile_size > 32, "evaluate.tile_size", "larger than the overlap of 32", self.tile_size)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where MLflow records."""

    uri: str | None = None
    """Tracking URI; by default MLFLOW_TRACKING_URI, or else SQLite, `mlflow.db` beside the run folders."""
    experiment: str = "denoise-nas"
    """Name of MLflow's experiment."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where the work runs."""

    address: str | None = None
    """Address of a running cluster; by default RAY_ADDRESS, or else a local one that ends with the command."""
    cpus_per_part: float = 0.5
    """Processors that Ray sets aside for every part search: what decides how many run on one machine."""
    gpus_per_part: float = 0.0
    """GPUs of every part search: a fraction shares one among several, above 1 it must be whole."""
    object_store_mb: int = 600
    """Object store of a local cluster."""
    max_failures: int = 3
    """How often the process of a part search, or the workers of a retraining, are started again after they died."""
    storage_path: str | None = None
    """Folder or URI (`s3://..`) that every node reaches, for the checkpoints of retraining. By default the run's
    folder, and retraining stays on the node that has it."""

    def __post_init__(self) -> None:
        check(self.max_failures >= 0, "ray.max_failures", "at least 0", self.max_failures)
        check(0 <= self.cpus_per_part < float("inf"), "ray.cpus_per_part", "finite and at least 0", self.cpus_per_part)
        gpus = self.gpus_per_part
        check(0 <= gpus < float("inf") and (gpus <= 1 or gpus == int(gpus)), "ray.gpus_per_part",
               "between 0 and 1, or a whole number", gpus)  # fmt: skip
        check(self.object_store_mb >= 80, "ray.object_store_mb", "at least 80", self.object_store_mb)


@dataclass(frozen=True, kw_only=True)
class PriorTrainConfig:
    """Training of a prior (`denoise-nas prior train`)."""

    architecture: str = "mirnet"
    """`mirnet` or `nafnet`."""
    num_channels: int = 16
    num_blocks: int = 1
    """Multi-scale residual blocks per group of a MIRNet; the published one has 2."""
    encoder_blocks: tuple[int, ...] = (1, 1, 2)
    """Blocks per level of a NAFNet on the way down, full resolution first; published for SIDD: 2, 2, 4, 8."""
    middle_blocks: int = 2
    """Blocks at the lowest resolution of a NAFNet; published: 12."""
    decoder_blocks: tuple[int, ...] = (1, 1, 1)
    """Blocks per level of a NAFNet on the way up, full resolution last; published: 2, 2, 2, 2."""
    patch_size: int = 64
    batch_size: int = 8
    num_steps: int = 9000
    learning_rate: float = 1e-3
    noise_model: str = "mixed"
    sigma_255: tuple[float, ...] = (0.0, 55.0)
    max_bad_steps: int = 20
    """Steps that may be skipped because their loss is not finite, before the training ends."""
    seed: int = 0
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        _check_sizes("prior_train", self)
        check(self.architecture in PRIORS, "prior_train.architecture", f"one of {', '.join(PRIORS)}",
               self.architecture)  # fmt: skip
        if self.architecture == "nafnet":
            multiple = 2 ** len(self.encoder_blocks)
            check(self.patch_size % multiple == 0, "prior_train.patch_size",
                   f"a multiple of {multiple} for a NAFNet of {len(self.encoder_blocks)} levels",
                   self.patch_size)  # fmt: skip
        for name in ("num_blocks", "batch_size", "num_steps", "checkpoint_every"):
            check(getattr(self, name) >= 1, f"prior_train.{name}", "at least 1", getattr(self, name))
        for name in ("encoder_blocks", "decoder_blocks"):
            numbers = getattr(self, name)
            ok = len(numbers) <= 8 and all(0 <= number <= 64 for number in numbers)
            check(ok, f"prior_train.{name}", "at most 8 numbers in [0, 64]", numbers)
        check(self.max_bad_steps >= 0, "prior_train.max_bad_steps", "at least 0", self.max_bad_steps)
        check(self.patch_size >= 16 and self.patch_size % 4 == 0, "prior_train.patch_size",
               "a multiple of 4, at least 16", self.patch_size)  # fmt: skip
        ok = len(self.sigma_255) == 2 and 0 <= self.sigma_255[0] <= self.sigma_255[1] <= 255
        check(ok, "prior_train.sigma_255", "two ascending numbers in [0, 255]", self.sigma_255)
        check(0 < self.learning_rate <= 1, "prior_train.learning_rate", "above 0 and at most 1", self.learning_rate)
        check(
            self.noise_model in MAP_MODELS,
            "prior_train.noise_model",
            f"one of {', '.join(MAP_MODELS)}",
            self.noise_model,
        )

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Lowest and highest sigma of the white Gaussian half, on the [0, 1] scale."""
        return self.sigma_255[0] / 255, self.sigma_255[1] / 255


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """A collection of architectures (`denoise-nas collect`)."""

    vary: dict[str, Any] = field(default_factory=dict)
    """What trials differ in: setting -> list of choices, or {low, high} or {low, high, log: true} for numbers; a
    range of a whole number is one of whole numbers. Of `search`, all but `num_patches`, `patch_size`, `prior_features`,
    `threads_per_part` and `threshold`; `space.candidate_ops`; `collect.warm_start`. Trials share all else."""
    sampler: str = "random"
    """Optuna's sampler: `random` (an unbiased sample), or `tpe` or `nsga2` (for the best PSNR and latency)."""
    warm_start: bool = True
    """Searches begin from the shared supernets, instead of from random weights of their own."""
    shared_steps: int = 1000
    """Training steps of each of the three shared supernets, which score every architecture."""
    shared_batch_size: int = 8
    shared_learning_rate: float = 2e-3
    supernets: str | None = None
    """Folder of another collection whose shared supernets, all three finished, are used; by default they are trained in
    this one's."""
    proxy_size: int = 160
    """Height and width of the central crop of every validation image that architectures are scored on."""
    retrain_steps: int = 0
    """Steps of a short retraining of every architecture, from the shared supernets' weights; 0: none."""

    def __post_init__(self) -> None:
        _check_sizes("collect", self)
        check(self.sampler in SAMPLERS, "collect.sampler", f"one of {', '.join(SAMPLERS)}", self.sampler)
        for name in ("shared_steps", "shared_batch_size"):
            check(getattr(self, name) >= 1, f"collect.{name}", "at least 1", getattr(self, name))
        check(0 < self.shared_learning_rate <= 1, "collect.shared_learning_rate", "above 0 and at most 1",
               self.shared_learning_rate)  # fmt: skip
        check(self.proxy_size >= 16, "collect.proxy_size", "at least 16", self.proxy_size)
        check(self.retrain_steps >= 0, "collect.retrain_steps", "at least 0", self.retrain_steps)
        for name, choices in self.vary.items():
            where = f"collect.vary.{name}"
            if isinstance(choices, dict):
                ok = set(choices) - {"log"} == {"low", "high"} and all(
                    isinstance(choices[key], int | float) and not isinstance(choices[key], bool)
                    for key in ("low", "high")
                )
                check(ok and choices["low"] <= choices["high"], where, "{low, high} with low <= high", choices)
                check(choices["low"] > 0 or not choices.get("log"), where, "{low, high} with low > 0 for log: true",
                       choices)  # fmt: skip
            else:
                check(isinstance(choices, list) and choices != [], where, "a list of choices or {low, high}", choices)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Sizes of the many searches and trainings of an experiment (`denoise-nas experiment`); None: those of a run."""

    search_epochs: int | None = None
    """In place of `search.num_epochs`."""
    search_batch_size: int | None = None
    """In place of `search.batch_size`."""
    search_patch_size: int | None = None
    """In place of `search.patch_size`."""
    arch_learning_rate: float | None = None
    """In place of `search.arch_learning_rate`; rate x steps is how far an architecture can be decided."""
    train_epochs: int | None = None
    """In place of `retrain.num_epochs`."""
    train_batch_size: int | None = None
    """In place of `retrain.batch_size`."""
    distilled_patches: int | None = None
    """In place of `retrain.distilled_patches`."""
    toy_epochs: int | None = None
    """In place of `retrain.num_epochs` for the toy networks of `resampling`."""
    proxy_epochs: int | None = None
    """In place of `retrain.num_epochs` for the trainings of `proxies`, long enough to tell architectures apart."""
    nas_epochs: int | None = None
    """In place of `retrain.num_epochs` for the trainings of `nas`; networks without a residual path need many steps."""
    denoiser_epochs: int | None = None
    """In place of `retrain.num_epochs` for the trainings of `denoisers`."""
    data: tuple[str, ...] = ()
    """Further test sets of `denoisers`, such as folders named CBSD68, Set5 and PolyU100; see docs/data.md."""
    noise: tuple[str, ...] = ("awgn:15", "awgn:25", "awgn:50", "niid:1", "niid:2", "niid:3")
    """Noises of the clean ones among them."""
    max_images: int | None = None
    """Images of each of them that count, at equal distances; None: all."""

    def __post_init__(self) -> None:
        sizes = ("search_epochs", "search_batch_size", "train_epochs", "train_batch_size", "toy_epochs", "proxy_epochs",
                 "nas_epochs", "denoiser_epochs", "max_images")  # fmt: skip
        for name in sizes:
            value = getattr(self, name)
            check(value is None or value >= 1, f"experiment.{name}", "at least 1", value)
        value = self.distilled_patches
        check(value is None or value >= 0, "experiment.distilled_patches", "at least 0", value)


# What an experiment's size stands in place of.
EXPERIMENT_SIZES = {
    "search_epochs": "search.num_epochs",
    "search_batch_size": "search.batch_size",
    "search_patch_size": "search.patch_size",
    "arch_learning_rate": "search.arch_learning_rate",
    "train_epochs": "retrain.num_epochs",
    "train_batch_size": "retrain.batch_size",
    "distilled_patches": "retrain.distilled_patches",
}


def _check_sizes(section: str, settings: Any) -> None:
    """Refuse sizes beyond `_LARGEST`."""
    for name, largest in _LARGEST.items():
        size = getattr(settings, name, 0)
        check(size <= largest, f"{section}.{name}", f"at most {largest}", size)


def check(condition: bool, name: str, expected: str, got: Any) -> None:
    """Raise a ValueError that names the setting, what was expected and what came, unless `condition` holds."""
    if not condition:
        raise ValueError(f"`{name}` must be {expected}, got {got!r}")
