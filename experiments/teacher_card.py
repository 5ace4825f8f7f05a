"""Measures a shipped teacher and writes its card: README.md, card.json and samples.webp in the teacher's folder.

python -m experiments.teacher_card task=t2i evaluation.images=512
python -m experiments.teacher_card task=uig evaluation.images=512
python -m experiments.teacher_card task=uag evaluation.images=512
"""

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from common.runtime.files import ROOT
from common.runtime.progress import under_way
from common.shown_text import code_span, markdown_text
from experiments.reporting.paper_table import markdown
from experiments.shared.command_line import one_line_composition_errors, one_line_errors
from experiments.shared.job_id import register_job_folder

register_job_folder()

if TYPE_CHECKING:
    from experiments.shared.job import Job
    from experiments.shared.settings import Settings

TEMPLATE = Path(__file__).with_name("reporting") / "teacher_card.md"
EVERYDAY = """
a cat face | a dog face | a red apple | a pizza | a red heart | a sun | a snowman | a four leaf clover | a rocket | an
umbrella | a tomato | a banana | a strawberry | a hamburger | a hot beverage | a birthday cake | a soccer ball | a
basketball | a guitar | a house | a police car | a fire engine | a bicycle | a sailboat | a key | a light bulb | a
book | a red envelope | a watermelon | a penguin | a frog | a pig face | a panda | a lion | a butterfly | a lady
beetle | a fish | a whale | an octopus | a crab | a rose | a tulip | a cactus | a palm tree | a mushroom | a grinning
face | a crying face | a skull | an alien | a ghost | a robot | a crown | a top hat | a t-shirt | a jeans | a star | a
crescent moon | a rainbow | a fire | a droplet | a flag of france | a flag of japan | a flag of canada | a flag of
germany | a clown face | a unicorn | a mouse face | a rabbit face | a bear | a koala | a cow face | a monkey face | a
chicken | an owl | a turtle | a snake | a carrot | a ear of corn | a broccoli | an eggplant | a peach | a cherries | a
grapes | a pineapple | a lemon | a tangerine | a doughnut | a cookie | a teacup without handle
"""


def common_captions(known: set[str], styles: list[str], count: int) -> list[str]:
    """Captions of everyday things among the known names, the styles in turn."""
    names = [name for name in " ".join(EVERYDAY.split()).split(" | ") if name in known][:count]
    return [f"{name}, {styles[index % len(styles)]} style" for index, name in enumerate(names)]


def subsets(data: Any) -> dict[str, dict[str, Any]]:
    """What is measured, by its label: further arguments of the loader."""
    return {"all": {}, **({"without flags": {"without": ["Flags"]}} if "Flags" in getattr(data, "categories", ()) else {})}


def split_figures(job: "Job", split: str) -> dict[str, dict[str, float]]:
    """Distances of samples, of reconstructions and of other real images, and of samples retrieval where there are captions."""
    import torch

    from common.metrics.distances import caption_retrieval
    from common.metrics.efficientnet import extract_features
    from common.metrics.jackknife import estimate
    from common.runtime.content import content_name
    from experiments.evaluation.real_features import Reference
    from experiments.evaluation.samples import sampled_batches
    from experiments.reporting.rows import flat
    from experiments.shared.row import with_intervals

    job = job.with_evaluation(split=split)
    teacher, captions, names = job.teacher, job.prompts.captions, job.prompts.names
    reference = Reference(job, split)
    data = job.evaluation_data
    settings = asdict(job.settings.evaluation) | {"split": None}  # the captions say which; without them, one set
    name = content_name("card", teacher.fingerprint(), settings, captions)
    batches = sampled_batches(job, teacher, captions, reference.extractor, split, job.cache / name)
    sampled = torch.cat([samples["features"] for _, samples in batches])
    again = teacher.decode_latents(teacher.encode_images(data.images[reference.held_back]))
    sets = {"samples": sampled}
    sets |= {"reconstructions": extract_features(reference.extractor, again), "real": reference.floor_features}
    found = {who: estimate(reference.figures(features), len(features)) for who, features in sets.items()}
    figures = {who: flat(with_intervals(each)) for who, each in found.items()}
    if names is not None:
        pool = min(64, len(set(reference.names)))
        hits = caption_retrieval(sampled, names, reference.all_features, reference.names, pool).double()
        retrieval = estimate(lambda kept: {"caption_retrieval": hits[kept].mean().item()}, len(hits))
        figures["samples"] |= flat(with_intervals(retrieval)) | {"pool": pool}
    return figures


def by_ear(job: "Job") -> dict[str, dict[str, float]]:
    """What the ear tells at once, as Fréchet distances: of samples, and of each instrument, to instruments, noise and silence.

    Rows and columns are sets of equally many clips; an instrument's distance to itself is between two halves of it.
    """
    import torch

    from common.metrics.distances import frechet_distance
    from common.metrics.efficientnet import extract_features
    from common.runtime.seeding import generator_for

    teacher, clips, sound, evaluation = job.teacher, job.data("train"), job.sound, job.settings.evaluation
    instruments = list(dict.fromkeys(clips.instruments))
    count = min(evaluation.images // 2, *(clips.instruments.count(name) // 2 for name in instruments))
    generator = generator_for(evaluation.seed, 5)
    latents = teacher.sample(list(range(count)), [""] * count, evaluation.steps, evaluation.guidance_scale)
    mixed = torch.randperm(len(clips), generator=generator)[: 2 * count]
    sets = {"real": clips.images[mixed]}
    for name in instruments:
        own = torch.tensor([index for index, other in enumerate(clips.instruments) if other == name])
        sets[name] = clips.images[own[torch.randperm(len(own), generator=generator)[: 2 * count]]]
    sets["noise"] = sound.images(torch.randn(2 * count, sound.samples, generator=generator))
    sets["silence"] = torch.zeros_like(sets["noise"])
    extractor = job.extractor()
    halves = {name: extract_features(extractor, images).split(count) for name, images in sets.items()}
    samples = extract_features(extractor, teacher.decode_latents(latents))
    rows = {"samples": samples, **{name: second for name, (_, second) in halves.items() if name not in ("noise", "silence")}}
    return {
        who: {name: frechet_distance(first, features) for name, (first, _) in halves.items()} for who, features in rows.items()
    }


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
@one_line_errors
@under_way("the teacher's card")
def main(cfg: DictConfig) -> None:
    import torch

    from common.audio.spectrogram import write_sounds
    from common.diffusion.images import save_grid, upright
    from common.errors import InputError
    from common.metrics.similarity import peak_signal_to_noise
    from common.runtime.files import write_json, write_text
    from common.runtime.strict_json import read_json
    from experiments.evaluation.layer_effects import layers_of
    from experiments.shared.job import Job

    torch.set_grad_enabled(False)
    job = Job(cfg)
    teacher, evaluation = job.teacher, job.settings.evaluation
    if not (teacher.folder / "training.json").is_file():
        raise InputError(f"{teacher.folder} has no training.json: cards are of teachers that experiments.train_teacher made.")
    test, train = job.data("test"), job.data("train")
    figures: dict[str, Any] = {"psnr held out (dB)": peak_signal_to_noise(teacher.autoencoder, test.images)}
    for split in ("train", "test"):
        for label, subset in subsets(train).items():
            figures[f"{split}, {label}"] = split_figures(job.with_data(**subset) if subset else job, split)
    figures["layers"] = layers_of(teacher, train)
    captions = [""] * 48
    if hasattr(train, "captions"):
        styles = list(dict.fromkeys(caption.rsplit(", ", 1)[1].removesuffix(" style") for caption in train.captions))
        captions = common_captions(set(train.names), styles, 48)
    latents = teacher.sample(list(range(len(captions))), captions, evaluation.steps, evaluation.guidance_scale)
    drawn = teacher.decode_latents(latents)
    if job.sound is not None:
        write_sounds(teacher.folder / "sounds", {"sample": drawn, "real": test.images[:: max(1, len(test) // 3)]}, job.sound, 3)
        figures["by ear"] = by_ear(job)
    save_grid(upright(drawn, job.sound), teacher.folder / "samples.webp", columns=8)
    write_json(teacher.folder / "card.json", figures)
    history = read_json(teacher.folder / "training.json", "train the teacher again", None)
    text = card_text(teacher, job.settings, figures, history, captions, subsets(train))
    write_text(teacher.folder / "README.md", text)
    print(text)


def figure_table(figures: dict[str, dict[str, float]]) -> str:
    """A line for each set of images, a column for each metric, with its interval."""
    from experiments.reporting.metric_table import metric_text, short_title
    from experiments.shared.row import BESIDE

    names = [name for name in figures["samples"] if name != "pool" and not name.endswith(BESIDE)]
    pool = figures["samples"].get("pool")
    titles = [short_title(name) + (f" among {pool}" if name == "caption_retrieval" else "") for name in names]
    return markdown(["", *titles], [[who, *(metric_text(each, name) for name in names)] for who, each in figures.items()])


def card_text(
    teacher: Any, settings: "Settings", figures: dict[str, Any], history: list[dict], captions: list[str], labels: Iterable[str]
) -> str:
    """The card in Markdown: experiments/reporting/teacher_card.md with what was measured."""
    from common.cost.macs import count_parameters
    from common.models.loading import read_index
    from common.models.pipeline_defaults import call_options
    from experiments.evaluation.layer_effects import report
    from experiments.reporting.page import rendered

    sizes = {
        "denoiser": teacher.denoiser,
        "autoencoder": teacher.autoencoder,
        **dict(zip(("text encoder", "second text encoder", "third text encoder"), teacher.text_encoders, strict=False)),
    }
    parts = [[name, type(part).__name__, f"{count_parameters(part):,}"] for name, part in sizes.items()]
    captioned, by_ear = teacher.text_encoder is not None, figures.get("by ear")
    what = ("names seen in training", "names held out of training") if captioned else ("training images", "held-out images")
    tables = {
        f"{kind}, {label}": figure_table(figures[f"{split}, {label}"])
        for split, kind in zip(("train", "test"), what, strict=True)
        for label in labels
    }
    runs = ["; ".join(f"{name} {value}" for name, value in run.items()) for run in history]
    options = call_options(read_index(teacher.folder), teacher)
    shipped = OmegaConf.load(ROOT / "conf" / "teacher" / f"small_{settings.task.name}.yaml").path
    return rendered(
        TEMPLATE,
        name=markdown_text(teacher.name),
        folder=os.path.relpath(teacher.folder, ROOT),
        caption=captions[0],
        options="".join(f", {name}={value}" for name, value in options.items()),
        choice="" if teacher.name == shipped else f" teacher.path={teacher.name}",
        captioned=captioned,
        data=code_span(settings.task.data["folder"]),
        captions=[markdown_text(caption) for caption in captions],
        reconstructions=(teacher.folder / "reconstructions.webp").is_file(),
        parts=markdown(["part", "class", "parameters"], parts, words=2),
        latents=" x ".join(map(str, teacher.latent_shape)),
        runs=[markdown_text(run) for run in runs],
        settings=settings,
        decibels=f"{figures['psnr held out (dB)']:.2f}",
        features=hydra.utils.get_class(settings.task.features["_target_"]).description,
        tables=tables,
        layers=report(teacher.denoiser, figures["layers"]),
        by_ear=by_ear
        and markdown(
            ["", *map(markdown_text, next(iter(by_ear.values())))],
            [[markdown_text(who), *(f"{value:.1f}" for value in row.values())] for who, row in by_ear.items()],
        ),
    )


if __name__ == "__main__":
    with one_line_composition_errors():
        main()
