"""A student as one file in the layout of Stable Diffusion's own code: written, read back by diffusers, and compared."""

from pathlib import Path
from typing import Any

import torch

from common.diffusion.sampling import predict
from common.errors import InputError
from common.export.onnx_openvino import DTYPES
from common.export.original_layout import write_single_file
from common.models.latent_diffusion import LatentDiffusion
from common.models.loading import read_index
from common.models.single_file import whole_networks
from experiments.exporting.exported_formats import given_noise, relative

FILE = "single_file/model.safetensors"


@torch.no_grad()
def export_one_file(teacher: LatentDiffusion, folder: Path, dtype: str, seed: int) -> dict[str, Any]:
    """Writes FILE below the pipeline folder, and tells its size and how far what diffusers reads of it is from the student.

    InputError for a student that the layout cannot hold, and where diffusers does not read every weight as it was.
    """
    import diffusers

    path = folder / FILE
    write_single_file(teacher, path, DTYPES[dtype])
    kind = getattr(diffusers, read_index(folder)["_class_name"])
    diffusers.utils.logging.disable_progress_bar()
    with whole_networks(path):
        read = kind.from_single_file(str(path), config=str(folder), local_files_only=True, low_cpu_mem_usage=False)
    written = {"unet": teacher.denoiser, "vae": teacher.autoencoder}
    written |= {"text_encoder": teacher.text_encoder, "text_encoder_2": teacher.text_encoder_2}
    for name, network in written.items():
        if network is None:
            continue
        theirs = getattr(read, name).state_dict()
        for key, weight in network.state_dict().items():
            if not torch.equal(theirs[key].to(DTYPES[dtype]), weight.cpu().to(DTYPES[dtype])):
                raise InputError(
                    f"{path.name}: diffusers reads {name}.{key} otherwise than it was written; nothing was exported."
                )
    noise, conditions, _ = given_noise(teacher, 2, seed)
    timesteps = torch.full((2,), teacher.scheduler.config.num_train_timesteps // 2)
    ours = predict(teacher.denoiser, noise, timesteps, conditions)
    found = relative(predict(read.unet.float(), noise, timesteps, conditions), ours)
    return {"file": FILE, "dtype": dtype, "bytes": path.stat().st_size, "pipeline": kind.__name__, **found}
