"""The contract of a method: what a job asks of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.plan import Plan

if TYPE_CHECKING:
    import torch

    from common.pruning.pruning_callback import PruningCallback


class Method:
    """Base class of all methods: decides what goes from a denoiser, and may act while the student is trained.

    Hydra makes a method of its group of settings (conf/method/<name>.yaml), so the constructor's signature is the schema of
    the settings, checked before any work (common.settings). Only `plan` must be defined; everything else has a default.
    A method reads the teacher and never changes it.

    pruned_parts: the parts of the pipeline that it prunes, of "denoiser" and "autoencoder". prunes_in_training: whether its
    plans are but the beginning, so that a part without training steps would stay unpruned. budget: bounds of what the student
    takes (common.pruning.budget), of a method that can keep to them, and then `knob` names the setting, from 0 to 1, by which
    more of the denoiser goes; a job searches it.
    """

    pruned_parts: Sequence[str] = ("denoiser",)
    prunes_in_training: bool = False
    budget: Any = None
    knob: ClassVar[str] = ""

    def plan(self, unet: nn.Module, calibration: Any, teacher: str, scores: Path | None) -> Plan:
        """What to remove from the denoiser `unet`.

        Args:
            unet: a diffusers U-Net with the teacher's weights, on the job's device.
            calibration: the fixed captions, noise and training rows that scores are computed on
                (common.scoring.calibration.Calibration).
            teacher: the fingerprint of the teacher's weights; a plan carries it.
            scores: the folder where scores are kept, so that other jobs find them and a killed one goes on; None to keep none.

        Raises:
            InputError: for settings that do not fit this U-Net, naming setting and value.
        """
        raise NotImplementedError

    def autoencoder_plan(self, autoencoder: nn.Module, images: "torch.Tensor", teacher: str) -> Plan:
        """What to remove from the autoencoder, where `pruned_parts` names it.

        images: uint8 (count, channels, height, width) of training data.
        """
        raise NotImplementedError

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """What scoring will take, and the student that is to be expected, by the shapes of `unet` on the meta device alone.

        A job asks before it begins: InputError for what no plan could be made of, such as a k that is out of reach.
        """
        return Forecast(note="the method does not tell what scoring and student take; the teacher's size is assumed")

    def training_callbacks(self, network: nn.Module, plan: Plan) -> "list[PruningCallback]":
        """What acts while `network`, pruned by `plan`, is trained; asked for each of `pruned_parts` that is trained."""
        return []
