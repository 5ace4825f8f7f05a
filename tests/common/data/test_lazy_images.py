"""Images read when asked for: equal to reading all at once, in any order, and cropped as torchvision does."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.lazy_images import LazyImages, middle_square, resized_and_cropped, subset
from common.data.splits import Files
from common.errors import InputError


@pytest.fixture
def pictures():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (20 + 3 * index, 31, 3), dtype=np.uint8) for index in range(7)]


@pytest.fixture
def lazy(tmp_path, pictures):
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    names = [f"{index}.png" for index in range(len(pictures))]
    source = Files(tmp_path, names)
    return LazyImages(source, range(len(names)), partial(middle_square, size=16), 16)


@pytest.fixture
def eager(pictures):
    squares = [np.asarray(middle_square(Image.fromarray(pixels), 16)) for pixels in pictures]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "chosen", [slice(1, 6, 2), [5, 0, 0], torch.tensor([6, 2]), range(2, 4), [], slice(3, 3), slice(None), -1, 4], ids=repr
)
def test_every_index_gives_what_the_tensor_gives(lazy, eager, chosen):
    wanted = eager[list(chosen)] if isinstance(chosen, range) else eager[chosen]
    found = lazy[chosen]
    assert found.dtype == torch.uint8 and found.is_contiguous() and torch.equal(found, wanted)


def test_it_stands_in_for_a_tensor(lazy, eager):
    assert lazy.shape == eager.shape and lazy.numel() == eager.numel() and len(lazy) == 7 and lazy.dtype == eager.dtype
    assert torch.equal(torch.stack(list(lazy)), eager)
    for size in (1, 3, 7, 9):
        pairs = list(zip(lazy.split(size), eager.split(size), strict=True))
        assert all(torch.equal(*pair) for pair in pairs)
    assert torch.equal(subset(lazy, [3, 1])[:], subset(eager, [3, 1])) and torch.equal(lazy.select([3, 1])[[1]], eager[[1]])


def test_nothing_is_read_before_it_is_asked_for(lazy, eager):
    read = []
    original = lazy.source.read
    lazy.source.read = lambda row: read.append(row) or original(row)
    part = subset(lazy, [2, 6, 4])
    assert part.shape == (3, 3, 16, 16) and not read
    assert torch.equal(part[1:], eager[[6, 4]]) and sorted(read) == [4, 6]


def test_a_file_that_went_bad_is_named(lazy, tmp_path):
    (tmp_path / "3.png").write_bytes(b"")
    assert len(lazy[[1, 2]]) == 2
    with pytest.raises(InputError, match=r"3\.png could be read before and cannot now"):
        lazy[[2, 3]]


@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (33, 32), (32, 32), (20, 90), (400, 33)])
def test_resized_and_cropped_is_resize_then_centre_crop(shape):
    """Computed as torchvision's Resize(32) and CenterCrop(32) define it: the whole image resized, then cut."""
    height, width = shape
    smooth = np.random.default_rng(1).integers(0, 255, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    picture = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)
    size = (int(32 * width / height), 32) if width > height else (32, int(32 * height / width))
    whole = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    top, left = round((size[1] - 32) / 2.0), round((size[0] - 32) / 2.0)
    found = np.asarray(resized_and_cropped(picture, 32, "bilinear"))
    assert found.shape == (32, 32, 3)
    assert np.abs(found.astype(int) - whole[top : top + 32, left : left + 32]).max() <= 2


def test_a_photo_that_lies_on_its_side_is_turned(tmp_path):
    from common.data.lazy_images import open_picture

    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    turned = np.asarray(open_picture(buffer.getvalue()))
    assert turned.shape == (16, 8, 3) and turned[:8].min() == 255 and turned[8:].max() == 0


def test_features_batches_and_latents_take_them_for_a_tensor(lazy, eager, tiny_teacher):
    from common.metrics.efficientnet import extract_features
    from common.training.batches import TensorRows

    class Means(torch.nn.Linear):
        def forward(self, images):
            return super().forward(images.float().mean((2, 3)))

    means, chosen = Means(3, 2), [4, 0, 5]
    assert torch.equal(extract_features(means, subset(lazy, chosen), 2), extract_features(means, eager[chosen], 2))
    assert torch.equal(tiny_teacher.encode_images(lazy, 4), tiny_teacher.encode_images(eager.contiguous(), 4))
    pairs = [(6, 0), (2, 1)]
    assert torch.equal(TensorRows(images=lazy).__getitems__(pairs)["images"], eager[[6, 2]])


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64), (17, 300)])
def test_images_that_are_not_square(shape):
    """As torchvision would resize and crop them: just covering 24 x 40, and the middle of that."""
    pixels = np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)
    picture, scale = Image.fromarray(pixels), max(24 / shape[0], 40 / shape[1])
    height, width = (int(scale * length + 1e-9) for length in shape)
    whole = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    top, left = round((height - 24) / 2), round((width - 40) / 2)
    found = np.asarray(resized_and_cropped(picture, 24, "bilinear", width=40)).astype(int)
    assert np.abs(found - whole[top : top + 24, left : left + 40]).max() <= 1
    assert middle_square(picture, 24, width=40).size == (40, 24)


def test_a_folder_of_images_that_are_not_square(tmp_path):
    from common.data.image_folder import load_image_folder

    for number in range(12):
        Image.new("RGB", (50, 30), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    images = load_image_folder(str(tmp_path), "train", size=16, width=32).images
    assert images.shape == (11, 3, 16, 32) == images[:].shape and images.select([1])[:].shape == (1, 3, 16, 32)
