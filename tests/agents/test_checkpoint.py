"""Checkpoints: bitwise round trips, refusals that say what to do, and no moment at which both versions are lost."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aligngym.agents import checkpoint
from aligngym.agents.checkpoint import (
    CheckpointError,
    dump_json,
    flatten_optimizer,
    load_checkpoint,
    load_json,
    read_generator,
    restore_optimizer,
    save_checkpoint,
    write_generator,
)

STATE = {
    "episodes": 12,
    "loss": [0.1 + 0.2, math.inf, -math.inf],
    "name": "höher\x00",
    "none": None,
    "nested": {"ok": True},
}


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 4, generator=generator)
    return {
        "policy": {
            "weight": weight,
            "view": weight.T[1:],
            "tied": weight,
            "half": weight.bfloat16(),
            "scalar": weight[0, 0],
        },
        "reference": {},
        "counts": {"n": torch.arange(5), "flags": torch.tensor([True, False])},
    }


def assert_equal_tensors(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].keys() == two[key].keys()
        for name, value in one[key].items():
            assert value.dtype == two[key][name].dtype and torch.equal(value, two[key][name])


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "run" / "last"
    save_checkpoint(folder, tensors(), STATE)
    return folder


def test_a_round_trip_is_bitwise_and_the_folder_holds_only_safetensors_and_json(saved):
    loaded, state = load_checkpoint(saved)
    assert_equal_tensors(loaded, tensors())
    assert state == STATE
    names = {path.name for path in saved.iterdir()}
    assert names == {"policy.safetensors", "reference.safetensors", "counts.safetensors", "state.json", "manifest.json"}
    assert [path.name for path in saved.parent.iterdir()] == ["last"]
    assert json.loads((saved / "manifest.json").read_text())["schema"] == 1


def test_a_checkpoint_is_replaced_as_a_whole(saved):
    save_checkpoint(saved, {"policy": tensors(1)["policy"]}, {"episodes": 24}, schema=2)
    loaded, state = load_checkpoint(saved, schema=2)
    assert_equal_tensors(loaded, {"policy": tensors(1)["policy"]})
    assert state == {"episodes": 24} and [path.name for path in saved.parent.iterdir()] == ["last"]


def test_a_link_to_a_checkpoint_stays_one(saved):
    link = saved.parent / "best"
    link.symlink_to(saved)
    save_checkpoint(link, {}, {"episodes": 1})
    assert link.is_symlink() and load_checkpoint(saved) == ({}, {"episodes": 1})


@pytest.mark.parametrize("name", ["policy.safetensors", "counts.safetensors", "state.json"])
def test_a_single_wrong_bit_is_refused(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=rf"the file {name} .* is damaged .* load an earlier checkpoint"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["policy.safetensors", "state.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"is incomplete, {name} is missing"):
        load_checkpoint(saved)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"is no checkpoint \(it has no manifest.json\): give the folder"):
            load_checkpoint(folder)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"schema": 1, "sha256": {"../x": "0"}}', '{"schema": 1, "sha256": {}}', "\xff"]
)
def test_a_broken_manifest_is_refused_but_may_be_replaced(saved, content):
    (saved / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"manifest.json of the checkpoint .* cannot be read"):
        load_checkpoint(saved)
    save_checkpoint(saved, tensors(), STATE)
    assert load_checkpoint(saved)[1] == STATE


def test_files_with_right_hashes_and_wrong_content_are_refused(saved):
    (saved / "policy.safetensors").write_bytes(b"nonsense")
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["sha256"]["policy.safetensors"] = checkpoint._sha256(saved / "policy.safetensors")
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"policy.safetensors of the checkpoint .* cannot be read"):
        load_checkpoint(saved)


def test_a_newer_schema_is_refused_and_an_older_one_is_not(tmp_path):
    save_checkpoint(tmp_path / "new", {}, {}, schema=3)
    with pytest.raises(
        CheckpointError, match="has schema 3, but this version of aligngym reads up to 2: update aligngym"
    ):
        load_checkpoint(tmp_path / "new", schema=2)
    assert load_checkpoint(tmp_path / "new", schema=4) == ({}, {})


def test_files_of_others_are_never_deleted(saved, tmp_path):
    (saved / "notes.txt").write_text("mine")
    home = tmp_path / "home"
    home.mkdir()
    (home / "model.safetensors").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for folder, message in (
        (saved, "holds notes.txt"),
        (home, "holds model.safetensors"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(folder, {}, {})
    assert (saved / "notes.txt").exists() and load_checkpoint(saved)[1] == STATE
    (tmp_path / "empty").mkdir()
    save_checkpoint(tmp_path / "empty", {}, {})


@pytest.mark.parametrize("key", ["", "../policy", ".hidden", "a/b"])
def test_keys_are_file_names(tmp_path, key):
    with pytest.raises(ValueError, match="expected the name of a file"):
        save_checkpoint(tmp_path / "x", {key: {}}, {})
    assert not (tmp_path / "x").exists()


def test_a_state_that_json_cannot_hold_leaves_the_old_checkpoint(saved):
    for bad in ({"x": object()}, {"x": {1: 2}}, {"x": torch.zeros(1)}):
        with pytest.raises(TypeError):
            save_checkpoint(saved, tensors(1), bad)
    assert load_checkpoint(saved)[1] == STATE


KILL = """
import os, signal, sys
import torch
from aligngym.agents import checkpoint

real, left = os.replace, [int(sys.argv[2])]
def replace(*args):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    real(*args)
checkpoint.os.replace = replace
checkpoint.save_checkpoint(sys.argv[1], {"policy": {"weight": torch.ones(2)}}, {"episodes": 99})
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_before_either_rename_the_old_checkpoint_is_there(saved, renames):
    package = str(Path(checkpoint.__file__).parents[2])
    path = os.pathsep.join([*sys.path, package])
    child = subprocess.run(
        [sys.executable, "-c", KILL, str(saved), str(renames)], env={**os.environ, "PYTHONPATH": path}
    )
    assert child.returncode == -signal.SIGKILL
    loaded, state = load_checkpoint(saved)
    assert_equal_tensors(loaded, tensors())
    assert state == STATE
    save_checkpoint(saved, {}, {"episodes": 100})
    assert load_checkpoint(saved)[1] == {"episodes": 100}
    assert [path.name for path in saved.parent.iterdir()] == ["last"]


def test_killed_after_both_renames_the_new_checkpoint_is_there(saved, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *args, **kwargs: None)
    save_checkpoint(saved, {}, {"episodes": 99})
    monkeypatch.undo()
    assert sorted(path.name for path in saved.parent.iterdir()) == [".last.previous", "last"]
    assert load_checkpoint(saved)[1] == {"episodes": 99}
    assert [path.name for path in saved.parent.iterdir()] == ["last"]


# Optimisers


def trained(optimizer_class, steps, seed=0, **kwargs):
    """A small regression after some steps, and a function that makes further ones."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 2, generator=generator).requires_grad_()
    bias = torch.zeros(2, requires_grad=True)
    x, y = torch.randn(16, 4, generator=generator), torch.randn(16, 2, generator=generator)
    groups = [{"params": [weight]}, {"params": [bias], "lr": 3e-2}]
    optimizer = optimizer_class(groups, **{"lr": 1e-2, **kwargs})

    def go(count):
        for _ in range(count):
            optimizer.zero_grad()
            ((x @ weight + bias - y) ** 2).mean().backward()
            optimizer.step()

    go(steps)
    return weight, bias, optimizer, go


@pytest.mark.parametrize(
    ("optimizer_class", "kwargs"),
    [
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.8, 0.95)}),
        (torch.optim.AdamW, {"lr": torch.tensor(1e-2), "foreach": False}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {}),
    ],
)
@pytest.mark.parametrize("steps", [0, 5])
def test_an_optimizer_goes_on_bit_for_bit(tmp_path, optimizer_class, kwargs, steps):
    weight, bias, optimizer, go = trained(optimizer_class, steps, **kwargs)
    flat, plain = flatten_optimizer(optimizer)
    save_checkpoint(
        tmp_path / "c", {"optimizer": flat, "policy": {"weight": weight, "bias": bias}}, {"optimizer": plain}
    )
    go(5)

    loaded, state = load_checkpoint(tmp_path / "c")
    weight2, bias2, optimizer2, go2 = trained(optimizer_class, 1, **kwargs)
    with torch.no_grad():
        weight2.copy_(loaded["policy"]["weight"])
        bias2.copy_(loaded["policy"]["bias"])
    restore_optimizer(optimizer2, loaded["optimizer"], state["optimizer"])
    go2(5)
    assert torch.equal(weight, weight2) and torch.equal(bias, bias2)
    saved, restored = optimizer.state_dict(), optimizer2.state_dict()
    assert saved["param_groups"] == restored["param_groups"]
    for index, values in saved["state"].items():
        for key, value in values.items():
            again = restored["state"][index][key]
            assert torch.equal(value, again) if isinstance(value, torch.Tensor) else value == again


def test_an_optimizer_of_other_parameters_is_refused():
    flat, plain = flatten_optimizer(trained(torch.optim.Adam, 2)[2])
    with pytest.raises(CheckpointError, match=r"groups of \[1\] parameters, the checkpoint of \[1, 1\]"):
        restore_optimizer(torch.optim.Adam([torch.zeros(4, 2)]), flat, plain)
    other = torch.optim.Adam([{"params": [torch.zeros(5, 2)]}, {"params": [torch.zeros(2)]}])
    with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 has shape \(4, 2\) .* parameter has \(5, 2\)"):
        restore_optimizer(other, flat, plain)


# Random generators and JSON


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox])
def test_numpy_generators_go_on_where_they_stood(bits):
    generator = np.random.Generator(bits(3))
    generator.integers(10, size=3, dtype=np.int32)  # leaves half of a 64-bit number behind
    again = read_generator(load_json(dump_json(write_generator(generator))))
    assert (generator.integers(10, size=7, dtype=np.int32) == again.integers(10, size=7, dtype=np.int32)).all()
    assert (generator.standard_normal(100) == again.standard_normal(100)).all()


def test_torch_generators_go_on_where_they_stood():
    generator = torch.Generator().manual_seed(3)
    torch.randn(7, generator=generator)
    again = read_generator(load_json(dump_json(write_generator(generator))))
    assert torch.equal(torch.randn(50, generator=generator), torch.randn(50, generator=again))


def test_unknown_generators_are_refused():
    with pytest.raises(CheckpointError, match="the random generator 'SFC64' is unknown, expected one of PCG64"):
        read_generator(write_generator(np.random.Generator(np.random.SFC64(0))))


def test_json_keeps_every_float_and_is_strict():
    values = {
        "a": [math.nan, math.inf, -math.inf, 0.1, 5e-324, -0.0],
        "b": (1, 2**70),
        "c": np.float32(0.1),
        "d": np.int64(3),
    }
    values["e"] = np.float64("nan")
    text = dump_json(values)
    again = load_json(text)
    assert math.isnan(again["a"][0]) and math.isnan(again["e"]) and again["a"][1:] == values["a"][1:]
    assert math.copysign(1, again["a"][5]) == -1
    assert again["b"] == [1, 2**70] and again["c"] == float(np.float32(0.1)) and again["d"] == 3
    assert "NaN" not in text and "Infinity" not in text
    with pytest.raises(TypeError, match="the key 3 is a int, but JSON has only strings"):
        dump_json({3: 4})
