"""What each distance sees of a damaged denoiser: the table, from samples of a tiny teacher."""

import torch

from experiments.distance_power import compared, damaged
from experiments.shared.job import Job
from tests.test_conf import compose_config


def test_a_share_of_each_weight_is_set_to_zero_and_no_bias(tiny_teacher):
    copied = damaged(tiny_teacher.denoiser, 0.25, seed=0)
    pairs = list(zip(copied.named_parameters(), tiny_teacher.denoiser.parameters(), strict=True))
    zeros = sum(int((after == 0).sum() - (before == 0).sum()) for (_, after), before in pairs if before.dim() > 1)
    total = sum(before.numel() for _, before in pairs if before.dim() > 1)
    assert abs(zeros / total - 0.25) < 0.02
    assert all(torch.equal(after, before) for (_, after), before in pairs if before.dim() == 1)


def test_the_change_of_each_distance_has_an_interval(tiny_teacher_folder, tmp_path):
    settings = ["task.data.limit=20", "evaluation.images=8", "evaluation.batch_size=8", "evaluation.steps=2"]
    settings += ["evaluation.reference_images=12", "distance_power.damages=[1e-9,0.9]", f"outputs={tmp_path}", "device=cpu"]
    job = Job(compose_config("distance_power", *settings, f"teacher.path={tiny_teacher_folder}"))
    found = dict(compared(job))
    assert list(found) == ["intact", "0% of the weights", "90% of the weights", "other seeds"]
    assert len({tuple(each) for each in found.values()}) == 1 and len(found["intact"]) == 4
    for name in found["intact"]:
        none, most = (found[f"{share} of the weights"][name] for share in ("0%", "90%"))
        assert none.value == none.half_width == 0 and most.value != 0 and most.half_width > 0
        assert found["other seeds"][name].value != 0
