"""What is measured on the way is what training would end with, and training does not notice."""

import torch

from common.training.fit import ExponentialAverage
from experiments.shared.job import Job
from experiments.training import distance_curve
from experiments.training.distance_curve import DistanceCurve, read_curve
from tests.test_conf import compose_config


class Zeroes:
    """A method's callback with the last word: one weight pruned."""

    def finish(self, network):
        network.conv_in.weight.data[0] = 0


class Reference:
    extractor = None

    def __init__(self, *arguments):
        pass

    def distances(self, features):
        return {"fd_test": features.mean().item()}


def test_the_average_is_measured_with_its_masks_and_the_weights_come_back(tiny_teacher, tmp_path, monkeypatch):
    network = tiny_teacher.denoiser.train()
    average = ExponentialAverage(network, 0.5)
    with torch.no_grad():
        network.conv_in.weight += 1  # training went on: the average lags behind
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen = []

    def sampled_batches(job, model, *_):
        seen.append(model.denoiser.conv_in.weight.detach().clone())
        assert not model.denoiser.training
        yield "000000", {"features": torch.full((2, 3), 7.0)}

    monkeypatch.setattr(distance_curve, "sampled_batches", sampled_batches)
    job = Job(compose_config("config", "evaluation.every=2", "evaluation.images=2", "metrics={}"))
    curve = DistanceCurve(job, tiny_teacher, Reference(), tmp_path, [Zeroes()], average)
    for step in (1, 2, 2, 3, 4):

        class Trainer:
            global_step, max_steps, loggers = step, 4, ()

        curve.on_train_batch_end(Trainer)
    assert read_curve(tmp_path) == [{"step": 2, "fd_test": 7.0}]  # once, and not at the last step
    (weight,) = seen
    assert not weight[0].any() and torch.allclose(weight[1:], before["conv_in.weight"][1:] - 1, atol=1e-6)
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
