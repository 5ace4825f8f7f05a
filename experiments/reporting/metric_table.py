"""What the metrics of a row are called, how they are written, and which way is better: one line each.

Distances over features are named in a row after their kind and their extractor: fd_effnet, kd_effnet, fad_musicnn.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    title: str  # at the head of a column
    form: str
    higher: bool = False  # is better
    published: bool = False  # by the papers: experiments/evaluation/paper_metrics.py measures it where conf/metrics asks for it
    drawn: bool = True  # in a picture of its own; the report's page draws all, kernel distances too


METRICS = {  # by the name in a row; those with a spread have it under the same name with _spread
    "caption_retrieval": Metric("retrieval", "{:.1%}", higher=True),
    "latent_mse": Metric("MSE to t.", "{:.3f}", drawn=False),
    "ssim": Metric("SSIM to t.", "{:.3f}", higher=True, drawn=False),
    "fid": Metric("FID", "{:.2f}", published=True),
    "fid_clean": Metric("FID clean", "{:.2f}", published=True),
    "kid_clean": Metric("KID clean", "{:.3f}", published=True, drawn=False),
    "inception_score": Metric("IS", "{:.2f}", higher=True, published=True),
    "clip_score": Metric("CLIP", "{:.4f}", higher=True, published=True),
    "clip_score_l14": Metric("CLIP L14", "{:.4f}", higher=True, published=True),
    "pickscore": Metric("PickScore", "{:.2f}", higher=True, published=True),
    "hpsv2": Metric("HPSv2", "{:.4f}", higher=True, published=True),
    "fad_vggish": Metric("FAD VGGish", "{:.2f}", published=True),
}


DISTANCES = {"fd": Metric("FD", "{:.1f}"), "kd": Metric("KD", "{:.2f}", drawn=False), "fad": Metric("FAD", "{:.1f}")}
EXTRACTORS = {"effnet": "EfficientNet", "musicnn": "musicnn"}


def find_metric(name: str) -> Metric:
    """A metric by its name in a row; one that nobody has told of is called as in the row, and less of it is better."""
    if name in METRICS:
        return METRICS[name]
    kind, _, features = name.partition("_")
    if kind not in DISTANCES:
        return Metric(name.replace("_", " "), "{:.4g}")
    extractor = features.removesuffix("_to_teacher")
    to = ", to the teacher" if features.endswith("_to_teacher") else ""
    return DISTANCES[kind]._replace(title=f"{DISTANCES[kind].title} ({EXTRACTORS.get(extractor, extractor)}{to})")
