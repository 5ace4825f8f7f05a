"""The papers' metrics of whole jobs: measured, left out without losing the run, and added to a finished one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import InputError
from common.metrics.clip_scores import ClipScore
from common.runtime.seeding import SharedNoise
from experiments.evaluation.paper_metrics import lacking, metric_settings, real_rows, sample_rows
from experiments.evaluation.samples import CAPTIONS_OF_SAMPLES, captions_of, sampled_batches
from experiments.shared.job import Job
from experiments.shared.prompts import Prompts
from experiments.shared.tensor_cache import load_tensors
from tests.commands import run
from tests.common.metrics.test_external import SCRIPT, command
from tests.random_weights import write_clip, write_inception
from tests.small_jobs import job, the_row
from tests.test_conf import compose_config

QUICK = ["evaluation.images=4", "evaluation.reference_images=6", "evaluation.batch_size=2", "distill=none"]


def untrained(teacher, outputs, *more):
    """The arguments of a job without training."""
    return [word for word in job("t2i", teacher, outputs, *QUICK, *more, method="bk_sdm") if not word.startswith("distill.")]


def metrics_job(teacher, outputs, *more):
    done = run(*untrained(teacher, outputs, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    return done, *the_row(outputs)


def kept(outputs, folder, who):
    (teacher,) = (outputs / "cache").glob("samples-*")
    where = teacher if who == "teacher" else folder / "samples" / who
    return torch.cat([load_tensors(path)["images"] for path in sorted(where.glob("*.safetensors"))])


@pytest.mark.exhaustive
def test_scores_of_another_environment_are_in_the_row(tiny_teacher_folder, tmp_path):
    words = ["metrics=[external]", f'metrics.external.command="{command(tmp_path, SCRIPT)}"']
    words.append("metrics.external.scores=[brightness,letters]")
    done, folder, row = metrics_job(tiny_teacher_folder, tmp_path / "out", *words)
    captions = Job(compose_config("config", *untrained("somewhere", "out")[1:])).prompts.captions
    for who in ("teacher", "pruned"):
        images = kept(tmp_path / "out", folder, who)
        assert row["models"][who]["brightness"] == pytest.approx(images[:, 0, 0, 0].double().mean().item())
        assert row["models"][who]["letters"] == pytest.approx(sum(map(len, captions)) / len(captions))
    assert "brightness" in done.stdout
    other = ["metrics=[external]", "metrics.external.command=nowhere/x", "metrics.external.scores=[other]"]
    done, _, row = metrics_job(tiny_teacher_folder, tmp_path / "out", *other)
    assert "external is left out: metrics.external.command: there is no nowhere/x" in done.stderr
    assert row["models"]["teacher"]["brightness"] and "other" not in row["models"]["teacher"]


@pytest.mark.exhaustive
def test_metrics_are_added_to_a_finished_job_and_what_is_missing_does_not_lose_them(tiny_teacher_folder, tmp_path):
    """CLIP's score is there, PickScore's weights are absent at first; the job's samples are drawn once."""
    clip, later, outputs = write_clip(tmp_path / "clip"), tmp_path / "later", tmp_path / "out"
    _, folder, plain = metrics_job(tiny_teacher_folder, outputs)
    samples = {path: path.stat().st_mtime_ns for path in outputs.rglob("*.safetensors")}
    assert "metrics" not in plain["protocol"] and "metrics_missing" not in plain

    scores = ["metrics=[clip_score,pickscore]", f"metrics.clip_score.model={clip}"]
    scores += [f"metrics.pickscore.model={later}", f"metrics.pickscore.processor={clip}"]
    done, _, row = metrics_job(tiny_teacher_folder, outputs, *scores)
    told = [line for line in done.stderr.splitlines() if line.startswith("pickscore is left out: ")]
    assert len(told) == 1 and f"{later} is missing: give a folder" in told[0]
    assert list(row["metrics_missing"]) == ["pickscore"] and "no pickscore: " in done.stdout
    assert set(row["protocol"]["metrics"]) == {"clip_score"} and "pickscore" not in row["models"]["teacher"]
    assert "CLIP" in done.stdout and "images as they were drawn" in " ".join(done.stdout.split())
    captions = Job(compose_config("config", *untrained("somewhere", "out")[1:])).prompts.captions
    metric = ClipScore("clip_score", str(clip), None, str(clip), False, 32)
    metric.load(torch.device("cpu"))
    for who in ("teacher", "pruned"):
        expected = metric.rows(kept(outputs, folder, who), captions).mean().item()
        assert row["models"][who].pop("clip_score") == pytest.approx(expected, abs=1e-6)
    assert (row["models"], row["settings"]) == (plain["models"], plain["settings"])

    write_clip(later)
    again, _, added = metrics_job(tiny_teacher_folder, outputs, *scores)
    assert "pickscore: teacher" in again.stderr and "clip_score: teacher" not in again.stderr
    assert "metrics_missing" not in added and set(added["protocol"]["metrics"]) == {"clip_score", "pickscore"}
    scale = metric.network.logit_scale.exp().item()
    assert added["models"]["pruned"]["pickscore"] == pytest.approx(scale * added["models"]["pruned"]["clip_score"], abs=1e-5)
    assert samples == {path: path.stat().st_mtime_ns for path in samples}


@pytest.mark.exhaustive
def test_bk_sdm_s_protocol_as_a_job(tiny_teacher_folder, tmp_path):
    """FID, IS and CLIP score over JPEG files of another size, against statistics in a file; by its scheduler and seeds."""
    pytest.importorskip("cleanfid")
    from common.metrics.inception import InceptionDistances
    from common.metrics.jpeg_round_trip import through_files

    weights, clip, outputs = write_inception(tmp_path / "inception"), write_clip(tmp_path / "clip"), tmp_path / "out"
    np.savez(tmp_path / "real.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    own = ["metrics=bk_sdm", "saved_images.size=32", "evaluation.steps=3", f"metrics.clip_score.model={clip}"]
    own += [f"metrics.fid.weights={weights}", f"metrics.inception_score.weights={weights}", "metrics.inception_score.splits=2"]
    own += [f"metrics.fid.reference={tmp_path / 'real.npz'}"]
    done, folder, row = metrics_job(tiny_teacher_folder, outputs, *own)
    protocol = row["protocol"]
    assert protocol["scheduler"] == {"name": "PNDM", "skip_prk_steps": True} and protocol["seeds"].startswith("one generator")
    assert protocol["seed"] == 1234 and protocol["guidance_scale"] == 7.5
    assert protocol["metrics"]["fid"]["saved_images"] == {"quality": 75, "size": 32, "filter": "bicubic"}
    printed = " ".join(done.stdout.split())
    assert "JPEG files of quality 75, resized to 32 (bicubic)" in printed and "scheduler: PNDM" in printed
    metric = InceptionDistances("fid", None, "legacy_pytorch", str(weights), str(tmp_path / "real.npz"), 1, 4)
    metric.load(torch.device("cpu"))
    seen = through_files(kept(outputs, folder, "pruned"), protocol["metrics"]["fid"]["saved_images"])
    rows = metric.rows(seen, None).double()
    covariance = np.linalg.svd((rows - rows.mean(0)).numpy(), compute_uv=False) / np.sqrt(len(rows) - 1)
    expected = rows.mean(0).square().sum().item() + ((covariance - 1) ** 2).sum() + 2048 - len(covariance)
    assert row["models"]["pruned"]["fid"] == pytest.approx(expected, rel=1e-4)
    assert row["models"]["pruned"]["inception_score"] >= 1 and -1 < row["models"]["pruned"]["clip_score"] < 1
    assert row["models"]["teacher"]["fid"] != row["models"]["pruned"]["fid"]


def test_one_shared_generator_is_a_loop_over_diffusers_pipeline(tiny_teacher_folder, tiny_teacher, tmp_path):
    """As BK-SDM's generate.py: one generator, the captions one after the other, PNDM; in batches, and resumed in the middle."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    captions = [f"thing {number}" for number in range(5)]
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_teacher_folder, safety_checker=None)
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1234)
    options = {"num_inference_steps": 4, "generator": generator, "output_type": "latent"}  # guidance: the pipeline's default
    expected = torch.cat([pipeline(caption, **options).images for caption in captions])
    protocol = {"steps": 4, "guidance_scale": 7.5, "batch_size": 2, "seed": 1234, "seeds": "shared"}
    scheduler = "evaluation.scheduler={name: PNDM, skip_prk_steps: true}"
    job_of_it = Job(compose_config("config", scheduler, *(f"evaluation.{name}={value}" for name, value in protocol.items())))
    extractor = torch.nn.Conv2d(3, 1, 1)
    extractor.forward = lambda images: images.float().mean((2, 3))

    def drawn(job):
        batches = sampled_batches(job, tiny_teacher, captions, extractor, "teacher", tmp_path)
        return torch.cat([samples["latents"] for _, samples in batches])

    assert torch.allclose(drawn(job_of_it), expected, atol=1e-4)
    (tmp_path / "000002.safetensors").unlink()
    in_less_memory = job_of_it.with_evaluation(micro_batch_size=1)
    assert torch.allclose(drawn(in_less_memory), expected, atol=1e-4)
    assert not torch.allclose(expected[0], expected[1], atol=0.1)


def test_shared_noise_is_one_stream():
    generator = torch.Generator().manual_seed(3)
    expected = torch.stack([torch.randn(4, 2, 2, generator=generator) for _ in range(5)])
    noise = SharedNoise(3)
    assert torch.equal(noise([0, 1], (4, 2, 2)), expected[:2])
    assert torch.equal(noise([3, 4], (4, 2, 2)), expected[3:]) and torch.equal(noise([1], (4, 2, 2)), expected[1:2])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluation.seeds=global", "evaluation.seeds='global' is none of per_sample, shared"),
        ("evaluation.scheduler={name: Fast}", "diffusers has no FastScheduler"),
        ("metrics.fid.mode=sharp", "is none of clean, legacy_pytorch"),
        ("saved_images={quality: 75, size: 32, filter: cubic}", "saved_images.filter='cubic' is none of nearest, "),
        (
            "saved_images={quality: 0, size: null, filter: bicubic}",
            "saved_images.quality=0: a whole number of at least 1 and up to 100",
        ),
    ],
)
def test_bad_settings(tiny_teacher_folder, tmp_path, override, expected):
    done = run(*untrained(tiny_teacher_folder, tmp_path, "metrics=[fid]", override))
    assert done.returncode == 2 and expected in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr


def fid_job(*overrides):
    return Job(compose_config("config", "metrics=[fid]", *overrides))


def test_real_rows_are_computed_once(tmp_path):
    seen = []

    class Means:
        def rows(self, images, captions):
            seen.append(len(images))
            return images.float().mean((2, 3))

    protocol = ["evaluation.images=4", "evaluation.reference_images=6", "task.data.limit=20", f"outputs={tmp_path}"]
    first, second = (real_rows(fid_job(*protocol), "fid", Means()) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (6, 3) and seen == [6]
    changed = fid_job(*protocol, "saved_images={quality: 10, size: 32, filter: bicubic}")
    assert not torch.equal(real_rows(changed, "fid", Means()), first) and seen == [6, 6]


def test_real_rows_follow_the_files(tmp_path):
    from PIL import Image

    class Means:
        def rows(self, images, captions):
            return images.float().mean((2, 3))

    (tmp_path / "images").mkdir()
    for index in range(20):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / "images" / f"{index:02d}.bmp")
    own = ["task=uig", "task/data=image_folder", f"task.data.folder={tmp_path / 'images'}", "task.data.size=16"]
    own += ["evaluation.images=4", "evaluation.reference_images=20", f"outputs={tmp_path / 'outputs'}"]
    first = real_rows(fid_job(*own), "fid", Means())
    for index in range(20):
        Image.new("RGB", (15, 15), (100 + index, 0, 0)).save(tmp_path / "images" / f"{index:02d}.bmp")
    assert sorted(first[:, 0].tolist()) == [index for index in range(20) if index % 10 != 9]  # all of the split, none held back
    assert torch.allclose(real_rows(fid_job(*own), "fid", Means()), first + torch.tensor([100.0, 0, 0]))


class Counts:
    """A metric that keeps what it has seen."""

    def __init__(self):
        self.seen = []

    def rows(self, images, captions):
        self.seen.append((len(images), captions))
        return images.float().mean((1, 2, 3))[:, None]


def written_samples(folder, captions=("a cat", "a dog", "a cow")):
    """Three samples in batches of two, and the job that they are of."""
    from safetensors.torch import save_file

    for start, count in ((0, 2), (2, 1)):
        images = torch.arange(start, start + count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        save_file({"images": images.contiguous()}, folder / f"{start:06d}.safetensors")
    return captioned_job(captions, "metrics=[clip_score]")


def captioned_job(captions, *overrides):
    job = Job(compose_config("config", "evaluation.batch_size=2", *overrides))
    job.prompts = Prompts(list(captions))
    return job


def test_rows_of_samples_are_computed_once_and_an_interrupted_measurement_goes_on(tmp_path):
    job, captions = written_samples(tmp_path), ["a cat", "a dog", "a cow"]
    metric = Counts()
    rows = sample_rows(job, "clip_score", metric, "teacher", tmp_path)
    assert rows.flatten().tolist() == [0, 1, 2] and metric.seen == [(2, captions[:2]), (1, captions[2:])]
    (last,) = tmp_path.glob("*/000002.safetensors")
    last.unlink()
    assert torch.equal(sample_rows(job, "clip_score", metric, "teacher", tmp_path), rows)
    assert metric.seen[2:] == [(1, captions[2:])]
    changed = captioned_job(captions, "metrics=[clip_score]", "metrics.clip_score.model=other")
    assert torch.equal(sample_rows(changed, "clip_score", metric, "teacher", tmp_path), rows)
    assert len(metric.seen) == 5  # another network: all anew


def test_a_metric_s_rows_follow_the_content_of_its_weights(tmp_path):
    """Published weights in a folder, replaced by others of the same name and size; and moved."""
    (tmp_path / "samples").mkdir()
    written_samples(tmp_path / "samples")
    weights = tmp_path / "weights" / "inception.pth"
    weights.parent.mkdir()

    def measured(folder):
        job = captioned_job([""] * 3, "metrics=[fid]", f"metrics.fid.weights={folder}")
        metric = Counts()
        sample_rows(job, "fid", metric, "teacher", tmp_path / "samples")
        row = {"protocol": {"metrics": metric_settings(job.settings)}}
        return bool(metric.seen), job.settings, row

    weights.write_bytes(b"weights")
    computed, settings, row = measured(weights.parent)
    assert computed and not lacking(settings, row)
    assert not measured(weights.parent)[0]
    moved = Path(shutil.copytree(weights.parent, tmp_path / "moved"))
    computed, elsewhere, _ = measured(moved)
    assert not computed and not lacking(elsewhere, row)
    weights.write_bytes(b"WEIGHTS")
    computed, settings, _ = measured(weights.parent)
    assert computed and lacking(settings, row) == ["fid"]


def test_samples_that_are_gone(tmp_path):
    job = written_samples(tmp_path, [""] * 3)
    (tmp_path / "000002.safetensors").unlink()
    with pytest.raises(InputError, match=r"000002.safetensors does not hold 1 samples; delete"):
        sample_rows(job, "clip_score", Counts(), "teacher", tmp_path)


def test_samples_of_other_captions_are_not_scored(tmp_path):
    captions = ["a cat", "a dog", "a cow"]
    job = written_samples(tmp_path)
    (tmp_path / CAPTIONS_OF_SAMPLES).write_bytes(captions_of(tmp_path, captions))
    assert len(sample_rows(job, "clip_score", Counts(), "teacher", tmp_path)) == 3
    with pytest.raises(InputError, match="samples of other captions"):
        sample_rows(
            captioned_job(["a cat", "a dog", "a pig"], "metrics=[clip_score]"), "clip_score", Counts(), "teacher", tmp_path
        )
