"""The schema of a configuration: kinds, ranges and choices of every setting.

Groups that Hydra instantiates (`_target_`: methods, data, features, metrics, losses, optimisers) have the signature of what
they name as their schema (common/settings.py); the others are the dataclasses here. Defaults stand in conf/ alone.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen
from omegaconf import DictConfig, OmegaConf

from common.diffusion.objective import TimestepDensity
from common.settings import (
    AtLeastOne,
    Count,
    Decay,
    GuidanceScale,
    NonNegative,
    Positive,
    Probability,
    Seed,
    Share,
    Target,
)
from experiments.shared.gpus import GPUS


@dataclass
class CalibrationSettings:
    num_conditions: AtLeastOne
    samples: AtLeastOne
    steps: AtLeastOne
    guidance_scale: GuidanceScale
    data_rows: AtLeastOne
    seed: Seed


@dataclass
class TrainingRowsSettings:
    dtype: Literal["float32", "float16", "bfloat16"]
    flip: bool
    rows_per_shard: AtLeastOne
    batch_size: AtLeastOne
    workers: AtLeastOne | None
    verify: bool


@dataclass
class LayerCheckSettings:
    rows: Count


@dataclass
class EvaluationSettings:
    prompts: str | None
    images: Annotated[int, Ge(2)]
    reference_images: Annotated[int, Ge(2)]
    steps: AtLeastOne
    more_steps: tuple[AtLeastOne, ...]
    every: Count
    guidance_scale: GuidanceScale
    batch_size: AtLeastOne
    micro_batch_size: AtLeastOne | None
    split: Literal["train", "test"]
    latency_rounds: AtLeastOne
    latency_batch: AtLeastOne
    scheduler: dict[str, Any] | None
    seeds: Literal["per_sample", "shared"]
    seed: Seed


@dataclass
class SavedImagesSettings:
    quality: Annotated[int, Ge(1), Le(100)]
    size: AtLeastOne | None
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


@dataclass
class WeightsAndBiases:
    project: str
    entity: str | None
    dir: str | None
    mode: Literal["auto", "online", "offline", "disabled"]
    timeout: Positive
    log_student: bool


@dataclass
class TaskSettings:
    data: Target
    trained_on: Target | None
    name: Literal["t2i", "uig", "uag"]
    features: Target
    sound: Target | None
    distance_to_teacher: bool


@dataclass
class TeacherSettings:
    path: str
    revision: str | None
    config: str | None
    vae: str | None = None
    lora: str | None = None
    lora_scale: float = 1.0
    sound: Target | None = None


@dataclass
class UtilisationSettings:
    half: Annotated[float, Gt(0), Le(1)]
    single: Annotated[float, Gt(0), Le(1)]


@dataclass
class ScheduleSettings:
    name: Literal["constant", "cosine", "trapezoid"]
    warmup: Count
    cooldown: Annotated[float, Gt(0), Le(1)] = 0.2


@dataclass
class AutoencoderSettings:
    steps: Count
    batch_size: AtLeastOne
    codebook_weight: NonNegative
    spread_weight: NonNegative
    kl_weight: NonNegative
    optimizer: Target


@dataclass
class TrainerSettings:
    """Further arguments of lightning.Trainer may stand beside these; see check_trainer."""

    strategy: Literal["auto", "ddp", "fsdp"]
    precision: Literal["32-true", "16-mixed", "bf16-mixed"]
    gradient_clip_val: Positive | None


LOSSES = ("task", "output", "feature", "local")  # of distillation, each with its weight (common.training.distillation)


@dataclass
class DistillationSettings:
    task_weight: NonNegative
    output_weight: NonNegative
    feature_weight: NonNegative
    local_weight: NonNegative
    feature_loss: Target
    features: tuple[str, ...] | None
    steps: Count
    batch_size: AtLeastOne
    accumulate: AtLeastOne
    condition_dropout: Probability
    random_conditioning: Probability
    ema_decay: Decay | None
    gradient_checkpointing: bool
    compile: dict[str, Any] | None
    checkpoint_every: AtLeastOne
    autoencoder: AutoencoderSettings
    optimizer: Target
    schedule: ScheduleSettings
    trainer: dict[str, Any]
    recipe: str | None = None
    coefficients: dict[str, NonNegative] | None = None

    @property
    def loss_weights(self) -> dict[str, float]:
        return {name: getattr(self, f"{name}_weight") for name in LOSSES}


@dataclass
class NoAutoencoderTraining:
    steps: Count


@dataclass
class NoDistillationSettings:
    steps: Count
    autoencoder: NoAutoencoderTraining


@dataclass
class PaperTable:
    title: str
    source: str
    columns: tuple[str, ...]
    lines: tuple[Any, ...]


@dataclass
class AdditivitySettings:
    criteria: Annotated[tuple[Literal["output", "task", "alignment", "magnitude", "random"], ...], MinLen(1)]
    sizes: Annotated[tuple[AtLeastOne, ...], MinLen(1)]
    per_size: Annotated[int, Ge(2)]
    seed: Seed


@dataclass
class DistancePowerSettings:
    damages: Annotated[tuple[Share, ...], MinLen(1)]
    other_seed: Seed


@dataclass
class Settings:
    """config.yaml; additivity.yaml and distance_power.yaml have a group of the same name besides."""

    task: TaskSettings
    method: Target
    teacher: TeacherSettings
    distill: DistillationSettings
    budget: Any
    wandb: WeightsAndBiases | None
    metrics: dict[str, Target]
    seed: Seed
    device: str
    inference_precision: Literal[32, "bf16"]
    init: Literal["preserved", "scratch"]
    replacement: Literal["identity", "linear"]
    objectives: Annotated[tuple[str, ...], MinLen(1)]
    table: PaperTable | None
    layer_check: LayerCheckSettings
    dry_run: bool
    gpu: Literal[*GPUS]
    utilisation: UtilisationSettings
    outputs: str
    calibration: CalibrationSettings
    training_rows: TrainingRowsSettings
    evaluation: EvaluationSettings
    saved_images: SavedImagesSettings | None
    deployment: tuple[Literal["int8", "float8", "compile", "int8+compile", "float8+compile"], ...]
    additivity: AdditivitySettings | None = None
    distance_power: DistancePowerSettings | None = None


@dataclass
class SettingsWithoutTraining(Settings):
    """With distill=none."""

    distill: NoDistillationSettings  # type: ignore[assignment]


@dataclass
class TrainedAutoencoder:
    part: Literal["vae", "vqvae"]
    initial: str | None
    network: Target
    objective: Target
    steps: AtLeastOne
    batch_size: AtLeastOne
    schedule: ScheduleSettings
    optimizer: Target


@dataclass
class TrainedTextEncoder:
    vocabulary_size: AtLeastOne
    max_length: AtLeastOne
    width: AtLeastOne
    layers: AtLeastOne
    heads: AtLeastOne


@dataclass
class InitialWeights:
    gain: Positive
    skips: Positive


@dataclass
class TrainedDenoiser:
    network: Target
    scheduler: Target
    initial_weights: InitialWeights | None
    steps: AtLeastOne
    batch_size: AtLeastOne
    schedule: ScheduleSettings
    condition_dropout: Probability
    ema_decay: Decay | None
    optimizer: Target
    timestep_density: TimestepDensity


@dataclass
class TeacherTraining:
    name: str
    data: Target
    autoencoder: TrainedAutoencoder
    denoiser: TrainedDenoiser
    pipeline: Target
    checkpoint_every: AtLeastOne
    sample_every: AtLeastOne
    guidance_scale: GuidanceScale
    inference_steps: AtLeastOne
    trainer: dict[str, Any]
    text_encoder: TrainedTextEncoder | None = None
    text_encoder_of: str | None = None


@dataclass
class TrainTeacher:
    """train_teacher.yaml."""

    task: TaskSettings
    teacher: TeacherSettings
    teacher_training: TeacherTraining
    seed: Seed
    start: str | None
    autoencoder: str | None
    out: str
    work: str


def schema_of(values: Mapping[str, Any]) -> Any:
    """The schema of a configuration."""
    if "teacher_training" in values:
        return TrainTeacher
    distill = values.get("distill")
    return SettingsWithoutTraining if isinstance(distill, Mapping) and "optimizer" not in distill else Settings


def typed_settings(cfg: DictConfig) -> Any:
    """A configuration as an instance of its schema; Hydra's own part is left out.

    experiments.shared.settings_check has checked it; nothing is checked here. What is missing is None: a result row holds only
    what makes up its job.
    """
    own = OmegaConf.masked_copy(cfg, [name for name in cfg if name != "hydra"])
    values = OmegaConf.to_container(own, resolve=True)
    return typed(values, schema_of(values))


def typed(value: Any, kind: Any) -> Any:
    """`value` as an annotation says: groups of settings as dataclasses, lists as tuples; anything else as it is."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next((each for each in typing.get_args(kind) if dataclasses.is_dataclass(each)), None)
    if isinstance(value, list):
        return tuple(value)
    if not dataclasses.is_dataclass(kind) or not isinstance(value, Mapping):
        return value
    return kind(**{name: typed(value.get(name), annotation) for name, annotation in typing.get_type_hints(kind).items()})
