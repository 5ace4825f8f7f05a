"""A student that is there already, measured beside others: the U-Net of a pipeline folder or hub repository.

Others have published it, or a job here has made it, also in several steps: then its plan is its own, and its folder is
measured against the original, of which each step's job has seen only the student before.

BK-SDM's checkpoints (nota-ai/bk-sdm-*) and those of Segmind (small-sd, tiny-sd) are plain diffusers pipelines whose U-Net
has a configuration of its own. The teacher stays the job's: its autoencoder, text encoder, prompts and noise are what the
published U-Net is measured with. Segmind's were distilled from another teacher (Realistic Vision v4), with which they are
at home: teacher=small_sd measures such a pipeline as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from baselines.bk_sdm_table import VARIANTS, plan_for
from common.errors import InputError
from common.models.honoured_settings import check_pipeline_settings, named_parts
from common.models.hub import denoiser_part, find_folder
from common.models.loading import read_index
from common.models.parts import load_part
from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.method import Method
from common.pruning.plan import Plan, own_settings

SAME = ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type", "encoder_hid_dim", "class_embed_type")
OF_A_PLAN = ("plan", "auto_map")
LATENT_SIZE = "sample_size"  # not of the weights: a U-Net is measured at its teacher's size


def settings_of(unet: nn.Module) -> dict[str, Any]:
    """Its configuration in JSON's types, without what diffusers notes for itself, a plan, and the size of latents."""
    public = {name: value for name, value in own_settings(unet).items() if name not in (LATENT_SIZE, *OF_A_PLAN)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in public.items()}


def config_changes(unet: nn.Module, published: nn.Module) -> dict[str, Any]:
    """The entries of the published U-Net's configuration that differ from the teacher's."""
    ours = settings_of(unet)
    return {name: value for name, value in settings_of(published).items() if value != ours.get(name)}


def check_same_task(unet: nn.Module, published: nn.Module, folder: Path) -> None:
    """InputError when the published U-Net takes or gives something else than the teacher's."""
    if type(published).__name__.removeprefix("Pruned") != type(unet).__name__:
        raise InputError(f"{folder} holds a {type(published).__name__}, and the teacher's is a {type(unet).__name__}.")
    for name in SAME:
        theirs, ours = own_settings(published).get(name), own_settings(unet).get(name)
        if theirs != ours:
            raise InputError(f"{folder}: its U-Net has {name}={theirs}, the teacher's {ours}: give a teacher of its kind.")


def check_same_scheduler(scheduler: Any, published: Any, folder: Path) -> None:
    """InputError when the published U-Net was trained to predict something else than the teacher's scheduler asks for."""
    theirs, ours = published.config.get("prediction_type", "epsilon"), scheduler.config.get("prediction_type", "epsilon")
    if theirs != ours:
        raise InputError(f"{folder}: its U-Net predicts {theirs!r}, the teacher's {ours!r}: give a teacher of its kind.")


def carried_plan(published: nn.Module, teacher: str, folder: Path) -> Plan | None:
    """The plan that a student of ours carries; InputError where it is of another teacher."""
    carried = own_settings(published).get("plan")
    if not carried:
        return None
    plan = Plan.from_dict(carried)
    if plan.teacher != teacher:
        raise InputError(f"{folder} is a student of another teacher than this one: give teacher.path=<its original>.")
    return plan


def equal_variants(unet: nn.Module, published: nn.Module, teacher: str) -> Iterator[Plan]:
    """The plans of BK-SDM's variants of `unet` whose student is of the very sizes of `published`."""
    sizes = {name: tuple(tensor.shape) for name, tensor in published.state_dict().items()}
    for variant in VARIANTS:
        try:
            plan = plan_for(unet, variant, teacher)
        except InputError:  # the variant's table does not fit this teacher
            continue
        if student_sizes(unet, plan) == sizes:
            yield plan


def student_sizes(unet: Any, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of the plan's student."""
    import torch

    with torch.device("meta"):
        student = type(unet).from_config(own_settings(unet) | plan.config_changes)
    return {name: tuple(tensor.shape) for name, tensor in student.state_dict().items()}


@dataclass
class Published(Method):
    """Prunes nothing itself: its student is the U-Net of `path`, a folder or a hub name.

    The plan holds all of the student's weights, so that the job's folder is whole; its edits are those of the plan that the
    U-Net carries (a student made here), or of the BK-SDM variant that it equals in its sizes, and none where it equals none.
    """

    path: str
    revision: str | None = None

    def plan(self, unet: nn.Module, calibration: Any, teacher: str, scores: Path | None) -> Plan:
        """The plan whose student is the published U-Net; of the calibration only the scheduler is read, where there is one."""
        folder = find_folder(self.path, self.revision, "method.path")
        document = read_index(folder)
        check_pipeline_settings(folder, document)
        index = named_parts(document)
        denoiser = denoiser_part(index)
        for part in (denoiser, "scheduler"):
            if part not in index:
                raise InputError(f"{folder} names no {part!r} in its model_index.json.")
        published = load_part(folder, denoiser, *index[denoiser], network=True)
        check_same_task(unet, published, folder)
        if calibration is not None:
            scheduler = load_part(folder, "scheduler", *index["scheduler"], network=False)
            check_same_scheduler(calibration.scheduler, scheduler, folder)
        known = carried_plan(published, teacher, folder) or next(equal_variants(unet, published, teacher), None)
        variant = known.settings.get("variant") if known else None
        return Plan(
            method="published",
            edits=known.edits if known else (),
            teacher=teacher,
            scores=known.scores if known else {},
            settings={"path": self.path, "revision": self.revision, "variant": variant},
            tensors={name: tensor.contiguous() for name, tensor in published.state_dict().items()},
            config_changes=config_changes(unet, published),
        )

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """No scores; the student by its own plan, or of equal sizes among BK-SDM's: by the configuration of `path` alone."""
        import torch

        from common.models.architectures import build, local_folder, parts_of

        folder = local_folder(self.path)
        try:
            parts = parts_of(self.path)
        except InputError:
            if folder is not None:
                raise
            return Forecast(note=f"what {self.path} holds is not known without its folder; the teacher's size is assumed")
        denoiser = denoiser_part(parts)
        if denoiser not in parts:
            raise InputError(f"{folder} names no {denoiser!r} in its model_index.json.")
        with torch.device("meta"):
            published = build(parts[denoiser])
        carried = own_settings(published).get("plan")
        known = Plan.from_dict(carried) if carried else next(equal_variants(unet, published, ""), None)
        if known is None:
            return Forecast(
                note=f"the student's sizes are not those of a BK-SDM student of this teacher; {self.path} is not counted"
            )
        return Forecast(plan=known, exact=True)
