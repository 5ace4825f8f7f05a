"""The networks of a job on the meta device, and what they take: parameters, MACs and operations, memory. Nothing is loaded."""

import copy
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import hydra
import torch
from hydra.utils import get_object
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from common.cost.macs import Macs, count_macs, count_parameters, probe_inputs, site_costs
from common.cost.peak_memory import step_bytes
from common.data.teacher_samples import TeacherSamples
from common.denoisers.denoiser import CLIP_TOKENS, architecture_of
from common.denoisers.unet import guidance_size
from common.diffusion.autoencoders import decode, encode, image_channels
from common.diffusion.noise_schedule import check_learns_from_noise
from common.diffusion.sampling import predict, set_timesteps
from common.diffusion.text_encoding import language_model, token_count, tokens_beside
from common.models.architectures import pipeline_of
from common.models.latent_diffusion import LatentDiffusion
from common.models.pipeline_defaults import text_length
from common.pruning.budget import forecast_within
from common.pruning.forecast import CalibrationSize
from common.pruning.plan import apply_plan
from common.scoring.linear_maps import empty_linear_maps
from common.training.block_local import LocalOutputs, list_segments
from common.training.distillation import needs_teacher, needs_whole_student
from common.training.features import FeatureHooks
from experiments.evaluation.samples import check_sampling
from experiments.shared.replacement import check_replacement
from experiments.shared.settings import CalibrationSettings, Settings
from experiments.training.distill_student import feature_pairs
from experiments.training.finetune_autoencoder import check_is_trained

SINGLE_BYTES = 4


def operations_of(call: Callable[[], Any]) -> int:
    """Floating-point operations of call() on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def optimizer_bytes(make: Callable[..., torch.optim.Optimizer]) -> float:
    """Bytes that an optimiser keeps for each parameter, by one step of it on a small tensor."""
    parameter = nn.Parameter(torch.zeros(1024))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = make([parameter])
    optimizer.step()
    states = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor) and value.dim()]
    return sum(value.nbytes for value in states) / parameter.numel()


def calibration_size(settings: CalibrationSettings, teacher: LatentDiffusion) -> CalibrationSize:
    """How much the calibration set of a job on `teacher` holds."""
    captioned = bool(teacher.text_encoders)
    return CalibrationSize(
        conditions=settings.num_conditions if captioned else 1,
        samples=settings.samples,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        rows=settings.data_rows,
        timesteps=teacher.scheduler.config.num_train_timesteps,
        captioned=captioned and not architecture_of(teacher.denoiser).guidance(teacher.denoiser, 1.0),
    )


class JobCost:
    """A job by its settings: `teacher` and `student` on the meta device, `forecast` of its method, and what they take."""

    def __init__(self, settings: Settings):
        from common.models.architectures import meta_teacher

        self.settings = settings
        self.peaks: dict[tuple[int, bool, bool], int] = {}  # of distillation steps, as each takes seconds
        self.teacher: LatentDiffusion = meta_teacher(settings.teacher.config or settings.teacher.path)
        self.text_encoders = self.teacher.text_encoders
        self.captioned = bool(self.text_encoders)
        check_sampling(settings, self.teacher)
        if settings.distill.steps:
            check_learns_from_noise(self.teacher.scheduler, guidance_size(self.teacher.denoiser) is not None)
        check_replacement(settings, self.teacher.denoiser)
        self.method = hydra.utils.instantiate(settings.method, _convert_="all")
        check_is_trained(settings, self.method, self.teacher.autoencoder)
        size = calibration_size(settings.calibration, self.teacher)
        self.forecast = forecast_within(self.method, self.teacher.denoiser, size)
        plan = self.forecast.plan
        if settings.replacement == "linear" and plan is not None:
            plan = empty_linear_maps(self.teacher.denoiser, plan)
        self.student = copy.deepcopy(self.teacher.denoiser) if plan is None else apply_plan(self.teacher.denoiser, plan)

    @property
    def draws_data(self) -> bool:
        """Whether the teacher draws what the student is trained on."""
        return get_object(self.training_data["_target_"]) is TeacherSamples

    @property
    def training_data(self) -> dict[str, Any]:
        """Settings of what the student is trained on."""
        return self.settings.task.trained_on or self.settings.task.data

    @property
    def training_images(self) -> int:
        known = self.training_data["images"] if self.draws_data else self.training_data.get("expected")
        return known or self.settings.budget["training_images"][self.settings.task.name]

    @property
    def tokens(self) -> int:
        """Of a caption."""
        return token_count(architecture_of(self.teacher.denoiser).reads_text, self.token_lengths)

    @cached_property
    def token_lengths(self) -> list[int]:
        """How many tokens each text encoder reads."""
        places = [getattr(encoder.config, "max_position_embeddings", None) for encoder in self.text_encoders]  # T5 has none
        length = text_length(pipeline_of(self.settings.teacher.config or self.settings.teacher.path))
        return [min(each, length) if each and length else each or length or CLIP_TOKENS for each in places]

    @property
    def half(self) -> bool:
        """Whether denoisers are scored and sampled in half precision."""
        return self.settings.inference_precision == "bf16"

    @property
    def guided(self) -> int:
        """Rows of a forward pass for each sample that is drawn."""
        size = calibration_size(self.settings.calibration, self.teacher)
        return size.passes(self.settings.evaluation.guidance_scale)

    @property
    def samples_at_once(self) -> int:
        return self.settings.evaluation.micro_batch_size or self.settings.evaluation.batch_size

    def passes(self, scheduler: Any, steps: int) -> int:
        """Forward passes of a sampler in `steps` steps: one more than those for some."""
        scheduler = type(scheduler).from_config(scheduler.config)
        set_timesteps(scheduler, steps, torch.empty(self.teacher.latent_shape), architecture_of(self.teacher.denoiser))
        return len(scheduler.timesteps)

    def inputs(self, batch: int) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]:
        """Arguments of `predict` for either denoiser, `batch` rows."""
        given = {"encoder_hidden_states": torch.empty(1, self.tokens, 1, device="meta")} if self.captioned else None
        one = probe_inputs(self.teacher.denoiser, given)
        return tree_map_only(torch.Tensor, lambda value: value.new_empty(batch, *value.shape[1:]), one)

    @cached_property
    def macs(self) -> dict[str, Macs]:
        arguments = self.inputs(1)
        return {"teacher": count_macs(self.teacher.denoiser, *arguments), "student": count_macs(self.student, *arguments)}

    @cached_property
    def trained_blocks(self) -> list[str]:
        """Paths of the student's blocks that are trained each alone."""
        if not self.settings.distill.steps or not self.settings.distill.local_weight:
            return []
        return [each.kept for each in list_segments(self.student, self.teacher.denoiser)]

    @property
    def trained_parameters(self) -> int:
        if needs_whole_student(self.settings.distill.loss_weights):
            return count_parameters(self.student)
        return sum(count_parameters(self.student.get_submodule(site)) for site in self.trained_blocks)

    def step_macs(self) -> int:
        """Of one sample in a distillation step: the teacher forward, the student forward and back, as far as the losses ask."""
        weights, passes = self.settings.distill.loss_weights, 4 if self.settings.distill.gradient_checkpointing else 3
        student = self.macs["student"].total if needs_whole_student(weights) else 0
        alone = (
            site_costs(self.student, self.trained_blocks, "macs", conditions=self.inputs(1)[1]) if self.trained_blocks else {}
        )
        teacher = self.macs["teacher"].total if needs_teacher(weights) else 0
        return teacher + passes * (student + round(sum(alone.values())))

    @cached_property
    def image_operations(self) -> dict[str, int]:
        """Of encoding and decoding an image, and of reading a caption."""
        autoencoder = self.teacher.autoencoder
        latents = torch.empty(1, *self.teacher.latent_shape, device="meta")
        found = {
            "encode": operations_of(lambda: encode(autoencoder, self.images(1))),
            "decode": operations_of(lambda: decode(autoencoder, latents)),
            "read": 0,
        }
        beside = tokens_beside(self.teacher.reading)
        for encoder, length in zip(self.text_encoders, self.token_lengths, strict=True):
            ids = torch.zeros(1, length + beside, dtype=torch.long, device="meta")
            seen = torch.zeros(1, 1, length + beside, length + beside, device="meta")
            found["read"] += operations_of(partial(language_model(encoder), ids, attention_mask=seen))
        return found

    def images(self, count: int) -> torch.Tensor:
        """What the autoencoder encodes to latents of the teacher's shape."""
        return torch.empty(count, image_channels(self.teacher.autoencoder.config), *self.teacher.image_size, device="meta")

    def resident(self) -> dict[str, int]:
        """Bytes of the networks that a job holds all along, in single precision."""
        others = [network for network in self.teacher.networks if network is not self.teacher.denoiser]
        found = {
            "teacher's denoiser": [self.teacher.denoiser],
            "autoencoder" + (" and text encoder" if self.captioned else ""): others,
            "pruned denoiser, kept to be measured": [self.student],
        }
        return {name: SINGLE_BYTES * sum(map(count_parameters, networks)) for name, networks in found.items()}

    def distillation(self) -> dict[str, int]:
        """Bytes of everything that a distillation step holds, by what it is; activations apart."""
        settings, count, trained = self.settings.distill, count_parameters(self.student), self.trained_parameters
        state = optimizer_bytes(hydra.utils.instantiate(settings.optimizer))
        own = {
            "student: weights": SINGLE_BYTES * count,
            "student: gradients": SINGLE_BYTES * trained,
            "student: optimiser": round(state * trained),
            "student: average of the weights": SINGLE_BYTES * count if settings.ema_decay else 0,
            "student: what the method keeps": self.forecast.per_parameter * count,
        }
        return {name: size for name, size in (own | self.resident()).items() if size}

    def activations(self, batch: int, mixed: bool, checkpointing: bool) -> int:
        """Bytes that a distillation step of `batch` samples holds at its peak besides what is always there."""
        asked = (batch, mixed, checkpointing)
        if asked not in self.peaks:
            self.peaks[asked] = self.peak_of_step(*asked)
        return self.peaks[asked]

    def peak_of_step(self, batch: int, mixed: bool, checkpointing: bool) -> int:
        """One step on the meta device: the student forward and back, the teacher forward, the recipe's losses."""
        settings = self.settings.distill
        inputs, conditions = self.inputs(batch)
        target = torch.empty_like(inputs[0])
        pairs, losses = [], hydra.utils.instantiate(settings.feature_loss)
        if settings.feature_weight:
            pairs = feature_pairs(settings.features, self.student, self.teacher.denoiser)
        hooks = [
            FeatureHooks(self.student, [ours for ours, _ in pairs]),
            FeatureHooks(self.teacher.denoiser, [p for _, p in pairs]),
        ]
        local = LocalOutputs(self.student, self.teacher.denoiser) if settings.local_weight else None
        hooks += [] if local is None else [local]

        def loss() -> torch.Tensor:
            terms = []
            if needs_whole_student(settings.loss_weights):
                prediction = predict(self.student, *inputs, conditions).float()
                terms.append(F.mse_loss(prediction, target))
            if needs_teacher(settings.loss_weights):
                with torch.no_grad():
                    wanted = predict(self.teacher.denoiser, *inputs, conditions)
            if settings.output_weight or settings.feature_weight:
                terms.append(F.mse_loss(prediction, wanted.float()))
            if settings.feature_weight:
                terms += losses(hooks[0].features(), hooks[1].features())
            if local is not None:
                terms += losses(*local.pairs())
            return torch.stack(terms).sum()

        try:
            return step_bytes(self.student, loss, mixed, checkpointing, [self.teacher.denoiser])
        finally:
            for hook in hooks:
                hook.remove()

    def measured(self) -> int:
        """Bytes of the networks while models are compared: the distilled one comes to those that were there."""
        trained = SINGLE_BYTES * count_parameters(self.student) if self.settings.distill.steps else 0
        return sum(self.resident().values()) + trained
