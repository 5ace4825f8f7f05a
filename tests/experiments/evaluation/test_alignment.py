"""Caption alignment: real images of the right names score above real images of other names."""

from pathlib import Path

import hydra
import pytest
import torch

from experiments.evaluation.alignment import CaptionAlignment
from experiments.shared.job import Job

CONF = str(Path(__file__).resolve().parents[3] / "conf")


class Autoencoderless:
    """Stands in for a teacher: its "latents" are images already."""

    device = torch.device("cpu")

    def decode_latents(self, latents, batch_size):
        return latents.to(torch.uint8)


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_the_right_names_align_best(tmp_path, split):
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        cfg = hydra.compose(
            "config", ["task.data.limit=12", f"evaluation.split={split}", "evaluation.images=4", f"outputs={tmp_path}"]
        )
    job = Job(cfg)
    data = job.data("train")
    names = data.names[:12]
    alignment = CaptionAlignment(job, Autoencoderless(), names)
    images = torch.stack([data.images[[index for index, other in enumerate(data.names) if other == name]] for name in names])
    everything = slice(0, 12)
    right, wrong = alignment(images.float(), everything), alignment(images.roll(1, 0).float(), everything)
    assert alignment(images[4:6].float(), slice(4, 6)) > 0.5
    assert right > 0.5 > 0.1 > wrong
