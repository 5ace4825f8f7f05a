"""Trains a denoiser: alone (a teacher from scratch) or against a teacher (distillation of a pruned student).

    L = task_weight * L_task + output_weight * L_output + feature_weight * sum_l L_feature(l) + local_weight * sum_s L_local(s)
    L_task    = E || target - student(x_t, t, c) ||^2       (the target the scheduler predicts: noise, sample or velocity)
    L_output  = E || teacher(x_t, t, c) - student(x_t, t, c) ||^2
    L_feature = E || f_teacher^l - f_student^l ||^2         over pairs of module paths
    L_local   = the same over segments of blocks, each on the teacher's own input (common.training.block_local)

The form is BK-SDM's (arXiv 2305.15798), which LD-Pruner (arXiv 2404.11936, section 3.1) and LAPTOP-Diff
(arXiv 2404.11098) take over with other weights. Where the local loss stands alone, the student as a whole is not run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.denoisers.denoiser import Conditions
from common.diffusion.noise_schedule import noise_process
from common.diffusion.objective import TimestepDensity, noise_and_timesteps
from common.diffusion.sampling import predict
from common.errors import InputError
from common.runtime.collectives import mean_over_processes
from common.training.batches import OWN
from common.training.block_local import LocalOutputs
from common.training.features import FeatureHooks, Features, squared_feature_losses
from common.training.fsdp import shard
from common.training.nan_guard import GuardedTraining, check_loss


class DenoiserTraining(GuardedTraining):
    """One training step of a student, with or without a teacher.

    Batches hold `latents` (batch, channels, height, width), `position` (batch,) and, for text-to-image, either the
    conditions of each row, or `input_ids` (batch, tokens) when a `text_encoder` is trained along. `null_condition` holds
    one row of the same columns, which replaces dropped ones; it is read where condition_dropout is above 0. Rows that do not
    have their `own_condition` (common.training.batches.OtherConditions) are left out of the task loss. compile_options: of
    torch.compile, for student and teacher; None runs them as they are.
    """

    def __init__(
        self,
        student: nn.Module,
        scheduler: Any,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer], Any],
        seed: int,
        condition_dropout: float = 0.0,
        null_condition: Conditions | None = None,
        task_weight: float = 1.0,
        output_weight: float = 0.0,
        feature_weight: float = 0.0,
        local_weight: float = 0.0,
        feature_pairs: Sequence[tuple[str, str]] = (),
        feature_losses: Callable[[Features, Features], list[torch.Tensor]] = squared_feature_losses,
        teacher: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
        compile_options: dict[str, Any] | None = None,
        timestep_density: TimestepDensity = "uniform",
    ):
        super().__init__(optimizer, schedule, seed)
        if teacher is None and (output_weight or feature_weight or local_weight):
            raise ValueError("output_weight, feature_weight and local_weight need a teacher.")
        self.student, self.text_encoder, self.process = student, text_encoder, noise_process(scheduler)
        self.timestep_density = timestep_density
        self.condition_dropout, self.null_condition = condition_dropout, null_condition or {}
        self.weights = {"task": task_weight, "output": output_weight, "feature": feature_weight, "local": local_weight}
        self.feature_losses, self.feature_pairs = feature_losses, [tuple(pair) for pair in feature_pairs]
        # a plain dictionary: neither checkpoints nor EMA see the teacher, or weights by the names of a compiled student
        self.unregistered: dict[str, Any] = {"teacher": teacher, "student": student}
        if compile_options is not None:
            found = {name: network for name, network in self.unregistered.items() if network is not None}
            self.unregistered |= {name: torch.compile(network, **compile_options) for name, network in found.items()}
        if feature_weight and teacher is not None:
            self.student_taps = FeatureHooks(student, [pair[0] for pair in self.feature_pairs])
            self.teacher_taps = FeatureHooks(teacher, [pair[1] for pair in self.feature_pairs])
        if local_weight and teacher is not None:
            self.unregistered["local"] = LocalOutputs(student, teacher)

    def remove_hooks(self) -> None:
        """Takes the hooks off both networks."""
        if self.weights["feature"]:
            self.student_taps.remove()
            self.teacher_taps.remove()
        if self.weights["local"]:
            self.unregistered["local"].remove()

    def condition(self, batch: dict[str, torch.Tensor], uniform: torch.Tensor) -> Conditions:
        """The conditions, with a share of `condition_dropout` of the rows replaced by the empty one, all columns together."""
        columns = {name: value for name, value in batch.items() if name not in ("latents", "position", OWN)}
        if self.condition_dropout:
            dropped = uniform < self.condition_dropout
            for name, value in columns.items():
                where = dropped.view(-1, *[1] * (value.dim() - 1))
                columns[name] = torch.where(where, self.null_condition[name].to(value), value)
        if self.text_encoder is not None:
            return {"encoder_hidden_states": self.text_encoder(columns["input_ids"]).last_hidden_state}
        return columns

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        latents = batch["latents"]
        noise, numbers, uniform = noise_and_timesteps(
            self.seed, batch["position"], latents, self.process.steps, self.timestep_density
        )
        timesteps = self.process.timesteps(numbers)
        noisy = self.process.add_noise(latents, noise, timesteps)
        target = self.process.target(latents, noise, timesteps)
        condition = self.condition(batch, uniform)
        terms: dict[str, torch.Tensor] = {}
        by_pair: list[torch.Tensor] = []
        if needs_whole_student(self.weights):
            prediction = predict(self.unregistered["student"], noisy, timesteps, condition).float()
            terms["task"] = self.task_loss(prediction, target.float(), batch.get(OWN))
        if needs_teacher(self.weights):
            with torch.no_grad():
                teacher_prediction = predict(self.unregistered["teacher"], noisy, timesteps, condition)
        if self.weights["output"] or self.weights["feature"]:
            terms["output"] = F.mse_loss(prediction, teacher_prediction.float())
        if self.weights["feature"]:
            features = self.student_taps.features(), self.teacher_taps.features()
            for pair, ours, theirs in zip(self.feature_pairs, *features, strict=True):
                if ours.shape != theirs.shape:
                    raise InputError(
                        f"distill.features: the student's {pair[0]!r} gives {tuple(ours.shape[1:])}, the teacher's {pair[1]!r} "
                        f"{tuple(theirs.shape[1:])}; pair places of one shape (BK-SDM-Tiny: distill=bk_sdm_tiny)."
                    )
            by_pair = self.feature_losses(*features)
            terms["feature"] = torch.stack(by_pair).sum()
        if self.weights["local"]:
            terms["local"] = torch.stack(self.feature_losses(*self.unregistered["local"].pairs())).sum()
        loss = torch.as_tensor(sum(self.weights[name] * term for name, term in terms.items()))
        self.log_losses(loss, terms, by_pair)
        return loss

    @staticmethod
    def task_loss(prediction: torch.Tensor, target: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
        """Mean squared error over the rows that have their own condition, 0 where none has."""
        if own is None:
            return F.mse_loss(prediction, target)
        errors = (prediction - target).square().flatten(1).mean(1)
        return (errors * own).sum() / own.sum().clamp_min(1)

    def log_losses(self, loss: torch.Tensor, terms: dict[str, torch.Tensor], by_pair: list[torch.Tensor]) -> None:
        """Logs the losses of the whole batch, of all processes, and what share each has; InputError where one is no number."""
        values = mean_over_processes(torch.stack([loss, *terms.values(), *by_pair]).detach())
        loss, values = values[0], values[1:]
        terms = dict(zip(terms, values, strict=False))
        pair_losses = values[len(terms) :]
        check_loss(loss, terms, self.global_step)
        self.log("loss", loss, prog_bar=True)
        self.log_dict({f"loss/{name}": value for name, value in terms.items()})
        self.log_dict({f"share/{name}": self.weights[name] * value / loss for name, value in terms.items()})
        if len(pair_losses):
            paths = [pair[0] for pair in self.feature_pairs]
            shares = pair_losses / terms["feature"].clamp_min(torch.finfo(torch.float32).tiny)
            self.log_dict({f"feature/{path}": value for path, value in zip(paths, pair_losses, strict=True)})
            self.log_dict({f"feature_share/{path}": share for path, share in zip(paths, shares, strict=True)})

    def configure_model(self) -> None:
        """Leaves each process a part of the student's weights, under the strategy that wants it (common.training.fit)."""
        if self.device_mesh is not None:
            shard(self.student, self.device_mesh["data_parallel"])


def needs_whole_student(weights: Mapping[str, float]) -> bool:
    """Whether a step of these loss weights runs the student as a whole, or only single blocks of it."""
    return any(weights[name] for name in ("task", "output", "feature"))


def needs_teacher(weights: Mapping[str, float]) -> bool:
    return any(weights[name] for name in ("output", "feature", "local"))
