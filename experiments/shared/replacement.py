"""What may take the place of a transformer's removed blocks, in a job."""

from hydra.utils import get_object
from torch import nn

from baselines.published import Published
from common.errors import InputError
from common.scoring.linear_maps import check_has_streams
from experiments.shared.settings import Settings


def check_replacement(settings: Settings, denoiser: nn.Module) -> None:
    """InputError where linear maps cannot stand for what is removed: of a U-Net, within a budget, in blocks trained alone, from
    random weights, and of a student that is there.
    """
    if settings.replacement != "linear":
        return
    check_has_streams(denoiser)
    if settings.method.get("budget") is not None:
        raise InputError("replacement=linear adds parameters, which method.budget does not know of; give method.ratio.")
    if settings.init == "scratch":
        raise InputError(
            "replacement=linear fits maps to the teacher, and init=scratch keeps nothing of it; take one of the two."
        )
    if issubclass(get_object(settings.method["_target_"]), Published):
        raise InputError("replacement=linear: a published student is measured as it is; take replacement=identity.")
    if settings.distill.steps and settings.distill.local_weight:
        raise InputError(
            "replacement=linear: distill.local_weight trains blocks towards what came out of removed ones, which the maps now "
            "stand for; take one of the two."
        )
