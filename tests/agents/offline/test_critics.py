"""Batched critics are so many perceptrons."""

import torch

from aligngym.agents.offline.critics import Critics


def test_each_member_is_a_perceptron():
    critics = Critics(5, (8, 6), 3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for bias in critics.biases:
            bias.normal_(generator=torch.Generator().manual_seed(1))
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    values = critics(features)
    assert values.shape == (3, 7)
    for member in range(3):
        hidden = features
        for weight, bias in zip(critics.weights, critics.biases, strict=True):
            hidden = (hidden if weight is critics.weights[0] else hidden.relu()) @ weight[member] + bias[member]
        torch.testing.assert_close(values[member], hidden[:, 0])


def test_gradients_are_those_of_finite_differences():
    critics = Critics(3, (4,), 2, torch.Generator().manual_seed(0)).double()
    features = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parameters = list(critics.parameters())

    def values(*given):
        return torch.func.functional_call(
            critics, dict(zip(dict(critics.named_parameters()), given, strict=True)), features
        )

    assert torch.autograd.gradcheck(values, parameters)


def test_members_and_seeds_differ_and_weights_are_orthogonal():
    one, again, other = (Critics(5, (8,), 2, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one.weights[0], again.weights[0]) and not torch.equal(one.weights[0], other.weights[0])
    first, second = one.weights[0]
    assert not torch.equal(first, second)
    for weight in (first, second):
        torch.testing.assert_close(weight @ weight.mT, 2 * torch.eye(5))
