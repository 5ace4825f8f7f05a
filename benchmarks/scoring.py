"""LD-Pruner's scores: the plain loop of Algorithm 1 against the fast ways, in one run, with the same k lowest operators.

python benchmarks/scoring.py                     the shipped text-to-image teacher
python benchmarks/scoring.py --k 24              as many operators as the main job
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="emoji_t2i")
    parser.add_argument("--conditions", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20, 30])
    arguments = parser.parse_args()

    import torch

    from common.data.emoji import load_emoji
    from common.models.loading import load_teacher
    from common.runtime.progress import progress_bar
    from common.scoring.calibration import build_calibration
    from common.scoring.score_file import ScoreFile
    from ld_pruner import list_operators
    from ld_pruner.algorithm import operator_scores
    from ld_pruner.initial_weights import initial_weights
    from ld_pruner.scoring import LatentScorer

    torch.set_grad_enabled(False)
    teacher = load_teacher(arguments.teacher)
    unet = teacher.denoiser
    captions = load_emoji("data/emoji", "train", limit=arguments.conditions).captions[: arguments.conditions]
    calibration = build_calibration(
        teacher.encode_captions(captions),
        teacher.null_condition(),
        teacher.latent_shape,
        teacher.scheduler,
        num_conditions=arguments.conditions,
        samples=arguments.samples,
        steps=arguments.steps,
        guidance_scale=arguments.guidance,
        seed=0,
    )
    kinds = ("attention", "feed_forward", "resnet", "transformer_block", "transformer", "downsampler", "upsampler")
    operators = list_operators(unet, kinds)
    tensors = initial_weights(unet, operators, "slice", None, seed=0)
    costs = {operator.site: 1.0 for operator in operators}

    started = time.perf_counter()
    with progress_bar("plain loop", len(operators)) as bar:
        plain = operator_scores(unet, calibration, operators, tensors, advance=bar.advance)
    plain_seconds = time.perf_counter() - started
    print(
        f"{len(operators)} operators, {arguments.conditions} conditions x {arguments.samples} samples, "
        f"{arguments.steps} steps, guidance {arguments.guidance}"
    )
    print(f"plain loop               {plain_seconds:7.1f} s   1.0x")

    started = time.perf_counter()
    with progress_bar("plain, conditions batched", len(operators)) as bar:
        operator_scores(unet, calibration, operators, tensors, arguments.conditions, bar.advance)
    seconds = time.perf_counter() - started
    print(f"plain, one batch each    {seconds:7.1f} s  {plain_seconds / seconds:4.1f}x")
    different = []

    def timed(label: str, scoring: str, k: int) -> dict[str, float]:
        started = time.perf_counter()
        with progress_bar(label, len(operators) * arguments.conditions) as bar:
            scorer = LatentScorer(unet, calibration, tensors, rows=128)
            found = scorer.score(operators, k, scoring, ScoreFile(), costs, bar.reach)
        seconds = time.perf_counter() - started
        lowest = set(sorted(plain, key=plain.get)[:k])
        same = lowest == set(sorted(found, key=found.get)[:k])
        different.extend([] if same else [label])
        print(
            f"{label:<24} {seconds:7.1f} s  {plain_seconds / seconds:4.1f}x   {len(found)} scored in full; "
            f"the {k} lowest {'are the same' if same else 'DIFFER'}"
        )
        return found

    exact = timed("exact, batched", "exact", max(arguments.k))
    worst = max(abs(exact[site] - score) / max(score, 1e-12) for site, score in plain.items())
    print(f"largest relative difference of an exact score: {worst:.1e}")
    for k in arguments.k:
        timed(f"screened, k={k}", "screened", k)
    if different:
        sys.exit(f"error: other operators than the plain loop's: {', '.join(different)}")


if __name__ == "__main__":
    main()
