"""Metrics over Inception-v3: FID and KID with clean-fid's networks and resizing, the Inception Score with torch-fidelity's.

Published weights are found by their file names, in a folder or in torch.hub's cache, where they are downloaded once.
"""

from pathlib import Path
from typing import Literal
from unittest import mock

import numpy as np
import torch

from common.errors import InputError, first_line
from common.metrics.distances import check_pair, frechet_of, kernel_distance_of_subsets
from common.metrics.jackknife import Figures
from common.models.metric_weights import weights_file
from common.settings import AtLeastOne, Seed

PYTORCH = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
TORCHSCRIPT = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
Mode = Literal[
    "clean", "legacy_pytorch"
]  # the first needs TORCHSCRIPT, the second PYTORCH; torch-fidelity's weights are PYTORCH


def inception_file(url: str, folder: str | None) -> Path:
    """The file of that address in `folder`, or without one in torch.hub's cache."""
    return weights_file(url, None if folder is None else Path(folder) / url.rpartition("/")[2])


def inception_state(folder: str | None) -> tuple[Path, dict[str, torch.Tensor]]:
    """File and weights of the PyTorch port, read without running any code in it."""
    path = inception_file(PYTORCH, folder)
    try:
        return path, torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own kind for a damaged file
        raise InputError(f"{path} is damaged ({first_line(error)}): download {PYTORCH} again.") from error


def require(package: str) -> None:
    """InputError unless the optional package can be imported."""
    from importlib import import_module

    try:
        import_module(package)
    except ImportError as error:
        raise InputError(f'{package} is not installed: pip install -c constraints.txt -e ".[fid]"') from error


def check_colour(name: str, images: torch.Tensor) -> None:
    """InputError for images of another number of channels than Inception takes."""
    if images.shape[1] != 3:
        raise InputError(f"{name} is of images in colour, and these have {images.shape[1]} channel(s).")


class InceptionDistances:
    """FID (Heusel et al. 2017) and KID (Binkowski et al. 2018) of uint8 images (count, 3, height, width), by clean-fid.

    fid, kid: the names under which they are given; kid=None leaves it out. mode: clean-fid's "clean" or "legacy_pytorch",
    which is pytorch-fid's. weights: a folder with the weights under their published names, or None: torch.hub's cache.
    reference: an .npz file with `mu` and `sigma` of real images (pytorch-fid's --save-stats), from which there is no KID;
    or None: images of the task's data set.
    """

    def __init__(
        self,
        fid: str,
        kid: str | None,
        mode: Mode,
        weights: str | None,
        reference: str | None,
        kid_subsets: AtLeastOne,
        kid_size: AtLeastOne,
    ):
        if reference is not None and kid is not None:
            raise InputError(f"{kid}: statistics in a file have no features to take a kernel distance from; give kid=null.")
        self.fid, self.kid, self.mode, self.weights, self.reference = fid, kid, mode, weights, reference
        self.kid_subsets, self.kid_size = kid_subsets, kid_size

    @property
    def needs_real(self) -> bool:
        return self.reference is None

    def load(self, device: torch.device) -> None:
        """The network; InputError without clean-fid, its weights or the statistics."""
        require("cleanfid")
        from cleanfid import inception_pytorch
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        self.statistics = None if self.reference is None else read_statistics(Path(self.reference))
        self.device, self.resize = device, build_resizer(self.mode)
        if self.mode == "clean":
            path = inception_file(TORCHSCRIPT, self.weights)
            try:
                network: torch.nn.Module = InceptionV3W(str(path.parent), download=False)
            except RuntimeError as error:
                raise InputError(f"{path} is damaged ({first_line(error)}): download {TORCHSCRIPT} again.") from error
        else:
            path, state = inception_state(self.weights)
            try:
                with mock.patch.object(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state):
                    network = inception_pytorch.InceptionV3(resize_input=False)
            except RuntimeError as error:
                raise InputError(f"{path} holds other weights than Inception's: {first_line(error)}") from error
        self.network = network.to(device).eval()

    @torch.no_grad()
    def rows(self, images: torch.Tensor, captions: list[str] | None) -> torch.Tensor:
        """Features (count, 2048)."""
        check_colour(self.fid, images)
        resized = np.stack([self.resize(image) for image in images.permute(0, 2, 3, 1).numpy()])
        pixels = torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous().to(self.device)  # 299 pixels, in [0, 255]
        if self.mode == "clean":
            return self.network(pixels).float().cpu()
        return self.network(pixels / 255)[0].flatten(1).float().cpu()

    def figures(self, rows: torch.Tensor, real: torch.Tensor | None, seed: int) -> Figures:
        """The distances of features to real ones, or to the statistics; kid x1000 with its spread over subsets."""
        if real is not None:
            check_pair(real, rows)
        there = self.statistics if real is None else (real.double().mean(0), torch.cov(real.double().T))
        distance = frechet_of(*there, rows)

        def figures(kept: torch.Tensor) -> dict[str, float]:
            found = {self.fid: distance(kept)}
            if self.kid is not None and real is not None:
                subsets = (self.kid_subsets, self.kid_size, seed)
                mean, spread = kernel_distance_of_subsets(real, rows[kept], *subsets)
                found |= {self.kid: 1000 * mean, f"{self.kid}_spread": 1000 * spread}
            return found

        return figures


class InceptionScore:
    """Inception Score (Salimans et al. 2016) as torch-fidelity takes it: logits without bias, shuffled, over `splits` parts.

    name: under which it is given. weights: as of InceptionDistances. seed: of the shuffling.
    """

    needs_real = False

    def __init__(self, name: str, weights: str | None, splits: AtLeastOne, seed: Seed):
        self.name, self.weights, self.splits, self.seed = name, weights, splits, seed

    def load(self, device: torch.device) -> None:
        """The network; InputError without torch-fidelity or its weights."""
        require("torch_fidelity")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path, _ = inception_state(self.weights)  # torch-fidelity would run code that a file holds
        try:
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["logits_unbiased"], str(path))
        except RuntimeError as error:
            raise InputError(f"{path} holds other weights than Inception's: {first_line(error)}") from error
        self.network, self.device = network.to(device), device

    @torch.no_grad()
    def rows(self, images: torch.Tensor, captions: list[str] | None) -> torch.Tensor:
        """Logits (count, 1008)."""
        check_colour(self.name, images)
        return self.network(images.to(self.device))[0].float().cpu()

    def figures(self, rows: torch.Tensor, real: torch.Tensor | None, seed: int) -> Figures:
        """Mean and standard deviation over the parts."""
        from torch_fidelity.metric_isc import isc_features_to_metric

        if len(rows) < self.splits:
            raise InputError(f"{self.name}: {len(rows)} images do not fill {self.splits} parts; give splits={len(rows)}.")

        def figures(kept: torch.Tensor) -> dict[str, float]:
            splits = min(self.splits, len(kept))
            found = isc_features_to_metric(rows[kept], splits=splits, shuffle=True, rng_seed=self.seed)
            return {self.name: found["inception_score_mean"], f"{self.name}_spread": found["inception_score_std"]}

        return figures


def read_statistics(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """`mu` (2048) and `sigma` (2048, 2048) of an .npz file; InputError without it, InputError where it holds others."""
    if not path.is_file():
        raise InputError(f"{path} is missing: the reference statistics (.npz with mu and sigma) belong there.")
    try:
        with np.load(path) as file:
            mean, covariance = (torch.from_numpy(file[name].astype(np.float64)) for name in ("mu", "sigma"))
    except Exception as error:  # zip, numpy and a missing name each raise their own kind
        raise InputError(f"{path} holds no mu and sigma: {first_line(error)}") from error
    if mean.shape != (2048,) or covariance.shape != (2048, 2048):
        given = f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}"
        raise InputError(f"{path} holds {given}; over Inception they are 2048 wide.")
    return mean, covariance
