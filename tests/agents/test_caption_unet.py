"""The embedded networks: captions, grids, files, and diffusers' own sampling loops as what a rollout must repeat."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from aligngym.agents.policies.caption_unet import CONFIG, WEIGHTS, CaptionUNet
from aligngym.agents.policies.denoiser import load_denoiser
from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.policy import RowNoise
from aligngym.assets import model_path

from .tiny_denoisers import IDS, embed, network, play

VOCABULARY = ["cat", "dog", "piñata", "猫", "o", "one"]
embedded = pytest.mark.parametrize("name", IDS)


def small(kind="flow", seed=0):
    """8x8 pixels; weights that are no multiples of float16's."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = CaptionUNet(kind, VOCABULARY, size=8, channels=(32,))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
            model.words.weight[0] = 0
    return model


def diffusion_scheduler(steps):
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    return scheduler


# Not 1: in the first step diffusers takes the root of what is 0 up to rounding, on some processors of less.
@pytest.mark.parametrize("eta", [0.0, 0.6, 0.99])
def test_rollouts_are_diffusers_own_loop_of_ddim(eta):
    policy = embed("emoji-diffusion", num_steps=5, noise_level=eta, guidance=2.0)
    episodes = play(policy, 3)
    scheduler, noise, unet = diffusion_scheduler(5), RowNoise(range(3)), policy.denoiser
    x, told, empty = episodes.observations["sample"], unet.encode(episodes.info["prompt"]), unet.encode([""] * 3)
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            with_prompt, without = (unet(x, t.expand(3), c) for c in (told, empty))
            out = without + 2.0 * (with_prompt - without)
            drawn = noise.normal((3, 32, 32)) if eta else torch.zeros_like(x)
            x = scheduler.step(out, t, x, eta=eta, variance_noise=drawn).prev_sample
            torch.testing.assert_close(x, episodes.actions[:, k], rtol=1e-3, atol=2e-3)


def test_rollouts_are_diffusers_own_loop_of_euler():
    policy = embed("emoji-flow", num_steps=4)
    episodes = play(policy, 3, deterministic=True)
    scheduler, unet = FlowMatchEulerDiscreteScheduler(), policy.denoiser
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4))
    x, told = episodes.observations["sample"], unet.encode(episodes.info["prompt"])
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            x = scheduler.step(unet(x, t.expand(3), told), t, x).prev_sample
            torch.testing.assert_close(x, episodes.actions[:, k], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 20, 48, 61, 103, 121, 500])
def test_steps_of_a_diffusion_model_are_diffusers_trailing_ones(steps):
    grid, scheduler = small("diffusion").grid(steps), diffusion_scheduler(steps)
    assert len(grid.times) == steps  # diffusers itself takes one more for 61, 103 and 121
    assert torch.equal(grid.times, scheduler.timesteps[:steps].float())
    assert torch.equal(grid.levels[:-1], scheduler.alphas_cumprod[scheduler.timesteps[:steps]].double())
    assert grid.levels[-1] == scheduler.final_alpha_cumprod < 1
    table = DenoiserPolicy(small("diffusion"), num_steps=steps).table
    assert (table.std > 0).all(), "every step has a probability"


def test_steps_of_a_flow_are_equal_and_told_in_thousandths():
    grid = small("flow").grid(4)
    assert grid.levels.tolist() == [1, 0.75, 0.5, 0.25, 0] and grid.times.tolist() == [1000, 750, 500, 250]
    with pytest.raises(ValueError, match="num_steps is 501, expected at most 500 for a diffusion model"):
        small("diffusion").grid(501)


def test_captions_become_the_numbers_of_their_words():
    model = small()
    ids = model.encode(["Dog, cat!", "", "PIÑATA 猫", "one o'one"])["words"]
    assert ids.shape == (4, 16) and ids.dtype == torch.int64
    assert ids[:, :3].tolist() == [[2, 1, 0], [0, 0, 0], [3, 4, 0], [6, 5, 6]] and (ids[:, 3:] == 0).all()
    assert model.encode(["one " * 16])["words"].eq(6).all()
    with pytest.raises(ValueError, match=r"words that the model does not know: \['horse', 'zoo'\]; it knows 6, see"):
        model.encode(["cat", "zoo horse"])
    with pytest.raises(ValueError, match="has more than 16 words"):
        model.encode(["cat", "dog " * 17])


@embedded
def test_unknown_words_of_the_embedded_models_are_named(name):
    with pytest.raises(ValueError, match=r"does not know: \['xylograph'\]; it knows \d+, see its config.json"):
        play(embed(name), 1, options={"prompt": "xylograph dog"})


def test_no_words_are_the_unconditional_model():
    """Whatever the caption's layers say of an empty sum; and the order of words does not matter."""
    model, t = small(), torch.tensor([300.0, 300.0])
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1, -1)
    with torch.no_grad():
        before = model(x, t, model.encode(["", "dog cat"]))
        other = model(x, t, model.encode(["", "cat dog"]))
        torch.testing.assert_close(before, other)
        assert (before[0] - before[1]).abs().max() > 1e-4
        model.caption[2].bias += 1.0
        after = model(x, t, model.encode(["", "dog cat"]))
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_files_hold_the_network_in_half_precision(kind, tmp_path):
    model = small(kind)
    model.save_pretrained(tmp_path / "a")
    read = CaptionUNet.from_pretrained(tmp_path / "a")
    assert read.spec() == model.spec() and read.kind == kind and not read.training
    for (key, ours), theirs in zip(model.state_dict().items(), read.state_dict().values(), strict=True):
        assert theirs.dtype == torch.float32 and torch.equal(theirs, ours.half().float()), key
    read.save_pretrained(tmp_path / "b")
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    twin = load_denoiser(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), twin.parameters(), strict=True))
    assert DenoiserPolicy.from_pretrained(tmp_path / "b").num_steps == (20 if kind == "diffusion" else 10)
    (tmp_path / "b" / CONFIG).write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match=r"holds no caption-conditional UNet: its config\.json has"):
        CaptionUNet.from_pretrained(tmp_path / "b")


def test_reading_and_rebuilding_leave_the_global_generator_alone(tmp_path):
    small().save_pretrained(tmp_path)
    before = torch.get_rng_state()
    CaptionUNet.from_pretrained(tmp_path)
    CaptionUNet.from_spec(small().spec())
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="kind is 'ddpm', expected 'diffusion' or 'flow'"):
        CaptionUNet("ddpm", VOCABULARY)


@embedded
def test_embedded_models_are_small_and_what_they_say(name):
    model = network(name)
    assert sum(p.numel() for p in model.parameters()) < 3_000_000
    assert sum((Path(model_path(name)) / file).stat().st_size for file in (CONFIG, WEIGHTS)) < 8e6
    assert model.kind == name.removeprefix("emoji-") and model.shape == (3, 32, 32)
    assert model.prediction == {"diffusion": "v_prediction", "flow": "velocity"}[model.kind]


@embedded
def test_embedded_models_denoise(name):
    """On data of its own making: the prediction at a noised sample is far better than the best constant."""
    policy = embed(name, num_steps=8, sampler="ode", guidance=2.0)
    samples = play(policy, 8)
    assert samples.actions[:, -1].abs().max() < 3
    images = np.stack(policy.denoiser.decode(samples.actions[:, -1]))
    assert images.shape == (8, 32, 32, 3) and images.dtype == np.uint8 and images.std() > 20
    with torch.no_grad():
        error = -policy.log_likelihood(samples, RowNoise(range(8))).mean()
    assert error < 0.4  # the target's own variance is about 1


def test_pixels_are_rounded_and_clipped():
    x = torch.tensor([-9.0, -1.0, 0.0, 1 / 255, 1.0, 1.5]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    (image,) = small().decode(x)
    assert image.shape == (1, 6, 3) and image[0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]
