"""GUIGrounding-v0: what it shows, what it takes, how it judges; and the data it comes with."""

import hashlib
import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction
from PIL import Image

from aligngym.assets import gui_screens_path
from aligngym.envs.gui.build import KITS, split_of
from aligngym.envs.gui.grounding import answer_of
from aligngym.envs.gui.instructions import concepts, direct, functional, unambiguous
from aligngym.envs.gui.screens import Screens, load_screens, read_rows

SPLITS = ("train", "validation", "test")


def make(**options):
    return gym.make("GUIGrounding-v0", **{"split": "validation", **options}).unwrapped


def middle(box):
    return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]


def test_observation_is_the_screenshot_and_the_instruction() -> None:
    env = make()
    observation, _ = env.reset(seed=0, options={"prompt_index": 7})
    target = env.batch.targets[7]
    assert bytes(observation["instruction"]).rstrip(b"\0").decode() == target.instruction
    assert observation["screenshot"].shape == (288, 384, 3) and observation["screenshot"].std() > 0
    assert np.array_equal(observation["screenshot"], env.batch.screens.pixels(target.screen, 384, 288)[0])


@pytest.mark.parametrize("index", [0, 11, 50])
def test_the_middle_of_the_box_is_right_and_edges_count(index) -> None:
    env = make()
    x0, y0, x1, y1 = env.batch.targets[index].box
    outside = np.array([x1 + 0.02, (y0 + y1) / 2])
    for point, expected in (([*middle((x0, y0, x1, y1))], 1.0), ([x0, y0], 1.0), ([x1, y1], 1.0), (outside, 0.0)):
        env.reset(options={"prompt_index": index})
        # Edges are float32 in the data and in actions: compared in the same precision.
        _, reward, terminated, truncated, info = env.step(np.array([point], np.float32))
        assert (reward, terminated, truncated) == (expected, True, False)
        assert info["reward/accuracy"] == expected


def test_only_the_first_point_counts_for_accuracy() -> None:
    env = make(max_points=3)
    box = env.batch.targets[3].box
    right, wrong = middle(box), [1.0, 1.0] if box[2] < 0.9 else [0.0, 0.0]
    for first, second, expected in ((right, wrong, 1.0), (wrong, right, 0.0)):
        env.reset(options={"prompt_index": 3})
        _, reward, *_, info = env.step(np.array([first, second, [-1, -1]], np.float32))
        assert reward == expected
        assert len(json.loads(info["completion"])) == 2


def test_answers_end_at_the_first_row_with_a_negative_entry() -> None:
    assert answer_of(np.array([[0.1, 0.2], [0.3, -1], [0.5, 0.6]])).tolist() == [[0.1, 0.2]]
    assert answer_of(np.array([[-1, 0.2], [0.3, 0.1]])).shape == (0, 2)
    assert answer_of(np.array([[0.0, 1.0]])).tolist() == [[0.0, 1.0]]


def test_an_empty_answer_is_wrong_and_malformed_but_not_invalid() -> None:
    for reward, expected in (("point_in_box", 0.0), ("adaptive_exploration", -1.0)):
        env = make(max_points=2, reward=reward)
        env.reset(seed=0)
        _, paid, *_, info = env.step(np.full((2, 2), -1, np.float32))
        assert paid == expected and "invalid" not in info


@pytest.mark.parametrize("action", [np.full((1, 2), 1.5), np.full((1, 2), np.nan), np.zeros((2, 2)), np.zeros((1, 3))])
def test_actions_outside_the_space_are_refused(action) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action.astype(np.float32))


def test_adaptive_exploration_pays_by_rank() -> None:
    env = make(max_points=4, reward="adaptive_exploration")
    box = env.batch.targets[3].box
    away = [[0.97, 0.03], [0.03, 0.97], [0.91, 0.89]]
    assert not any(box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y in away)
    for rank in (1, 2, 3):
        points = [*away[: rank - 1], middle(box), *away[rank - 1 : 2]]
        env.reset(options={"prompt_index": 3})
        _, reward, *_ = env.step(np.array([*points, [-1, -1]], np.float32))
        assert reward == pytest.approx(1 + 1 / np.sqrt(3 * rank))


def test_rewards_get_the_facts_of_the_target() -> None:
    seen = {}

    def reward(completions, prompts, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.5] * len(completions)

    env = make(reward=reward)
    env.reset(seed=1)
    *_, info = env.step(np.array([[0.25, 0.75]], np.float32))
    assert {"box", "kind", "role", "name", "page", "kit"} <= seen.keys()
    assert seen["prompts"] == [info["prompt"]] and seen["completions"][0].tolist() == [[0.25, 0.75]]


def test_a_reward_that_fails_is_nan() -> None:
    def broken(completions, **_):
        raise RuntimeError("no judge")

    env = make(reward=broken)
    env.reset(seed=1)
    _, reward, *_, info = env.step(np.array([[0.25, 0.75]], np.float32))
    assert np.isnan(reward) and "no judge" in info["invalid"] and info["reward/accuracy"] in (0.0, 1.0)


def test_kinds_and_their_errors() -> None:
    env = make(kinds=["functional"])
    assert {t.kind for t in env.batch.targets} == {"functional"}
    with pytest.raises(ValueError, match=r"kinds is \['icon'\]"):
        make(kinds=["icon"])
    with pytest.raises(ValueError, match="split must be"):
        make(split="dev")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make(screens="/nowhere.parquet")
    with pytest.raises(ValueError, match="max_instruction_bytes=8"):
        make(max_instruction_bytes=8)


def test_render_draws_instruction_box_and_points() -> None:
    env = make(render_mode="rgb_array", max_points=2)
    env.reset(seed=0, options={"prompt_index": 5})
    before = env.render()
    box = env.batch.targets[5].box
    env.step(np.array([middle(box), [0.99, 0.99]], np.float32))
    after = env.render()
    assert before.dtype == np.uint8 and before.shape == after.shape and before.shape[0] > 288
    top = after.shape[0] - 288
    x, y = middle(box)
    assert after[top + int(y * 288), int(x * 384)].tolist() == [0, 150, 60]
    assert after[top + int(0.99 * 288), int(0.99 * 384)].tolist() == [220, 0, 40]
    assert (before[top:] == [0, 150, 60]).all(-1).sum() > 20


# -- the data ----------------------------------------------------------------------------------------------------------
def test_no_page_and_no_picture_is_in_two_splits() -> None:
    rows = {split: read_rows(gui_screens_path(split)) for split in SPLITS}
    pages = {s: {(r["kit"], r["page"]) for r in rows[s]} for s in SPLITS}
    pictures = {s: {hashlib.sha256(r["image"]["bytes"]).digest() for r in rows[s]} for s in SPLITS}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not pages[a] & pages[b] and not pictures[a] & pictures[b]
    for split in SPLITS:
        assert {split_of(kit, page) for kit, page in pages[split]} == {split}
    assert not {r["kit"] for r in rows["train"]} & {name for name, kit in KITS.items() if kit.test_only}
    assert len(pages["test"]) >= 40


def test_shells_of_training_pages_are_no_targets_of_tests() -> None:
    def targets(split):
        found = set()
        for row in read_rows(gui_screens_path(split)):
            if row["kit"] != "miniwob":
                elements = [row["elements"][i["element"]] for i in row["instructions"]]
                found |= {(row["kit"], e["role"], e["name"]) for e in elements}
        return found

    assert not targets("train") & (targets("test") | targets("validation"))


def test_the_data_have_both_kinds_many_views_and_fit() -> None:
    size = sum(gui_screens_path(split).stat().st_size for split in SPLITS)
    assert size < 20_000_000
    rows = [row for split in SPLITS for row in read_rows(gui_screens_path(split))]
    assert len({r["viewport"] for r in rows}) >= 6 and {r["theme"] for r in rows} == {"light", "dark", "tinted"}
    assert len({r["kit"] for r in rows}) == len(KITS)
    for row in rows:
        for element in row["elements"]:
            x0, y0, x1, y1 = element["box"]
            assert 0 <= x0 < x1 <= 1 + 1e-6 and 0 <= y0 < y1 <= 1 + 1e-6
            assert (x1 - x0) * 384 >= 7.99 and (y1 - y0) * 288 >= 7.99
    kinds = [i["kind"] for row in rows for i in row["instructions"]]
    assert kinds.count("direct") > 4000 and kinds.count("functional") > 1500


def test_functional_instructions_do_not_quote_the_name() -> None:
    for split in SPLITS:
        for row in read_rows(gui_screens_path(split)):
            for one in row["instructions"]:
                name = row["elements"][one["element"]]["name"]
                assert (name in one["text"]) == (one["kind"] == "direct") or len(name) <= 3


def test_instructions_are_unambiguous_on_their_screen() -> None:
    for row in read_rows(gui_screens_path("validation")):
        names = [e["name"].casefold() for e in row["elements"]]
        for one in row["instructions"]:
            if one["kind"] == "direct":
                assert names.count(names[one["element"]]) == 1


def test_concepts() -> None:
    assert len(concepts()) > 100
    assert "store what you typed" in functional("button", "Save changes")
    assert functional("text field", "Email") != functional("link", "Email")
    assert functional("link", "Piper Purus") == ()
    assert direct("button", "Save")[0] == "click the Save button"
    assert direct("unheard of", "Save")[0] == "click Save"
    assert unambiguous([("button", "Save"), ("link", "save"), ("button", "Submit"), ("button", "Post")]) == [
        (False, False), (False, False), (True, False), (True, False)
    ]  # fmt: skip


# -- other data --------------------------------------------------------------------------------------------------------
def test_other_sizes_are_scaled_into_the_corner(tmp_path) -> None:
    """A wide picture with a red square: after scaling the square is where the scaled box says."""
    wide = np.full((100, 400, 3), 255, np.uint8)
    wide[40:60, 300:340] = [255, 0, 0]
    Image.fromarray(wide).save(tmp_path / "wide.png")
    sample = {"img_filename": "wide.png", "bbox": [300, 40, 40, 20], "instruction": "the red one", "data_type": "icon"}
    (tmp_path / "screenspot_web.json").write_text(json.dumps([{**sample, "data_source": "web"}]))
    env = make(screens=str(tmp_path))
    observation, _ = env.reset(seed=0)
    *_, info = env.step(np.array([[0.8, 0.167]], np.float32))
    x0, y0, x1, y1 = info["box"]
    red = (np.abs(observation["screenshot"].astype(int) - [255, 0, 0]) < 20).all(-1)
    inside = red[round(y0 * 288) + 3 : round(y1 * 288) - 3, round(x0 * 384) + 3 : round(x1 * 384) - 3]
    assert inside.all() and inside.size > 100 and red.sum() < 1.3 * (x1 - x0) * 384 * (y1 - y0) * 288
    assert (observation["screenshot"][100:] == 127).all()
    assert info["columns"] == {"data_source": "web", "kind": "icon"} and info["reward/accuracy"] == 1


def test_screenspot_in_its_published_forms(tmp_path) -> None:
    picture = Image.fromarray(np.zeros((200, 400, 3), np.uint8))
    for name in ("plain", "pro/images/vscode", "pro/annotations", "plain/screenspot_imgs"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    picture.save(tmp_path / "plain/screenspot_imgs/a.png")
    picture.save(tmp_path / "pro/images/vscode/b.png")
    plain = {"img_filename": "a.png", "bbox": [100, 50, 40, 20], "instruction": "close", "data_type": "text"}
    (tmp_path / "plain/screenspot_desktop_v2.json").write_text(json.dumps([{**plain, "data_source": "macos"}] * 2))
    pro = {
        "img_filename": "vscode/b.png", "bbox": [100, 50, 140, 70], "img_size": [400, 200], "instruction": "run",
        "id": "vscode_0", "application": "vscode", "platform": "linux", "ui_type": "icon", "group": "Dev",
    }  # fmt: skip
    (tmp_path / "pro/annotations/vscode_linux.json").write_text(json.dumps([pro]))
    for folder, kind, count in (("plain", "text", 2), ("pro", "icon", 1)):
        screens = load_screens(tmp_path / folder)
        assert len(screens.images) == 1 and len(screens.targets) == count
        assert screens.targets[0].box == pytest.approx((0.25, 0.25, 0.35, 0.35))
        assert screens.targets[0].kind == kind
    broken = {"no": "bbox"}
    (tmp_path / "plain/screenspot_web.json").write_text(json.dumps([broken]))
    with pytest.raises(ValueError, match=r"sample 0 of .*screenspot_web.json is not of ScreenSpot's form"):
        load_screens(tmp_path / "plain")
    (tmp_path / "plain/screenspot_web.json").write_text(json.dumps([{**plain, "bbox": [390, 50, 40, 20]}]))
    with pytest.raises(ValueError, match="not inside its image"):
        load_screens(tmp_path / "plain")
    (tmp_path / "plain/screenspot_web.json").write_text(json.dumps([{**plain, "img_filename": "c.png"}]))
    with pytest.raises(FileNotFoundError, match=r"c\.png"):
        load_screens(tmp_path / "plain")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither"):
        load_screens(tmp_path / "empty")


def test_columns_that_rewards_are_called_with_are_refused() -> None:
    screens = load_screens(None, "validation")
    clash = [t.__class__(t.screen, t.instruction, t.box, t.kind, {"box": "1"}) for t in screens.targets[:2]]
    with pytest.raises(ValueError, match=r"columns \['box'\]"):
        make(screens=Screens(screens.images, clash, "mine"))
