"""The algebra: closed forms, laws, invalid against not applicable, state, normalisation."""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligngym.rewards import Gate, Product, SampleReward, Schedule, Sum, from_dict, gate, group_z_scores, schedule
from aligngym.rewards import register_reward as register


@register("test_algebra_column")
@dataclass
class Column(SampleReward):
    """The number in the column of its name; None does not apply, ``"x"`` fails."""

    name: str | None = field(default="a", kw_only=True)

    def sample(self, text, row):
        return None if row[self.name] is None else float(row[self.name])


A, B, C = (Column(name=name) for name in "abc")
NUMBERS = st.floats(-1e3, 1e3)
ENTRIES = st.one_of(NUMBERS, st.none(), st.just("x"))
ROWS = st.fixed_dictionaries({name: st.lists(ENTRIES, min_size=4, max_size=4) for name in "abc"})
TEXTS = ["", "one", "two words", "three short words"]


def score(reward, **columns):
    return reward.score([""] * len(next(iter(columns.values()))), **columns)


def same(left, right, columns):
    """Whether two rewards agree: values, where they apply, and where they failed."""
    one, other = left.score(TEXTS, **columns), right.score(TEXTS, **columns)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9, atol=1e-6)
    np.testing.assert_array_equal(one.failed, other.failed)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.floats(-5, 5), st.floats(-5, 5))
def test_laws(columns, u, v):
    same(A + B, B + A, columns)
    same(A * B, B * A, columns)
    same((A + B) + C, A + (B + C), columns)
    same((A + B + 1) + C, A + (1 + B) + C, columns)
    same((A * B) * C, A * (B * C), columns)
    same(u * (A + B), u * A + u * B, columns)
    same((u + v) * A, u * A + v * A, columns)
    same(A * (B + C), A * B + A * C, columns)
    same(A - B, A + -B, columns)
    same(u - A, -(A - u), columns)
    same(A.clip(-1, 1).clip(-1, 1), A.clip(-1, 1), columns)
    same(gate(A, B) + gate(A, C), gate(A, B + C), columns)
    same(A.schedule([[0, u]]), u * A, columns)


def compositions():
    leaves = st.sampled_from([A, B, C])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, inner, st.floats(-2, 2)).map(lambda t: t[0] + t[2] * t[1]),
            st.tuples(inner, inner).map(lambda t: t[0] * t[1]),
            st.tuples(inner, inner, st.floats(-2, 2)).map(lambda t: gate(t[0], t[1], t[2])),
            inner.map(lambda r: r.clip(-2.0, 2.0)),
            inner.map(lambda r: r.log_sigmoid(0.5)),
            inner.map(lambda r: r.schedule([[0, 1.0], [10, 0.5]])),
            inner.map(lambda r: r.normalize()),
        ),
        max_leaves=6,
    )


@settings(max_examples=60, deadline=None)
@given(compositions(), ROWS)
def test_any_composition_round_trips_with_its_state(reward, columns):
    reward = from_dict(reward.to_dict())  # the leaves are shared between examples; a copy has a state of its own
    reward.set_progress(7)
    reward.score(TEXTS, **columns)
    twin = from_dict(json.loads(json.dumps(reward.to_dict())))
    assert twin == reward
    twin.set_state(json.loads(json.dumps(reward.get_state())))
    np.testing.assert_array_equal(twin.score(TEXTS, **columns).values, reward.score(TEXTS, **columns).values)
    assert twin.get_state() == reward.get_state()


def test_sum_product_difference_closed_form():
    columns = {"a": [1.0, 2.0], "b": [10.0, -4.0]}
    np.testing.assert_allclose(score(0.7 * A + 0.3 * B + 2, **columns).values, [5.7, 2.2])
    np.testing.assert_allclose(score(A * B / 2, **columns).values, [5.0, -4.0])
    np.testing.assert_allclose(score(1 - A - B, **columns).values, [-10.0, 3.0])
    np.testing.assert_allclose(score(np.float64(0.5) * A + np.float32(1) * B, **columns).values, [10.5, -3.0])
    assert sorted(score(A * B + A, **columns).terms) == ["a", "b"]
    assert isinstance(A + B + C, Sum) and len((A + B + C).terms) == 3
    assert isinstance(A * B * C, Product) and len((A * B * C).factors) == 3


def test_what_does_not_apply_is_left_out_of_a_sum():
    scores = score(2 * A + 3 * B + 1, a=[1, None, None, "x"], b=[1, 1, None, None])
    np.testing.assert_array_equal(scores.values, [6, 4, np.nan, np.nan])
    assert scores.reasons == [None, None, None, "a: ValueError: could not convert string to float: 'x'"]


def test_what_does_not_apply_stops_every_other_operation():
    for reward in (A * B, A.clip(0, 1) * B, A.log_sigmoid() * B, A.schedule([[0, 1.0]]) * B, A.normalize() * B):
        scores = score(reward, a=[None, 1.0], b=[1.0, None])
        assert np.isnan(scores.values).all() and scores.reasons == [None, None]


def test_a_failure_spreads_whatever_its_weight_and_wins_over_absence():
    for reward in (0 * A + B, A * B, A - B, (A + B).clip(0, 1), (B + A.normalize()).log_sigmoid()):
        scores = score(reward, a=["x"], b=[None])
        assert scores.failed.all() and scores.reasons[0].startswith("a: ValueError")
    np.testing.assert_array_equal(score(0 * A + B, a=["x"], b=[3.0]).terms["b"], [3.0])


def test_gate():
    scores = score(gate(A, B, 0.5, otherwise=-1), a=[1, 0.5, 0, None, "x", 1, 1], b=[7, 7, "x", 7, 7, None, "x"])
    np.testing.assert_array_equal(scores.values, [7, -1, -1, np.nan, np.nan, np.nan, np.nan])
    assert scores.failed.tolist() == [False, False, False, False, True, False, True]
    with pytest.raises(ValueError, match="threshold and otherwise must be finite"):
        Gate(A, B, math.nan)


def test_clip():
    np.testing.assert_array_equal(score(A.clip(-1, 2), a=[-5, 0.5, 9]).values, [-1, 0.5, 2])
    with pytest.raises(ValueError, match="low must not exceed high, got low=2, high=1"):
        A.clip(2, 1)


def test_log_sigmoid_known_answers():
    values = score(A.log_sigmoid(2.0), a=[2.0, 1002.0, -998.0, 3.0]).values
    np.testing.assert_allclose(values, [-math.log(2), 0.0, -1000.0, -math.log1p(math.exp(-1))], atol=1e-12)
    # The sum is the log-probability that every term beats its reference.
    total = score(A.log_sigmoid() + B.log_sigmoid(), a=[0.3], b=[-0.7]).values
    np.testing.assert_allclose(np.exp(total), [1 / (1 + math.exp(-0.3)) / (1 + math.exp(0.7))])


def test_log_sigmoid_against_a_column():
    reward = A.log_sigmoid("base")
    plain = score(reward, a=[1.0, 2.0, 3.0], base=[0.0, 2.0, None])
    assert plain.reasons[2] is None and np.isnan(plain.values[2])
    # The same constant on reward and reference changes nothing; on the reward alone it does.
    shifted = score(reward, a=[6.0, 7.0, 3.0], base=[5.0, 7.0, None])
    np.testing.assert_allclose(shifted.values, plain.values)
    assert score(reward, a=[6.0], base=[0.0]).values[0] != plain.values[0]
    with pytest.raises(ValueError, match="LogSigmoid reads column 'base'; columns given: a"):
        score(reward, a=[1.0])
    with pytest.raises(ValueError, match="reference must be finite or the name of a column"):
        A.log_sigmoid(math.inf)


def test_schedule():
    reward = schedule(A, [[10, 0.0], [20, 1.0], [40, 0.5]]) + B
    for step, weight in ((0, 0.0), (10, 0.0), (15, 0.5), (20, 1.0), (30, 0.75), (99, 0.5)):
        reward.set_progress(step)
        np.testing.assert_allclose(score(reward, a=[8.0], b=[1.0]).values, [8 * weight + 1])
    for points in ([], [[0, 1], [0, 2]], [[5, 1], [0, 2]], [[0, math.nan]]):
        with pytest.raises(ValueError, match="points must be"):
            Schedule(A, points)


def test_overflow_fails_and_is_not_taken_for_absence():
    big = [1e308]
    for reward in (10 * A, A * B, 10 * A - 10 * B):
        scores = score(reward, a=big, b=big)
        assert scores.failed.all() and "overflowed" in scores.reasons[0]


def test_names():
    total = (A + B).named("total") * 2
    assert sorted(score(total, a=[1.0], b=[2.0]).terms) == ["a", "b", "total"]
    assert sorted(score(A.normalize().named("z") + A, a=[1.0]).terms) == ["a", "z"]
    renamed = Column(name="a").named(None)
    assert renamed.name is None
    with pytest.raises(ValueError, match=r"both called 'a'; rename one: reward.named\('a_2'\)"):
        A + (B + C).named("a")
    score(A + A.clip(0, 1), a=[1.0])  # one and the same term twice is no conflict


def test_bad_arguments():
    with pytest.raises(ValueError, match="one weight a term, got 1 weights, 2 terms"):
        Sum((A, B), (1.0,))
    with pytest.raises(ValueError, match="weights and constant must be finite"):
        math.inf * A
    with pytest.raises(ValueError, match="at least one factor"):
        Product(())
    for wrong in (lambda: A + "b", lambda: A - "b", lambda: A * "b", lambda: "b" * A):
        with pytest.raises(TypeError):
            wrong()


def test_running_normalisation_is_that_of_all_values_so_far():
    reward, stream = from_dict(A.normalize().to_dict()), np.random.default_rng(0).normal(5, 3, size=(10, 7))
    for i, batch in enumerate(stream):
        seen = stream[: i + 1]
        expected = (batch - seen.mean()) / (seen.std() + 1e-4)
        np.testing.assert_allclose(score(reward, a=[*batch, None, "x"]).values[:7], expected, rtol=1e-9)
    frozen = from_dict({**reward.to_dict(), "update": False})
    frozen.set_state(reward.get_state())
    score(frozen, a=[1e6])
    assert frozen.get_state() == reward.get_state()
    assert score(from_dict(reward.to_dict()), a=[None]).values.tolist() != [0.0]
    np.testing.assert_array_equal(score(from_dict(reward.to_dict()), a=[3.0]).values, [0.0])


def test_state_round_trip_mid_stream():
    def build():
        return 0.5 * Column(name="a").normalize() + Column(name="b").schedule([[0, 0.0], [100, 1.0]])

    stream = np.random.default_rng(1).normal(size=(6, 2, 4))

    def run(reward, start, stop):
        found = []
        for i in range(start, stop):
            reward.set_progress(10 * i)
            found.append(score(reward, a=list(stream[i, 0]), b=list(stream[i, 1])).values)
        return found

    whole, first, second = build(), build(), build()
    expected, begun = run(whole, 0, 6), run(first, 0, 3)
    second.set_state(json.loads(json.dumps(first.get_state())))
    np.testing.assert_array_equal(begun + run(second, 3, 6), expected)


def test_group_z_scores():
    reward = A.normalize("group")
    scores = score(reward, a=[1.0, 3.0, 0.1, 0.1, 0.1, 9.0, None, "x"], group=[0, 0, 1, 1, 1, 2, 0, 1])
    z = 1 / (math.sqrt(2) + 1e-4)
    np.testing.assert_allclose(scores.values[:2], [-z, z])
    np.testing.assert_array_equal(scores.values[2:6], [0, 0, 0, 0])  # exactly: equal values, and a group of one
    assert scores.reasons[6] is None and scores.reasons[7].startswith("a: ")
    by_prompt = reward.score([""] * 4, ["p", "q", "p", "q"], a=[1.0, 5.0, 3.0, 5.0])
    np.testing.assert_allclose(by_prompt.values, [-z, 0, z, 0])
    chats = [[{"role": "user", "content": text}] for text in "pqpq"]
    np.testing.assert_array_equal(reward.score([""] * 4, chats, a=[1.0, 5.0, 3.0, 5.0]).values, by_prompt.values)
    with pytest.raises(ValueError, match="needs the column 'group' or prompts"):
        score(reward, a=[1.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-100, 100), min_size=6, max_size=6),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    st.lists(st.integers(-1000, 1000), min_size=3, max_size=3),
)
def test_a_constant_of_the_prompt_changes_no_group_z_score(values, groups, constants):
    shifted = [value + constants[label] for value, label in zip(values, groups, strict=True)]
    plain = group_z_scores(np.array(values, float), groups)
    np.testing.assert_allclose(group_z_scores(np.array(shifted, float), groups), plain, atol=1e-9)


def test_groups_normalised_apart_weigh_terms_of_any_scale_alike():
    reward = A.normalize("group") + B.normalize("group")
    small = score(reward, a=[0.0, 1.0, 2.0], b=[2.0, 0.0, 1.0], group=[0] * 3).values
    large = score(reward, a=[0.0, 1.0, 2.0], b=[2e3, 0.0, 1e3], group=[0] * 3).values
    np.testing.assert_allclose(small, large, atol=1e-3)


def test_normalize_refuses():
    with pytest.raises(ValueError, match="mode must be 'running' or 'group', got 'batch'"):
        A.normalize("batch")
    with pytest.raises(ValueError, match="epsilon must be positive, got 0"):
        A.normalize(epsilon=0)
