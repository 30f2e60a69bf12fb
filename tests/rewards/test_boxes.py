"""Vision-R1's reward of boxes: GIoU, thresholds that tighten, matching, and what each part can be fooled by."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligngym.rewards import VisionR1, from_dict
from aligngym.rewards.boxes import CRITERIA, criterion_rewards, differentiate, giou

RIGHT = [[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.7], [0.1, 0.6, 0.2, 0.9]]
FAR = [[0.9, 0.0, 0.95, 0.05], [0.8, 0.9, 0.82, 0.99]]


def score(boxes, right=RIGHT, stage="loose", **options):
    answer = boxes if isinstance(boxes, str) else np.array(boxes, float).reshape(-1, 4)
    scores = VisionR1(stage, **options).score([answer], boxes=[right])
    assert scores.reasons == [None]
    terms = tuple(scores.terms[name][0] for name in ("precision", "recall", "format"))
    assert scores.values[0] == sum(terms)
    return terms


def narrowed(quality, box=(0.1, 0.1, 0.5, 0.5)):
    """A box within another, of whose area it has a share; that share is the GIoU."""
    x0, y0, x1, y1 = box
    return [x0, y0, x0 + quality * (x1 - x0), y1]


def written(boxes, labels):
    return json.dumps([{"bbox_2d": list(b), "label": label} for b, label in zip(boxes, labels, strict=True)])


# -- parts -----------------------------------------------------------------------------------------------------------
def test_giou_in_closed_form():
    box = [[0.0, 0.0, 1.0, 1.0]]
    others = [[0, 0, 1, 1], [0, 0, 0.5, 1], [0.5, 0, 1.5, 1], [1, 1, 2, 2], [9, 0, 10, 1], [1, 0, 2, 1]]
    np.testing.assert_allclose(giou(box, others), [[1, 0.5, 1 / 3, -0.5, -0.8, 0]])
    np.testing.assert_allclose(giou(others, box), giou(box, others).T)
    assert giou(np.empty((0, 4)), others).shape == (0, 6) and giou(others, box).shape == (6, 1)
    for wrong in ([0, 0, 0, 1], [1, 0, 0, 1]):
        with pytest.raises(ValueError, match="boxes must be x0, y0, x1, y1 with x0 < x1 and y0 < y1"):
            giou(box, [wrong])


def test_both_thresholds_leave_the_value():
    x = np.array([-0.5, 0.4999, 0.5, 0.6, 0.75, 0.7501, 1.0])
    np.testing.assert_array_equal(differentiate(x, 0.5, 0.75), [0, 0, 0.5, 0.6, 0.75, 1, 1])
    np.testing.assert_array_equal(differentiate(x, 0.5, 0.5), [0, 0, 0.5, 1, 1, 1, 1])
    np.testing.assert_array_equal(differentiate([-1, 0, 0.3, 1], 0, 1), [0, 0, 0.3, 1])


# -- the whole -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["loose", "strict", "progressive", "raw"])
def test_perfect_boxes_have_3(stage):
    for boxes in itertools.permutations(RIGHT):
        assert score(boxes, stage=stage) == (1, 1, 1)
    assert score([], stage=stage) == (0, 0, 0)
    assert score(FAR, stage=stage) == (0, 0, 1), "GIoU below 0 counts as 0"


@pytest.mark.parametrize(
    ("quality", "stage", "precision", "recall"),
    [
        (0.4, "loose", 0, 0),
        (0.6, "loose", 0.6, 1),
        (0.8, "loose", 1, 1),
        (0.6, "strict", 0, 0),
        (0.8, "strict", 0.8, 1),
        (0.95, "strict", 1, 1),
        (0.4, "raw", 0.4, 0),
        (0.6, "raw", 0.6, 1),
        (0.95, "raw", 0.95, 1),
    ],
)
def test_thresholds_of_the_stages(quality, stage, precision, recall):
    box = [0.1, 0.1, 0.5, 0.5]
    assert score([narrowed(quality)], [box], stage) == (pytest.approx(precision), recall, 1)


def test_a_quality_at_the_threshold_is_left_as_it_is():
    right, half = [[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 0.5, 1.0]]
    assert score(half, right, "loose") == (0.5, 0.5, 1) and score(half, right, "raw") == (0.5, 0.5, 1)
    assert score([[0.0, 0.0, 0.75, 1.0]], right, "strict") == (0.75, 0.75, 1)


def test_recall():
    assert score(RIGHT[:2], stage="loose") == (1, pytest.approx(2 / 3), 1)
    assert score(RIGHT[:1], stage="loose") == (1, 0, 1), "a third is below 1/2"
    assert score(RIGHT[:1], stage="raw") == (1, pytest.approx(1 / 3), 1)
    four = [*RIGHT, FAR[0]]
    assert score(four[:3], four, "strict") == (1, 0.75, 1) and score(four[:2], four, "strict") == (1, 0.5, 1)


def test_extra_boxes_cost_precision_only_if_it_is_true_precision():
    more = [*FAR, *RIGHT, FAR[0]]
    assert score(more) == (1, 1, 1)
    assert score(more, true_precision=True) == (0.5, 1, 1)
    assert score(RIGHT[:2], true_precision=True)[0] == 1, "missing boxes cost recall, not precision"
    assert score([*RIGHT, *RIGHT]) == (1, 1, 1) and score([*RIGHT, *RIGHT], true_precision=True) == (0.5, 1, 1)


def test_where_there_is_nothing_to_find():
    for answer in ([], "[]", "nothing there"):
        assert score(answer, []) == (1, 1, 1)
    for answer in (RIGHT, [[0.5, 0.5, 0.5, 0.9]], written(RIGHT[:1], "a")):
        assert score(answer, []) == (0, 0, 0)
        assert score(answer, [], true_precision=True) == (0, 0, 0)


def test_boxes_without_an_area_are_left_out():
    reversed_box = [0.3, 0.3, 0.1, 0.1]
    assert score([reversed_box, *RIGHT]) == (1, 1, 1)
    assert score([reversed_box]) == (0, 0, 1) and score([[0.1, 0.1, 0.1, 0.3]]) == (0, 0, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=5, unique=True), st.randoms())
def test_the_order_of_boxes_does_not_matter(seeds, random):
    corners = np.array([np.random.default_rng(seed).random(8) for seed in seeds]).reshape(-1, 2, 2, 2)
    boxes, right = np.sort(corners, 2).reshape(-1, 2, 4).swapaxes(0, 1)
    shuffled = random.sample(boxes.tolist(), len(boxes))
    for stage in CRITERIA:
        assert score(shuffled, right, stage) == pytest.approx(score(boxes, right, stage))
    also = random.sample(right.tolist(), len(right))
    assert score(boxes, also, "raw") == pytest.approx(score(boxes, right, "raw"))


def test_matching_is_optimal_and_not_greedy():
    """The best pair would leave a bad one."""
    right = [[0.0, 0.0, 0.4, 0.4], [0.1, 0.0, 0.5, 0.4]]
    boxes = [[0.09, 0.0, 0.49, 0.4], [0.2, 0.0, 0.6, 0.4]]  # the first is close to both, the second to the second only
    quality, costs = giou(boxes, right), []
    for pair in itertools.permutations(range(2)):
        gap = sum(np.abs(np.subtract(boxes[i], right[j])).sum() for i, j in enumerate(pair))
        costs.append((gap - quality[[0, 1], pair].sum(), quality[[0, 1], pair].mean()))
    assert quality.argmax() == 1, "alone, the first box would be matched with the second right one"
    assert score(boxes, right, "raw")[0] == pytest.approx(min(costs)[1])


def test_labels_bear_on_the_matching():
    a, b = [0.1, 0.1, 0.5, 0.5], [0.14, 0.1, 0.54, 0.5]
    columns = {"boxes": [[a, b]], "labels": [["cat", "dog"]]}
    same = VisionR1("raw").score([written([a, b], [" Cat", "DOG"])], **columns)
    crossed = VisionR1("raw").score([written([a, b], ["dog", "cat"])], **columns)
    unknown = VisionR1("raw").score([written([a, b], ["x", "y"])], **columns)
    assert same.values[0] == unknown.values[0] == 3
    assert giou([a], [b]).item() < 0.9
    assert crossed.terms["precision"][0] == pytest.approx(giou([a], [b]).item())
    assert VisionR1("raw")([np.array([b, a])], **columns) == [3.0], "an array has no labels"
    assert VisionR1("raw")([written([a, b], ["dog", "cat"])], boxes=[[a, b]]) == [3.0]


def test_coordinates_are_normalised():
    """In pixels, L1 alone would decide; a label outweighs a small gap only in [0, 1]."""
    text = written([[100, 100, 500, 500], [140, 100, 540, 500]], ["dog", "cat"])
    right = [[0.1, 0.05, 0.5, 0.25], [0.14, 0.05, 0.54, 0.25]]
    columns = {"boxes": [right], "labels": [["cat", "dog"]], "image_size": [[1000, 2000]]}
    scores = VisionR1("raw").score([text], **columns)
    assert scores.terms["precision"][0] == pytest.approx(giou(right[:1], right[1:]).item())
    scores = VisionR1("raw").score([text], boxes=[right], image_size=[[1000, 2000]])
    assert scores.values[0] == pytest.approx(3)


def test_the_form_of_texts():
    right = [[0.1, 0.2, 0.3, 0.4]]
    good = written(right, ["a"])
    for text in (good, f"```json\n{good}\n```", f"<think>[]</think>{good}"):
        assert score(text, right) == (1, 1, 1)
    for text in ("none", "[]", good[:-1], good.replace("label", "name"), "[[0.1, 0.2, 0.3, 0.4]]"):
        assert score(text, right) == (0, 0, 0)


# -- progress --------------------------------------------------------------------------------------------------------
def test_the_stage_switches_with_the_number_of_episodes():
    reward, answer = VisionR1(switch_at=100), [np.array([narrowed(0.6)])]
    columns = {"boxes": [[[0.1, 0.1, 0.5, 0.5]]]}
    for episodes, precision in ((0, 0.6), (99, 0.6), (100, 0.0), (5000, 0.0), (5, 0.6)):
        reward.set_progress(episodes)
        assert reward.score(answer, **columns).terms["precision"][0] == pytest.approx(precision)
    for stage in CRITERIA:
        fixed = VisionR1(stage, switch_at=100)
        fixed.set_progress(1000)
        assert fixed.criteria == CRITERIA[stage]


def test_progress_is_state_and_not_an_option():
    reward = 2.0 * VisionR1(switch_at=100)
    reward.set_progress(150)
    again = from_dict(reward.to_dict())
    assert again == reward and again.children()[0].criteria == CRITERIA["loose"]
    again.set_state(json.loads(json.dumps(reward.get_state())))
    assert again.children()[0].criteria == CRITERIA["strict"]


# -- refusals --------------------------------------------------------------------------------------------------------
def test_options_are_checked():
    with pytest.raises(ValueError, match="stage must be one of 'loose', 'strict', 'raw', 'progressive', got 'soft'"):
        VisionR1("soft")
    with pytest.raises(ValueError, match="switch_at must be at least 0, got -1"):
        VisionR1(switch_at=-1)


def test_failures():
    good = np.array(RIGHT)
    answers = [good, good[0], 3, good, good, good, good * np.nan]
    right = [RIGHT, RIGHT, RIGHT, None, [[0.1, 0.2, 0.3]], [[0.3, 0.3, 0.1, 0.5]], RIGHT]
    scores = VisionR1().score(answers, boxes=right)
    assert scores.scored.tolist() == [True] + [False] * 6
    assert scores.failed.tolist() == [False, True, True, False, True, True, True]
    assert "boxes must be numbers [n, 4], got float64 [4]" in scores.reasons[1]
    assert "boxes must be numbers [n, 4], got float64 [1, 3]" in scores.reasons[4]
    assert "x0 < x1" in scores.reasons[5] and "boxes must be finite" in scores.reasons[6]
    (reason,) = VisionR1().score([good], boxes=[RIGHT], labels=[["a"]]).reasons
    assert reason == "ValueError: labels has 1 entries, but there are 3 boxes"
    with pytest.raises(ValueError, match="VisionR1 reads column 'boxes'; columns given: box"):
        VisionR1().score([good], box=[RIGHT])


def test_the_pure_function_agrees():
    boxes, right = np.array([*FAR, *RIGHT[:2]]), np.array(RIGHT)
    assert criterion_rewards(boxes, right) == score(boxes)[:2]
    assert criterion_rewards(boxes, right, criteria=CRITERIA["raw"], true_precision=True) == (0.5, pytest.approx(2 / 3))
