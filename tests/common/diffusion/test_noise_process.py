"""Noise and targets of a flow are those that its samplers undo; of diffusion they are DDPM's."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from common.diffusion.noise_schedule import check_noise, noise_process
from common.diffusion.objective import noise_and_timesteps
from common.errors import InputError


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noise_levels_are_those_of_the_sampler(shift):
    """The sampler's schedule for training, of all timesteps, from most noise to least."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = noise_process(scheduler)
    found = process.timesteps(torch.arange(1000)).flip(0)
    assert torch.allclose(found, scheduler.timesteps, rtol=1e-5)
    latents, noise = torch.randn(5, 4, 2, 2), torch.randn(5, 4, 2, 2)
    chosen = scheduler.timesteps[[0, 10, 500, 900, 999]]
    assert torch.allclose(process.add_noise(latents, noise, chosen), scheduler.scale_noise(latents, chosen, noise), atol=1e-5)


def test_the_velocity_leads_from_noise_to_the_sample():
    latents, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    velocity = noise_process(FlowMatchEulerDiscreteScheduler()).target(latents, noise, torch.tensor([3.0, 800.0]))
    for sampler in (
        FlowMatchEulerDiscreteScheduler(),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ):
        sampler.set_timesteps(4)
        x = noise
        for timestep in sampler.timesteps:
            x = sampler.step(velocity, timestep, x).prev_sample
        assert torch.allclose(x, latents, atol=2e-2)  # the first level of noise is 0.999


def test_diffusion_is_as_its_scheduler_has_it():
    scheduler = DDIMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")
    process = noise_process(EulerDiscreteScheduler.from_config(scheduler.config))
    latents, noise, numbers = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.tensor([3, 800])
    assert torch.equal(process.timesteps(numbers), numbers)
    assert torch.equal(process.add_noise(latents, noise, numbers), scheduler.add_noise(latents, noise, numbers))
    assert torch.equal(process.target(latents, noise, numbers), scheduler.get_velocity(latents, noise, numbers))


def test_timesteps_by_a_logit_normal_density():
    positions, latents = torch.arange(4000), torch.zeros(4000, 1, 1, 1)
    _, even, _ = noise_and_timesteps(0, positions, latents, 1000)
    noise, numbers, uniform = noise_and_timesteps(0, positions, latents, 1000, "logit_normal")
    assert even.min() < 10 and even.max() > 990 and abs(even.float().mean() - 500) < 15
    logits = torch.logit((numbers + 0.5) / 1000)
    assert abs(logits.mean()) < 0.05 and abs(logits.std() - 1) < 0.05
    again = noise_and_timesteps(0, positions[7:8], latents[7:8], 1000, "logit_normal")
    assert torch.equal(again[0], noise[7:8]) and again[1] == numbers[7] and again[2] == uniform[7]


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match="use_flow_sigmas=False contradict each other"):
        check_noise("x", DPMSolverMultistepScheduler(prediction_type="flow_prediction"))
    with pytest.raises(InputError, match="prediction_type=epsilon, use_flow_sigmas=True contradict each other"):
        check_noise("x", DPMSolverMultistepScheduler(use_flow_sigmas=True))
    with pytest.raises(InputError, match="a shift of -1.0 makes no schedule"):
        check_noise("x", FlowMatchEulerDiscreteScheduler(shift=-1.0))
    check_noise("x", FlowMatchEulerDiscreteScheduler(shift=3.0))
