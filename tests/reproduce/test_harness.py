"""The harness: what is kept of a run, how it goes on, when a claim is reproduced, refuted or void; the command."""

import json
import math

import pytest

from aligngym.agents.callbacks import read_table
from aligngym.agents.registry import AGENTS
from aligngym.cli import main
from aligngym.reproduce import CLAIMS, claim
from aligngym.reproduce.harness import Claim, Curve, Effect, Result, kept, run_claim, settings_hash
from aligngym.reproduce.report import summary, table, write_report

SETTINGS = {"gain": 1.0, "budget": 10}


def make(run=None, **changes):
    """A claim whose arms are arithmetic."""

    def arms(seed, settings, networks):
        ours = settings["gain"] + 0.1 * seed
        return {"ours": ours, "theirs": 0.05 * seed, "ours@0": 0.0, "ours@1": ours, "odd": math.nan if seed else 1.0}

    fields = dict(
        key="demo", statement="Ours is better.", paper="here", run=run or arms, settings=SETTINGS, fast={"budget": 1},
        premises=(Effect("theirs leaves room", 0.9, "theirs"),), effects=(Effect("ours above", "ours", "theirs"),),
        curves=(Curve("path", "samples", {"ours": "ours"}),), notes="Nothing was calibrated.",
    )  # fmt: skip
    return Claim(**fields | changes)


def result(differences, premises=(0.5,) * 5):
    seeds = [{"a": d, "b": 0.0, "room": p} for d, p in zip(differences, premises, strict=True)]
    made = make(premises=(Effect("room", "room", 0.0),), effects=(Effect("a above b", "a", "b"),), curves=())
    return Result(made, seeds, SETTINGS, [1.0] * len(seeds))


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.1, 0.2, 0.3, 0.2, 0.1], "reproduced"),
        ([-0.1, 0.2, 0.3, -0.2, 0.1], "does not reproduce here"),
        ([-0.1, -0.2, -0.3, -0.2, -0.1], "does not reproduce here"),
        ([math.nan] * 5, "does not reproduce here"),
    ],
)
def test_verdict(differences, verdict):
    assert result(differences).verdict == verdict


def test_a_claim_is_void_where_the_baseline_does_not_fail_whatever_the_effects():
    for room in ([-0.1] * 5, [0.5, -0.5, 0.2, -0.2, 0.0], [math.nan] * 5):
        assert result([0.1, 0.2, 0.3, 0.2, 0.1], room).verdict == "void"


def test_every_effect_must_hold():
    effects = (Effect("ours above", "ours", "theirs"), Effect("theirs above", "theirs", "ours"))
    made = make(effects=effects)
    assert Result(made, [make().run(s, SETTINGS, None) for s in range(5)], SETTINGS, []).verdict != "reproduced"


def test_seeds_are_kept_and_only_missing_ones_run(tmp_path):
    ran = []

    def run(seed, settings, networks):
        ran.append(seed)
        return make().run(seed, settings, networks)

    first = run_claim(make(run), 2, tmp_path / "demo")
    again = run_claim(make(run), 4, tmp_path / "demo")
    assert ran == [0, 1, 2, 3]
    assert again.seeds[1].pop("odd") is not None and math.isnan(first.seeds[1].pop("odd"))  # null on disk, NaN again
    assert again.seeds[0] == first.seeds[0] and again.seeds[1] == first.seeds[1]
    record = json.loads((tmp_path / "demo" / "seed-1.json").read_text())
    assert record["settings"] == SETTINGS and record["numbers"]["odd"] is None and record["seed"] == 1


def test_other_settings_run_again(tmp_path, capsys):
    run_claim(make(), 2, tmp_path / "demo")
    other = run_claim(make(settings={"gain": 5.0, "budget": 10}), 2, tmp_path / "demo")
    assert [n["ours"] for n in other.seeds] == [5.0, 5.1]
    assert "other settings" in capsys.readouterr().err
    fast = run_claim(make(), 2, tmp_path / "demo", fast=True)
    assert fast.settings == {"gain": 1.0, "budget": 1} and fast.seeds[0]["ours"] == 1.0


def test_the_hash_is_of_key_settings_and_defaults_in_any_order():
    one = settings_hash(make(), {"a": 1, "b": {"c": 2}})
    assert one == settings_hash(make(), {"b": {"c": 2}, "a": 1})
    assert one != settings_hash(make(), {"a": 1, "b": {"c": 3}})
    assert one != settings_hash(make(key="other"), {"a": 1, "b": {"c": 2}})
    assert one != settings_hash(make(agents=("ddpo",)), {"a": 1, "b": {"c": 2}})


def test_an_interrupted_run_keeps_what_is_done_and_goes_on(tmp_path):
    def run(seed, settings, networks):
        if seed == 2 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        return make().run(seed, settings, networks)

    with pytest.raises(KeyboardInterrupt, match="2 seeds of demo"):
        run_claim(make(run), 4, tmp_path / "demo")
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["seed-0.json", "seed-1.json"]
    (tmp_path / "again").touch()
    whole, straight = run_claim(make(run), 4, tmp_path / "demo"), run_claim(make(), 4, tmp_path / "straight")
    assert [n["ours"] for n in whole.seeds] == [n["ours"] for n in straight.seeds]


def test_a_part_of_a_seed_is_measured_once_for_all_that_it_depends_on(tmp_path):
    calls = []

    def part(depends_on, value=1.0):
        return kept(tmp_path, "part", depends_on, lambda: calls.append(depends_on) or {"x": value, "odd": math.nan})

    first = part({"a": 1, "b": [2]})
    assert first["x"] == 1 and math.isnan(first["odd"])
    again = part({"b": [2], "a": 1}, value=5.0)
    assert again["x"] == 1 and math.isnan(again["odd"]) and len(calls) == 1
    assert part({"a": 1, "b": [3]}, value=5.0)["x"] == 5 and len(calls) == 2
    with pytest.raises(ZeroDivisionError):
        kept(tmp_path, "part", "other", lambda: {"x": 1 / 0})
    assert len(list(tmp_path.iterdir())) == 2


def test_one_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seeds=1"):
        run_claim(make(), 1, tmp_path)


def test_report(tmp_path):
    found = run_claim(make(), 5, tmp_path / "demo")
    text = write_report(found, tmp_path / "demo")
    assert "holds" in text and "+1.1" in text and "5 of 5 seeds agree" in text and text.endswith("verdict   reproduced")
    assert text == table(found)
    rows = read_table(tmp_path / "demo" / "results.csv")
    assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4] and rows[4]["ours"] == pytest.approx(1.4)
    page = (tmp_path / "demo" / "report.md").read_text()
    assert "# demo: reproduced" in page and "Nothing was calibrated." in page and '"gain": 1.0' in page
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 5000
    assert "for a look only" in table(run_claim(make(), 2, tmp_path / "demo"))


def test_what_cannot_be_measured_is_said(tmp_path):
    made = make(effects=(Effect("odd above", "odd", 0.0), Effect("odd below", 0.0, "odd")))
    text = table(run_claim(made, 3, tmp_path / "demo"))
    assert "not measurable in 2" in text and "does not reproduce here" in text
    assert dict((n, m) for n, m, _ in summary([{"x": 1.0}, {"x": math.nan}, {"x": 3.0}])) == {"x": 2.0}


@pytest.mark.parametrize("key", CLAIMS)
def test_every_claim_is_whole(key):
    one = claim(key)
    assert one.key == key and one.statement.endswith(".")
    assert one.premises and one.effects and one.notes and set(one.agents) <= AGENTS.keys()
    assert json.loads(json.dumps(one.settings)) == one.settings
    assert one.fast.keys() <= one.settings.keys() and one.fast != one.settings


def test_the_command_lists_claims_and_names_an_unknown_one(capsys):
    assert main(["reproduce"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CLAIMS)
    assert main(["reproduce", "nothing"]) == 2
    assert "unknown claim 'nothing'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["reproduce", "--help"])
    assert "void" in capsys.readouterr().out
