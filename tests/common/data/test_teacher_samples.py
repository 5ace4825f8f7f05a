"""A teacher's own samples as a data set: what is drawn, when, once; which prompts; what is refused."""

from contextlib import nullcontext

import pytest
import torch

from common.data.lazy_images import subset
from common.data.splits import CaptionedImages, Images
from common.data.teacher_samples import SEEDS, TeacherSamples, latents_of
from common.errors import InputError
from common.models.loading import load_teacher
from common.runtime.seeding import mix_seed

PROTOCOL = {"images": 7, "held_out": 3, "steps": 2, "guidance_scale": 2.0, "batch_size": 2, "rows_per_shard": 4, "seed": 5}


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"thing {number % 20}\n" for number in range(30)))
    return str(path)


def drawn(teacher, folder, split="train", channels=3, **changes):
    return TeacherSamples(split=split, **PROTOCOL | changes).drawn_by(teacher, folder, channels, nullcontext)


def test_samples_are_the_teachers_from_seeds_of_their_own(tiny_teacher, prompts, tmp_path):
    data = drawn(tiny_teacher, tmp_path / "cache", prompts=prompts)
    assert isinstance(data, CaptionedImages) and data.names is None and len(data) == 7
    assert not (tmp_path / "cache").exists(), "drawn before it was asked for"
    latents = data.images.latents()
    seeds = [mix_seed(5, SEEDS["train"], row) for row in range(7)]
    wanted = torch.cat(
        [tiny_teacher.sample(seeds[i : i + 2], data.captions[i : i + 2], 2, 2.0) for i in (0, 2)]
        + [tiny_teacher.sample(seeds[i : i + 2], data.captions[i : i + 2], 2, 2.0) for i in (4, 6)]
    )
    torch.testing.assert_close(latents, wanted, rtol=1e-4, atol=1e-5)
    pixels = tiny_teacher.decode_latents(latents)
    assert data.images.shape == pixels.shape and torch.equal(data.images[[6, 0]], pixels[[6, 0]])
    assert torch.equal(data.images[2], pixels[2]) and torch.equal(data.images[1:3], pixels[1:3])
    chosen = subset(data.images, [5, 1])
    assert torch.equal(latents_of(tiny_teacher, chosen), latents[[5, 1]])
    assert [len(part) for part in data.images.split(3)] == [3, 3, 1]
    other = tiny_teacher.with_parts(autoencoder=load_teacher(str(tiny_teacher.folder)).autoencoder)
    assert not torch.equal(latents_of(other, chosen), latents[[5, 1]]), "another autoencoder's latents are of the images"
    torch.testing.assert_close(latents_of(other, chosen), other.encode_images(chosen[:]))


def test_drawn_once_and_gone_on_with(tiny_teacher, prompts, tmp_path, monkeypatch, capsys):
    calls = []
    sample = type(tiny_teacher).sample

    def counted(self, seeds, *rest):
        calls.append(len(seeds))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, seeds, *rest)

    monkeypatch.setattr(type(tiny_teacher), "sample", counted)
    with pytest.raises(KeyboardInterrupt):
        drawn(tiny_teacher, tmp_path, prompts=prompts).images.latents()
    latents = drawn(tiny_teacher, tmp_path, prompts=prompts).images.latents()
    assert calls == [2, 2, 2, 2, 1]  # the shard of four that was whole is not drawn again
    again = drawn(tiny_teacher, tmp_path, prompts=prompts)
    assert torch.equal(again.images.latents(), latents) and len(calls) == 5
    drawn(tiny_teacher, tmp_path, prompts=prompts, guidance_scale=3.0).images.latents()
    assert len(calls) == 9, "another guidance scale is another set"
    folder = next(path for path in tmp_path.glob("teacher-samples-*"))
    from safetensors.torch import load_file

    kept = [load_file(path)["guidance_scale"] for path in sorted(folder.glob("*.safetensors"))]
    assert torch.cat(kept).unique().numel() == 1 and sum(map(len, kept)) == 7


def test_every_tenth_different_prompt_is_held_out(tiny_teacher, prompts, tmp_path):
    train, test = (drawn(tiny_teacher, tmp_path, split, prompts=prompts).captions for split in ("train", "test"))
    assert test == ["thing 9", "thing 19", "thing 9"]
    assert train == [f"thing {number}" for number in range(7)]
    many = drawn(tiny_teacher, tmp_path, prompts=prompts, images=40).captions
    assert len(many) == 40 and set(many) == {f"thing {number}" for number in range(20)} - set(test)


def test_unconditional(tiny_uig_teacher_folder, tmp_path):
    teacher = load_teacher(str(tiny_uig_teacher_folder))
    data = drawn(teacher, tmp_path, prompts=None)
    assert type(data) is Images and not hasattr(data, "captions") and data.images[:].shape == data.images.shape
    assert drawn(teacher, tmp_path, prompts=None, channels=1).images[0].shape[0] == 1


@pytest.mark.parametrize("lines", ["a cat\n" * 50, "a cat\na dog\n", "\n\n"])
def test_prompts_that_teach_little_are_refused(tiny_teacher, tmp_path, lines):
    path = tmp_path / "few.txt"
    path.write_text(lines)
    with pytest.raises(InputError, match=r"task\.data\.prompts=.*few\.txt holds (1 different|2 different|no) prompt"):
        drawn(tiny_teacher, tmp_path, prompts=str(path))


def test_a_file_of_prompts_that_cannot_be_read_is_named_by_its_setting(tmp_path):
    (tmp_path / "wide.txt").write_bytes("a cat\n".encode("utf-16"))
    for name, told in (("nothere.txt", "cannot be read: it is missing"), ("wide.txt", "is no UTF-8 text")):
        with pytest.raises(InputError, match=f"task.data.prompts: .*{name} {told}"):
            _ = TeacherSamples(split="train", **PROTOCOL, prompts=str(tmp_path / name)).captions


def test_prompts_and_teacher_must_fit(tiny_teacher, tiny_uig_teacher_folder, prompts, tmp_path):
    with pytest.raises(InputError, match=r"task\.data\.prompts=None: the teacher .* takes prompts; give a file of prompts"):
        drawn(tiny_teacher, tmp_path, prompts=None)
    with pytest.raises(InputError, match="takes no prompts; give null"):
        drawn(load_teacher(str(tiny_uig_teacher_folder)), tmp_path, prompts=prompts)


def test_a_full_disk_is_told_before_the_first_sample(tiny_teacher, prompts, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    data = drawn(tiny_teacher, tmp_path, prompts=prompts)
    with pytest.raises(InputError, match="0.0 GiB left, and the teacher's samples take"):
        data.images.latents()
    assert not list(tmp_path.glob("teacher-samples-*/*.safetensors"))


def test_files_are_verified_once_a_job(tiny_teacher, prompts, tmp_path, monkeypatch):
    from common.data import shards

    checked = []
    sound = shards.Shard.sound
    monkeypatch.setattr(shards.Shard, "sound", lambda shard: checked.append(shard) or sound(shard))
    drawn(tiny_teacher, tmp_path, prompts=prompts).images.latents()
    checked.clear()
    images = drawn(tiny_teacher, tmp_path, prompts=prompts).images
    for part in images.split(2):
        part.latents()
    assert len(checked) == 2, "two files, however many batches"
