"""What the metrics of a row are called, how they are written, and which way is better: one line each.

Distances over features are named in a row after their kind and their extractor: fd_effnet, kd_effnet, fad_musicnn.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.shared.row import HIGH, LOW


class Metric(NamedTuple):
    title: str  # at the head of a column
    form: str
    higher: bool = False  # is better
    published: bool = False  # by the papers: experiments/evaluation/paper_metrics.py measures it where conf/metrics asks for it
    to_teacher: bool = False  # against its samples from equal seeds: says nothing of the teacher itself
    negligible: float = 0.0  # a difference below is nothing in practice: a share of the figure, or points of what is a share
    drawn: bool = True  # in a picture of its own; the report's page draws all, kernel distances too


METRICS = {  # by the name in a row
    "latent_mse": Metric("MSE to the teacher", "{:.3f}", to_teacher=True, negligible=0.1, drawn=False),
    "feature_mse": Metric("features to the teacher", "{:.3f}", to_teacher=True, negligible=0.1),
    "caption_retrieval": Metric("retrieval", "{:.1%}", higher=True, negligible=0.05),
    "ssim": Metric("SSIM to the teacher", "{:.3f}", higher=True, to_teacher=True, drawn=False),
    "distance": Metric("distance", "{:.4g}", negligible=0.05),  # of Fréchet, whatever its features
    "fid": Metric("FID", "{:.2f}", published=True),
    "fid_clean": Metric("FID clean", "{:.2f}", published=True),
    "kid_clean": Metric("KID clean", "{:.3f}", published=True, drawn=False),
    "cmmd": Metric("CMMD", "{:.3f}", published=True),
    "fd_dinov2": Metric("FD DINOv2", "{:.1f}", published=True),
    "inception_score": Metric("IS", "{:.2f}", higher=True, published=True),
    "clip_score": Metric("CLIP", "{:.4f}", higher=True, published=True),
    "clip_score_l14": Metric("CLIP L14", "{:.4f}", higher=True, published=True),
    "pickscore": Metric("PickScore", "{:.2f}", higher=True, published=True),
    "hpsv2": Metric("HPSv2", "{:.4f}", higher=True, published=True),
    "hpsv3": Metric("HPSv3", "{:.3f}", higher=True, published=True),
    "vqascore": Metric("VQAScore", "{:.4f}", higher=True, published=True),
    "geneval": Metric("GenEval", "{:.4f}", higher=True, published=True),
    "image_reward": Metric("ImageReward", "{:.4f}", higher=True, published=True),
    "fad_vggish": Metric("FAD VGGish", "{:.2f}", published=True),
}


CORRELATIONS = {  # of summed and joint losses of sets of layers (experiments.additivity): in no row
    "spearman": Metric("rank correlation", "{:.3f}", higher=True, negligible=0.05),
    "within": Metric("rank correlation in sets of one size", "{:.3f}", higher=True, negligible=0.05),
}
DISTANCES = {
    "fd": Metric("FD", "{:.1f}", negligible=0.05),
    "kd": Metric("KD", "{:.1f}", negligible=0.05, drawn=False),
    "fad": Metric("FAD", "{:.1f}", negligible=0.05),
}
EXTRACTORS = {"effnet": "EfficientNet", "musicnn": "musicnn"}


def find_metric(name: str) -> Metric:
    """A metric by its name in a row or of additivity; one that nobody has told of is called as there, and less is better."""
    if name in METRICS or name in CORRELATIONS:
        return {**METRICS, **CORRELATIONS}[name]
    kind, _, features = name.partition("_")
    if kind not in DISTANCES:
        return Metric(name.replace("_", " "), "{:.4g}")
    extractor = features.removesuffix("_to_teacher")
    to = ", to the teacher" if features.endswith("_to_teacher") else ""
    return DISTANCES[kind]._replace(title=f"{DISTANCES[kind].title} ({EXTRACTORS.get(extractor, extractor)}{to})")


def short_title(name: str) -> str:
    """A metric's title for narrow columns: "MSE to t."; of a distance over features without their extractor: "FD to t."."""
    kind, _, features = name.partition("_")
    if kind not in DISTANCES:
        return find_metric(name).title.replace("to the teacher", "to t.")
    return DISTANCES[kind].title + (" to t." if features.endswith("_to_teacher") else "")


def negligible(name: str, figure: float) -> float:
    """How far from a figure of the metric another may be and tell nothing in practice; 0 where nobody has said."""
    metric = find_metric(name)
    return metric.negligible * (1.0 if metric.form.endswith("%}") else abs(figure))


def half_width(figures: Mapping[str, Any], name: str) -> float | None:
    """Of the interval of a model's metric; None where it has none."""
    ends = (figures.get(name + LOW), figures.get(name + HIGH))
    return None if None in ends else (ends[1] - ends[0]) / 2


def metric_text(figures: Mapping[str, Any], name: str) -> str:
    """A model's metric with half of its 95 % interval, such as "12.30 ±0.41"; empty where it was not measured."""
    if figures.get(name) is None:
        return ""
    form, half = find_metric(name).form, half_width(figures, name)
    return form.format(figures[name]) + ("" if half is None else f" ±{form.format(half).removesuffix('%')}")
