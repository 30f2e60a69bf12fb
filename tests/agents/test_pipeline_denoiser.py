"""Diffusers' pipelines as denoisers: the images, schedules and predictions of the pipelines themselves."""

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

from aligngym.agents.policies.denoiser_policy import DenoiserPolicy
from aligngym.agents.policies.pipeline_denoiser import PipelineDenoiser
from aligngym.agents.policies.policy import RowNoise

from .tiny_pipelines import BUILDERS, tiny_pipeline

PROMPTS = ["a red cat", "two dogs 2"]
HEIGHT, WIDTH, STEPS = 16, 24, 5
LENGTH = {"sd3": 16, "flux": 16}


@pytest.fixture
def make():
    """``make("sd", scheduler settings, **arguments)``: a denoiser around a tiny pipeline."""

    def build(name, settings=None, **arguments):
        arguments = {"height": HEIGHT, "width": WIDTH, "max_sequence_length": LENGTH.get(name)} | arguments
        return PipelineDenoiser(tiny_pipeline(name, **settings or {}), **arguments)

    return build


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """``folder("sd")``: where a tiny pipeline is saved."""
    made = {}

    def save(name):
        if name not in made:
            made[name] = str(tmp_path_factory.mktemp(name))
            tiny_pipeline(name).save_pretrained(made[name])
        return made[name]

    return save


def run(denoiser, **arguments):
    """The pipeline's own output, latents unpacked, from noise that is the same every time; and that noise."""
    pipe, shape = denoiser.pipe, (len(PROMPTS), *denoiser.shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    flux = type(pipe).__name__ == "FluxPipeline"
    if denoiser.architecture.max_sequence_length:
        arguments["max_sequence_length"] = denoiser.architecture.max_sequence_length
    size = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS}
    latents = pipe._pack_latents(noise, *shape) if flux else noise
    out = pipe(PROMPTS, latents=latents, **size | arguments).images
    if flux and arguments.get("output_type") == "latent":
        out = pipe._unpack_latents(out, HEIGHT, WIDTH, pipe.vae_scale_factor)
    return out, noise


def inputs(denoiser, rows=2):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, *denoiser.shape, generator=generator)
    times = denoiser.grid(20).times
    return x, times[torch.randint(len(times), (rows,), generator=generator)], denoiser.encode(PROMPTS[:1] * rows)


def observe(noise, prompts=PROMPTS):
    rows = [list(p.encode().ljust(16, b"\0")) for p in prompts]
    return {"sample": noise, "timestep": torch.full((len(rows), 1), STEPS), "prompt": torch.tensor(rows)}


@pytest.mark.parametrize(
    ("name", "arguments", "guidance", "call"),
    [
        ("sd", {}, 4.0, {"guidance_scale": 4.0}),
        ("sd", {}, 1.0, {"guidance_scale": 1.0}),
        ("sd-v", {}, 4.0, {"guidance_scale": 4.0}),
        ("sdxl", {}, 4.0, {"guidance_scale": 4.0}),
        ("sd3", {}, 4.0, {"guidance_scale": 4.0}),
        ("flux", {}, 1.0, {}),
        ("flux", {"distilled_guidance": 1.5}, 1.0, {"guidance_scale": 1.5}),
        ("flux", {}, 4.0, {"true_cfg_scale": 4.0, "negative_prompt": ["", ""]}),
    ],
)
def test_deterministic_samples_are_the_pipelines(make, name, arguments, guidance, call):
    denoiser = make(name, **arguments)
    policy = DenoiserPolicy(denoiser, num_steps=STEPS, guidance=guidance)
    latents, noise = run(denoiser, **call, output_type="latent")
    images, _ = run(denoiser, **call, output_type="np")
    played = policy.generate(observe(noise), RowNoise([1, 2]), max_steps=STEPS, deterministic=True)
    ours = played.actions[:, -1]
    assert (latents[0] - latents[1]).abs().max() > 0.05  # the prompts and the noise make a difference
    torch.testing.assert_close(ours, latents, atol=1e-4, rtol=1e-4)
    ours_decoded = np.stack(denoiser.decode(ours))
    assert ours_decoded.dtype == np.uint8 and ours_decoded.shape == images.shape
    assert np.abs(ours_decoded - images * 255).max() < 0.6
    exactly = (images * 255).round().astype(np.uint8)
    assert (np.stack(denoiser.decode(latents)) == exactly).all() and exactly.std() > 10


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("sd", {}, 7),
        ("sd", {"timestep_spacing": "trailing"}, 5),
        ("sd", {"set_alpha_to_one": True, "beta_schedule": "squaredcos_cap_v2"}, 4),
        ("sd-v", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 4),
        ("sdxl", {"timestep_spacing": "linspace", "set_alpha_to_one": True}, 6),
        ("sd3", {}, 5),
        ("sd3", {"use_dynamic_shifting": True, "max_shift": 2.0}, 5),
        ("sd3", {"shift_terminal": 0.02}, 3),
        ("flux", {}, 5),
        ("flux", {"use_dynamic_shifting": False, "shift": 1.0}, 4),
        ("flux", {"time_shift_type": "linear", "base_shift": 0.7}, 6),
    ],
)
def test_the_schedule_is_the_pipelines(make, name, settings, steps):
    denoiser = make(name, settings)
    grid, scheduler = denoiser.grid(steps), denoiser.pipe.scheduler
    run(denoiser, num_inference_steps=steps, output_type="latent")  # sets its scheduler
    assert torch.equal(grid.times, scheduler.timesteps) and grid.levels.dtype == torch.float64
    if denoiser.kind == "flow":
        assert torch.equal(grid.levels, scheduler.sigmas.double())
    else:
        assert torch.equal(grid.levels[:-1].float(), scheduler.alphas_cumprod[scheduler.timesteps])
        assert grid.levels[-1] == scheduler.final_alpha_cumprod
    assert torch.equal(denoiser.grid(steps).levels, grid.levels)  # asking changes nothing


def test_dynamic_shifts_depend_on_the_size(make):
    small, large = make("flux"), make("flux", height=64, width=64)
    assert large.shape == (4, 32, 32)
    assert (large.grid(4).levels[1:-1] > small.grid(4).levels[1:-1]).all()


@pytest.mark.parametrize("scheduler", [PNDMScheduler, EulerDiscreteScheduler])
def test_other_diffusion_schedulers_become_ddim_of_their_settings(scheduler):
    pipe = tiny_pipeline("sd-v")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    expected = DDIMScheduler.from_config(pipe.scheduler.config)
    expected.set_timesteps(4)
    denoiser = PipelineDenoiser(pipe)
    assert denoiser.prediction == "v_prediction"
    assert torch.equal(denoiser.grid(4).times, expected.timesteps)
    assert denoiser.grid(4).levels[0] == expected.alphas_cumprod[expected.timesteps[0]] < 0.06


@pytest.mark.parametrize("name", BUILDERS)
def test_what_a_pipeline_is(make, name):
    denoiser = make(name)
    flow = name in ("sd3", "flux")
    assert denoiser.kind == ("flow" if flow else "diffusion")
    assert denoiser.prediction == ("velocity" if flow else "v_prediction" if name == "sd-v" else "epsilon")
    assert denoiser.shape == (4, HEIGHT // 2, WIDTH // 2)
    assert PipelineDenoiser(tiny_pipeline(name)).shape == ((4, 128, 128) if name == "flux" else (4, 8, 8))
    condition = denoiser.encode(["", *PROMPTS])
    assert all(len(value) == 3 and not value.requires_grad for value in condition.values())
    for value in condition.values():
        assert not torch.equal(value[0], value[1]) and not torch.equal(value[1], value[2])


@pytest.mark.parametrize("name", BUILDERS)
def test_rows_have_times_of_their_own(make, name):
    denoiser = make(name)
    x = torch.randn(3, *denoiser.shape, generator=torch.Generator().manual_seed(0))
    t, condition = denoiser.grid(9).times[[0, 3, 8]], denoiser.encode([*PROMPTS, ""])
    with torch.no_grad():
        together = denoiser(x, t, condition)
        alone = [
            denoiser(x[i : i + 1], t[i : i + 1], {k: v[i : i + 1] for k, v in condition.items()}) for i in range(3)
        ]
        shifted = denoiser(x, t.flip(0), condition)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert (together[0] - shifted[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_only_the_network_trains(make, name):
    denoiser = make(name)
    pipe, network = denoiser.pipe, denoiser.pipe.unet if name == "sd" else denoiser.pipe.transformer
    assert {id(p) for p in denoiser.parameters()} == {id(p) for p in network.parameters()}
    assert all(p.requires_grad for p in denoiser.parameters())
    frozen = [p for k, part in pipe.components.items() if hasattr(part, "parameters") and part is not network
              for p in part.parameters()]  # fmt: skip
    assert len(frozen) > 50 and not any(p.requires_grad for p in frozen)
    x, t, condition = inputs(denoiser)
    denoiser.train()(x, t, condition).square().mean().backward()
    assert not any(module.training for module in (network, pipe.vae, pipe.text_encoder))
    assert sum(p.grad is not None for p in network.parameters()) > 0.9 * len(list(network.parameters()))


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_adapters(make, name):
    plain, before = make(name), torch.random.get_rng_state()
    denoiser = make(name, lora_rank=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    policy = DenoiserPolicy(denoiser, num_steps=STEPS)
    names = [n for n, p in denoiser.named_parameters() if p.requires_grad]
    assert names and all(re.search(r"\.(to_q|to_k|to_v|to_out\.0)\.lora_[AB]\.", n) for n in names)
    x, t, condition = inputs(denoiser)
    with torch.no_grad():
        initial = plain(x, t, condition)
        assert torch.equal(denoiser(x, t, condition), initial)
    optimizer = torch.optim.SGD([p for p in denoiser.parameters() if p.requires_grad], 10.0)
    for _ in range(2):  # B is 0 at first, so A moves in the second step only
        optimizer.zero_grad()
        denoiser(x, t, condition).square().mean().backward()
        optimizer.step()
    trained = denoiser(x, t, condition)
    assert (trained - initial).abs().max() > 1e-3
    assert policy.has_adapters and not DenoiserPolicy(plain, num_steps=STEPS).has_adapters
    with policy.adapters_off() as reference, torch.no_grad():
        assert torch.equal(reference.denoiser(x, t, condition), initial)
    assert torch.equal(denoiser(x, t, condition), trained) and denoiser(x, t, condition).requires_grad


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_gradient_checkpointing_saves_memory_and_changes_nothing(make, name):
    def measure(**arguments):
        denoiser, saved = make(name, **arguments), []
        x, t, condition = inputs(denoiser)
        with torch.autograd.graph.saved_tensors_hooks(lambda v: saved.append(v.numel()) or v, lambda v: v):
            loss = denoiser(x, t, condition).square().mean()
        loss.backward()
        return sum(saved), [p.grad for p in denoiser.parameters() if p.grad is not None]

    (much, gradients), (little, same) = measure(), measure(gradient_checkpointing=True)
    assert little < 0.8 * much
    torch.testing.assert_close(same, gradients)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_half_precision_inside_float32_outside(make, name):
    exact = make(name)
    half = make(name, lora_rank=2).to(torch.bfloat16)
    for part in (half.network, half.pipe.vae, half.pipe.text_encoder):
        assert part.dtype == torch.bfloat16  # the frozen parts moved too
    x, t, condition = inputs(half)
    out = half(x, t, condition)
    assert out.dtype == torch.float32 and condition["prompt_embeds"].dtype == torch.bfloat16
    there = exact(*inputs(exact))
    assert 0 < (out - there).std() < 0.3 * there.std()
    assert np.abs(np.stack(half.decode(x)).astype(int) - np.stack(exact.decode(x))).mean() < 3


def test_adapters_of_a_half_precision_network_are_float32():
    pipe = tiny_pipeline("sd")
    pipe.unet.to(torch.bfloat16)  # the text encoder stays in float32
    denoiser = PipelineDenoiser(pipe, lora_rank=2)
    assert {(p.requires_grad, p.dtype) for p in denoiser.parameters()} == {
        (True, torch.float32),
        (False, torch.bfloat16),
    }
    denoiser(*inputs(denoiser)).mean().backward()


def test_copies_share_what_is_frozen(make):
    denoiser = make("sd3")
    x, t, condition = inputs(denoiser)
    reference = copy.deepcopy(denoiser)
    assert reference.pipe is denoiser.pipe and reference.network is not denoiser.network
    before = reference(x, t, condition)
    with torch.no_grad():
        denoiser.network.proj_out.weight.zero_()
    reference.to(torch.float64).to(torch.float32)
    assert torch.equal(reference(x, t, condition), before) and not torch.equal(denoiser(x, t, condition), before)


@pytest.mark.parametrize(("name", "rank"), [("sd", 0), ("sd3", 2), ("flux", 2)])
def test_a_spec_builds_the_same_denoiser(folder, name, rank):
    arguments = {"height": HEIGHT, "width": WIDTH, "max_sequence_length": LENGTH.get(name)}
    denoiser = PipelineDenoiser.from_pretrained(
        folder(name), **arguments, lora_rank=rank, lora_alpha=3, gradient_checkpointing=True, dtype=torch.bfloat16,
        lora_targets=["to_q"], distilled_guidance=2.0 if name == "flux" else None,
    )  # fmt: skip
    settings = {"timestep_spacing": "trailing"} if name == "sd" else {"use_dynamic_shifting": False, "shift": 2.0}
    denoiser.pipe.scheduler = type(denoiser.pipe.scheduler).from_config(denoiser.pipe.scheduler.config, **settings)
    # A pipeline that was loaded and changed by hand knows where it is from.
    denoiser = PipelineDenoiser(denoiser.pipe, **arguments) if not rank else denoiser
    again = PipelineDenoiser.from_spec(json.loads(json.dumps(denoiser.spec())))
    assert again.spec() == denoiser.spec()
    if rank:
        adapters = again.network.peft_config["default"]
        assert (adapters.r, adapters.lora_alpha, adapters.target_modules) == (2, 3, {"to_q"})
    assert torch.equal(again.grid(4).levels, denoiser.grid(4).levels)
    with torch.no_grad():
        assert torch.equal(again(*inputs(again)), denoiser(*inputs(denoiser)))


def test_parts_left_out_stay_left_out(folder):
    without = {"text_encoder_3": None, "tokenizer_3": None}
    denoiser = PipelineDenoiser.from_pretrained(folder("sd3"), loading=without)
    assert PipelineDenoiser.from_spec(denoiser.spec()).pipe.text_encoder_3 is None
    assert PipelineDenoiser.from_spec(PipelineDenoiser(denoiser.pipe).spec()).pipe.text_encoder_3 is None


def test_a_pipeline_without_a_name_is_asked_for(make):
    policy = DenoiserPolicy(make("sd"), num_steps=STEPS)
    with pytest.raises(ValueError, match=r"load\(folder, policy=\.\.\.\)"):
        DenoiserPolicy.from_spec(policy.spec())


@pytest.mark.parametrize("rank", [0, 2])
def test_saved_pipelines_hold_what_was_learnt(folder, tmp_path, rank):
    denoiser = PipelineDenoiser.from_pretrained(folder("sd"), height=HEIGHT, width=WIDTH, lora_rank=rank)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    denoiser.save_pretrained(tmp_path)
    again = DenoiserPolicy.from_pretrained(tmp_path, num_steps=STEPS).denoiser
    original = PipelineDenoiser.from_pretrained(folder("sd"))
    x, t, condition = inputs(denoiser)
    with torch.no_grad():
        out = denoiser(x, t, condition)
        torch.testing.assert_close(again(x, t, condition), out, atol=1e-5, rtol=1e-4)
        assert (original(x, t, condition) - out).abs().max() > 1e-2
    assert denoiser.has_adapters == bool(rank) and denoiser.pipe.unet is denoiser.network


def inverted():
    pipe = tiny_pipeline("sd3")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return PipelineDenoiser(pipe)


def adapted():
    pipe = tiny_pipeline("sd")
    PipelineDenoiser(pipe, lora_rank=1)
    return PipelineDenoiser(pipe, lora_rank=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: PipelineDenoiser(object()), "pipe is a object, expected one of StableDiffusionPipeline, "),
        (lambda: PipelineDenoiser(tiny_pipeline("sd"), height=17), "height is 17, expected a multiple of 2"),
        (lambda: PipelineDenoiser(tiny_pipeline("sd3"), width=18), "width is 18, expected a multiple of 4"),
        (lambda: PipelineDenoiser(tiny_pipeline("flux"), width=0), "width is 0, expected a multiple of 4"),
        (lambda: PipelineDenoiser(tiny_pipeline("sd"), max_sequence_length=9), "length is 9, expected None"),
        (lambda: PipelineDenoiser(tiny_pipeline("flux"), max_sequence_length=513), "is 513, expected 1 to 512"),
        (lambda: PipelineDenoiser(tiny_pipeline("sd3"), distilled_guidance=2.0), "distilled_guidance is 2.0, expected"),
        (lambda: PipelineDenoiser(tiny_pipeline("sd")).grid(0), "num_steps is 0, expected 1 to 1000"),
        (lambda: PipelineDenoiser(tiny_pipeline("sd")).adapters_off().__enter__(), "needs adapters"),
        (inverted, "FlowMatchEulerDiscreteScheduler that does not invert"),
        (adapted, "has adapters already"),
    ],
)  # fmt: skip
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_without_diffusers_the_extra_is_named(monkeypatch, folder):
    name = folder("sd")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'aligngym\[image\]'"):
        PipelineDenoiser.from_pretrained(name)


def example(model, **changes):
    """The code of docs/pipelines.md, made tiny."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "pipelines.md").read_text("utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```$", page, re.M | re.S)
    tiny = {
        '"stable-diffusion-v1-5/stable-diffusion-v1-5"': repr(model), '"cuda"': '"cpu"', "num_steps=50": "num_steps=3",
        "episodes_per_iteration=64": "episodes_per_iteration=8", "decisions_per_update=5": "decisions_per_update=2",
        "learn(6400)": "learn(8)", "group_size=8": "group_size=4",
    }  # fmt: skip
    for old, new in (tiny | changes).items():
        assert old in code
        code = code.replace(old, new)
    return code


@pytest.mark.parametrize("name", [pytest.param("sd", marks=pytest.mark.slow), "sd3"])
def test_the_example_of_the_documentation_trains_and_resumes(folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    changes = {"torch.bfloat16": "torch.float32"} | ({"DiffusionAlign": "FlowAlign"} if name == "sd3" else {})
    space = {}
    exec(example(folder(name), **changes), space)
    agent, env = space["agent"], space["env"]
    adapters = [p for n, p in agent.policy.named_parameters() if "lora_B" in n]
    assert adapters and all(p.abs().max() > 0 for p in adapters)
    assert isinstance(agent.evaluate(episodes=8).mean, float)
    assert (tmp_path / "aligned" / "model_index.json").is_file()
    agent.save("checkpoint")
    straight = agent.learn(8).policy
    resumed = type(agent).load("checkpoint", env).learn(8).policy
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
