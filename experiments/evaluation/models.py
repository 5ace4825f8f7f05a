"""The models that a job compares."""

from dataclasses import dataclass

from common.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Models:
    """Whole pipelines: the teacher, the teacher with its pruned parts, and that after training, where it is trained."""

    teacher: LatentDiffusion
    pruned: LatentDiffusion
    distilled: LatentDiffusion | None = None

    @property
    def student(self) -> LatentDiffusion:
        """What the job ends with."""
        return self.pruned if self.distilled is None else self.distilled

    def by_name(self) -> dict[str, LatentDiffusion]:
        """Those there are, by the names that they have in a result row; the student is the last."""
        named = {"teacher": self.teacher, "pruned": self.pruned, "distilled": self.distilled}
        return {name: model for name, model in named.items() if model is not None}
