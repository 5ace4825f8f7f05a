"""What a method tells of a job before any weight is loaded, for the plan of its cost (experiments/dry_run/dry_run.py).

common.pruning.method.Method.forecast returns it.
"""

from dataclasses import dataclass

from common.pruning.plan import Plan


@dataclass(frozen=True)
class CalibrationSize:
    """How much a calibration set holds: common.scoring.calibration.Calibration without its tensors.

    rows: of training data. timesteps: of the noise schedule. captioned: whether there are conditions to guide by.
    """

    conditions: int
    samples: int
    steps: int
    guidance_scale: float
    rows: int
    timesteps: int
    captioned: bool

    def passes(self, guidance_scale: float) -> int:
        """Rows of a forward pass for each sample: 2 under classifier-free guidance."""
        return 2 if self.captioned and guidance_scale > 1 else 1

    @property
    def edited_latents(self) -> int:
        """Samples through the denoiser for one denoising of the whole set."""
        return self.conditions * self.samples * self.steps * self.passes(self.guidance_scale)


@dataclass(frozen=True)
class Forecast:
    """What scoring takes, and what student comes of it.

    forward, backward: samples that pass through the teacher's denoiser in scoring, at most, and those that pass back.
    batch: samples in one forward pass of it. plan: the student's on the meta device, exact, or else as one of that size may
    be; None where not even its size is known. per_parameter: bytes that the method keeps for each parameter in training.
    note: what the numbers leave open, one sentence.
    """

    forward: int = 0
    backward: int = 0
    batch: int = 0
    plan: Plan | None = None
    exact: bool = False
    per_parameter: int = 0
    note: str = ""
