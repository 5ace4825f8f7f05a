"""FID, KID and Inception Score over random weights, against formulas and resizing written out."""

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from tests.random_weights import write_inception

pytest.importorskip("cleanfid", reason='pip install -c constraints.txt -e ".[fid]"')

from common.metrics.inception import InceptionDistances, InceptionScore, read_statistics

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(write_inception(tmp_path_factory.mktemp("inception")))


@pytest.fixture(scope="module")
def images():
    """Two sets of six: smooth pictures of two kinds."""
    generator = torch.Generator().manual_seed(0)
    sets = [torch.rand(6, 3, side, side, generator=generator) for side in (4, 6)]
    return [(255 * torch.nn.functional.interpolate(small, 40, mode="bicubic").clamp(0, 1)).to(torch.uint8) for small in sets]


def metric(weights, mode, reference=None, kid="kid"):
    made = InceptionDistances("fid", kid, mode, weights, reference, kid_subsets=3, kid_size=6)
    made.load(CPU)
    return made


def blocks_of(weights):
    """pytorch-fid's network as clean-fid builds it, read from the file by hand."""
    from unittest import mock

    from cleanfid import inception_pytorch

    state = torch.load(f"{weights}/pt_inception-2015-12-05-6726825d.pth", weights_only=True)
    with mock.patch.object(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state):
        return inception_pytorch.InceptionV3(resize_input=False).eval(), state


def formula(a, b):
    """Heusel et al. 2017 for few features: the trace of the root of the product is the nuclear norm of A B^T / (n - 1)."""
    a, b = a.double().numpy(), b.double().numpy()
    centred = [values - values.mean(0) for values in (a, b)]
    spread = sum((values**2).sum() for values in centred)
    root = scipy.linalg.svdvals(centred[0] @ centred[1].T).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + (spread - 2 * root) / (len(a) - 1)


@torch.no_grad()
@pytest.mark.exhaustive
def test_features_of_both_modes(weights, images):
    network, _ = blocks_of(weights)
    drawn = images[0][:2]
    smooth = torch.nn.functional.interpolate(drawn.float() / 255, (299, 299), mode="bilinear", align_corners=False)
    expected = network(smooth)[0].flatten(1)  # pytorch-fid
    assert torch.allclose(metric(weights, "legacy_pytorch").rows(drawn, None), expected, rtol=1e-3, atol=1e-3 * expected.std())
    resized = [
        np.stack([np.asarray(Image.fromarray(c.astype(np.float32)).resize((299, 299), Image.BICUBIC)) for c in image.numpy()])
        for image in drawn
    ]  # clean-fid: each channel in floating point, by Pillow
    pixels = (torch.from_numpy(np.stack(resized)).clamp(0, 255) - 128) / 128
    expected = network.blocks[3](network.blocks[2](network.blocks[1](network.blocks[0](pixels)))).flatten(1)
    found = metric(weights, "clean").rows(drawn, None)
    assert found.shape == (2, 2048) and found.std() > 0
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.std())


@pytest.fixture(scope="module")
def legacy(weights, images):
    """The metric, and its features of both sets."""
    made = metric(weights, "legacy_pytorch")
    return made, *(made.rows(drawn, None) for drawn in images)


@pytest.mark.exhaustive
def test_distances(legacy):
    from cleanfid.fid import kernel_distance

    made, real, fake = legacy
    found = made.figures(fake, real, seed=0)(torch.arange(len(fake)))
    assert found["fid"] == pytest.approx(formula(real, fake), rel=1e-6)
    expected = kernel_distance(real.double().numpy(), fake.double().numpy(), num_subsets=1)  # clean-fid's
    assert found["kid"] == pytest.approx(1000 * expected, rel=1e-6)
    assert made.figures(real, real, seed=0)(torch.arange(len(real)))["fid"] == pytest.approx(0, abs=1e-6 * found["fid"])


@pytest.mark.slow
def test_statistics_in_a_file_take_the_place_of_images(weights, legacy, tmp_path):
    made, real, fake = legacy
    values = real.double().numpy()
    np.savez(tmp_path / "real_im256.npz", mu=values.mean(0), sigma=np.cov(values, rowvar=False))  # as pytorch-fid writes it
    beside = metric(weights, "legacy_pytorch", str(tmp_path / "real_im256.npz"), kid=None)
    assert made.needs_real and not beside.needs_real
    assert beside.figures(fake, None, 0)(torch.arange(len(fake)))["fid"] == pytest.approx(
        made.figures(fake, real, 0)(torch.arange(len(fake)))["fid"], rel=1e-9
    )
    with pytest.raises(ValueError, match="kid=null"):
        metric(weights, "clean", str(tmp_path / "real_im256.npz"))
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="2048 wide"):
        read_statistics(tmp_path / "other.npz")
    (tmp_path / "damaged.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="holds no mu and sigma"):
        read_statistics(tmp_path / "damaged.npz")


def tensorflow_resize(image, size):
    """Bilinear as TensorFlow 1 takes it: no half pixels, by loops over one channel."""
    height = image.shape[0]
    found = np.zeros((size, size))
    for row in range(size):
        y = row * height / size
        low, share = int(y), y - int(y)
        line = image[low] * (1 - share) + image[min(low + 1, height - 1)] * share
        for column in range(size):
            x = column * height / size
            left, part = int(x), x - int(x)
            found[row, column] = line[left] * (1 - part) + line[min(left + 1, height - 1)] * part
    return found


@torch.no_grad()
def test_inception_score(weights, images):
    made = InceptionScore("inception_score", weights, splits=2, seed=2020)
    made.load(CPU)
    drawn = torch.cat(images)[::2]
    logits = made.rows(drawn, None)
    network, state = blocks_of(weights)
    pixels = np.stack([[tensorflow_resize(channel.astype(np.float64), 299) for channel in drawn[0].numpy()]])
    features = network.blocks[3](
        network.blocks[2](network.blocks[1](network.blocks[0](torch.from_numpy((pixels - 128) / 128).float())))
    ).flatten(1)
    expected = features @ state["fc.weight"].T  # without bias
    assert torch.allclose(logits[:1], expected, rtol=1e-3, atol=1e-3 * expected.std())
    rows = (logits / logits.std()).double()
    order = np.random.RandomState(2020).permutation(len(rows))
    shares = torch.softmax(rows, 1).numpy()[order]
    parts = [shares[:3], shares[3:]]
    scores = [np.exp(np.mean([sum(p * np.log(p / part.mean(0))) for p in part])) for part in parts]
    found = made.figures(rows, None, seed=0)(torch.arange(len(rows)))
    assert found["inception_score"] == pytest.approx(np.mean(scores), rel=1e-6)
    assert found["inception_score_spread"] == pytest.approx(np.std(scores), rel=1e-6)
    with pytest.raises(ValueError, match="splits=1"):
        made.figures(rows[:1], None, seed=0)(torch.arange(len(rows[:1])))


def test_spectrograms_are_refused(weights):
    made = InceptionScore("inception_score", weights, splits=2, seed=2020)
    for each in (made, metric(weights, "clean")):
        with pytest.raises(ValueError, match="images in colour, and these have 1 channel"):
            each.rows(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None)


def test_absent_and_damaged_weights_are_told_in_one_line(tmp_path):
    from common.errors import InputError

    with pytest.raises(InputError, match="pt_inception-2015-12-05-6726825d.pth is missing: download http"):
        metric(str(tmp_path), "legacy_pytorch")
    with pytest.raises(InputError, match="is missing"):
        metric(str(tmp_path), "clean")
    for name in ("pt_inception-2015-12-05-6726825d.pth", "inception-2015-12-05.pt"):
        (tmp_path / name).write_bytes(b"cut off")
    for mode in ("legacy_pytorch", "clean"):
        with pytest.raises(InputError, match="damaged"):
            metric(str(tmp_path), mode)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    with pytest.raises(InputError, match="other weights"):
        metric(str(tmp_path), "legacy_pytorch")
