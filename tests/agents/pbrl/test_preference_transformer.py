"""The Preference Transformer: causal, GPT-2's layers, indifferent to padding, and its windows over whole episodes."""

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from aligngym.agents.pbrl.preference_transformer import LOG_STD, PreferenceTransformer
from aligngym.agents.pbrl.reward_training import RewardTrainingConfig, reward_loss

from .test_reward_model import segments, steps


def model(length=6, **options):
    options = {"width": 16, "heads": 4, "generator": torch.Generator().manual_seed(1)} | options
    made = PreferenceTransformer(3, 2, length, **options)
    # At its initial weights nothing matters much; larger ones make every dependence visible.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in made.parameters():
            weights += 0.3 * torch.randn(weights.shape, generator=generator)
    return made.eval()


def rewards(made, found, **changes):
    given = dict(zip(("observations", "actions", "mask"), steps(found), strict=True)) | changes
    return made.rewards(**given).mean


@pytest.mark.parametrize("layers", [1, 2])
def test_a_reward_depends_on_its_step_and_what_came_before(layers):
    made, found = model(layers=layers), segments(length=6)
    before = rewards(made, found)
    for name in ("observations", "actions"):
        changed = getattr(found, name).clone()
        changed[:, 3] += 1
        moved = (rewards(made, found, **{name: changed}) != before).all(0).tolist()
        assert moved == [False, False, False, True, True, True], name


def test_the_layers_are_those_of_gpt2():
    """The same weights in Hugging Face's GPT-2, its positions set to 0, give the same features."""
    made, found = model(layers=2), segments(length=6)
    config = GPT2Config(
        vocab_size=1, n_positions=12, n_embd=16, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    with torch.random.fork_rng(devices=[]):
        theirs = GPT2Model(config).eval()
    names = {
        "before_attention": "ln_1", "before_mlp": "ln_2", "project": "attn.c_proj", "mlp.0": "mlp.c_fc",
        "mlp.2": "mlp.c_proj",
    }  # fmt: skip
    with torch.no_grad():
        theirs.wpe.weight.zero_()
        theirs.ln_f.load_state_dict(made.final.state_dict())
        for ours, block in zip(made.blocks, theirs.h, strict=True):
            for name, their_name in names.items():
                layer, their_layer = ours.get_submodule(name), block.get_submodule(their_name)
                transposed = layer.weight.T if isinstance(layer, torch.nn.Linear) else layer.weight
                their_layer.weight.copy_(transposed)
                their_layer.bias.copy_(layer.bias)
            block.attn.c_attn.weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]).T)
            block.attn.c_attn.bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        time = made.time(torch.arange(1, 7))
        tokens = [made.observation(found.observations) + time, made.action(found.actions) + time]
        x = made.embedded(torch.stack(tokens, 2).flatten(1, 2))
        expected = made.mean(theirs(inputs_embeds=x).last_hidden_state[:, 1::2])[..., 0]
    torch.testing.assert_close(rewards(made, found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", [False, True])
def test_padding_on_the_left_changes_nothing(attention):
    made, found = model(8, attention=attention, gaussian=True), segments(length=5)
    short = made.rewards(*steps(found))
    padded = [torch.cat([torch.full_like(v[:, :3], 9), v], 1) for v in steps(found)[:2]]
    mask = torch.cat([torch.zeros(6, 3, dtype=torch.bool), found.mask], 1)
    long = made.rewards(*padded, mask)
    for name in ("mean", "std", "weights"):
        torch.testing.assert_close(getattr(long, name)[:, 3:], getattr(short, name), rtol=1e-4, atol=1e-5)
    assert (long.weights[:, :3] == 0).all()
    torch.testing.assert_close(long.logit, short.logit, rtol=1e-4, atol=1e-5)
    assert long.mean.isfinite().all()


def test_mean_and_sum_scale_the_standard_deviation():
    """Of L steps with deviation s, the logit's variance is s^2 / L for a mean and L s^2 for a sum."""
    found, length = segments(length=6), 6
    outputs = {
        kind: model(reduction=kind, gaussian=True, constant_std=0.5).rewards(*steps(found)) for kind in ("mean", "sum")
    }
    torch.testing.assert_close(outputs["mean"].logit, outputs["mean"].mean.mean(1))
    torch.testing.assert_close(outputs["sum"].logit, length * outputs["mean"].logit)
    torch.testing.assert_close(outputs["mean"].variance, torch.full((6,), 0.25 / length))
    torch.testing.assert_close(outputs["sum"].variance, torch.full((6,), 0.25 * length))


@pytest.mark.parametrize(("reduction", "total"), [("mean", 1.0), ("sum", 6.0)])
def test_preference_attention_weighs_steps_and_leaves_rewards_alone(reduction, total):
    plain, found = model(reduction=reduction), segments(length=6)
    made = model(reduction=reduction, attention=True)
    made.load_state_dict(plain.state_dict(), strict=False)
    output = made.rewards(*steps(found))
    torch.testing.assert_close(output.mean, rewards(plain, found))
    torch.testing.assert_close(output.weights.sum(1), torch.full((6,), total))
    assert (output.weights > 0).all() and output.weights.std(1).min() > 1e-3
    # It looks both ways: the last step moves the weights of all.
    later = found.actions.clone()
    later[:, -1] += 1
    moved = made.rewards(found.observations, later, found.mask).weights
    assert ((moved - output.weights).abs() > 1e-6).all()
    # The definition: values mixed by softmax(Q K / sqrt(d)), and the mean over the mixed ones.
    hidden = made._hidden(*steps(found))
    query, key = made.query_key(hidden).chunk(2, -1)
    mixed = (query @ key.transpose(1, 2) / 16**0.5).softmax(-1) @ output.mean[..., None]
    torch.testing.assert_close(output.logit, total * mixed[..., 0].mean(1))


def test_standard_deviations_are_clamped():
    made, found = model(gaussian=True), segments(length=6)
    std = made.rewards(*steps(found)).std
    assert std.min() < std.max()
    for end, far in zip(LOG_STD, (-100.0, 100.0), strict=True):
        with torch.no_grad():
            made.log_std.bias.fill_(far)
        assert (made.rewards(*steps(found)).std == torch.tensor(end).exp()).all()
    assert model().rewards(*steps(found)).std is None


@pytest.mark.parametrize(
    "options", [{}, {"layers": 2}, {"attention": True}, {"gaussian": True, "reduction": "sum"}, {"dropout": 0.5}]
)
def test_episodes_get_the_last_reward_of_each_window(options):
    made = model(4, **options).train()  # relabelling drops nothing out, in training too
    found = segments(3, 9)
    mask = torch.arange(9) < torch.tensor([9, 6, 2])[:, None]
    got = made.step_rewards(found.observations, found.actions, mask)
    assert made.training
    made.eval()
    for row, length in enumerate((9, 6, 2)):
        assert (got[row, length:] == 0).all()
        for t in range(length):
            first = max(0, t - 3)
            window = [v[row : row + 1, first : t + 1] for v in steps(found)]
            expected = made.rewards(*window).mean[0, -1]
            torch.testing.assert_close(got[row, t], expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns():
    made, found = model(attention=True, gaussian=True, reduction="sum").train(), segments(length=6)
    # Of equal lengths, a constant in every reward would cancel, and its bias learn nothing.
    mask = torch.arange(6) >= torch.arange(6)[:, None] // 2
    output = made.rewards(found.observations, found.actions, mask)
    loss, _ = reward_loss(output, torch.tensor([1.0, 0.0, 0.7]), mask, RewardTrainingConfig(eta=5.0))
    loss.backward()
    for name, weights in made.named_parameters():
        assert weights.grad is not None and weights.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"heads": 3}, "heads divide width"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"reduction": "max"}, "reduction='max'"),
        ({"constant_std": 1.0}, "takes gaussian=True"),
        ({"constant_std": 0.0, "gaussian": True}, "constant_std=0.0"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_segments_longer_than_the_model_are_refused():
    with pytest.raises(ValueError, match="7 steps, but the model was made for 6"):
        rewards(model(), segments(length=7))
