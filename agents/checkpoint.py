"""Checkpoints: a folder of safetensors and JSON with a manifest of hashes, replaced as a whole or not at all.

========================  ==========================================================================
file                      holds
========================  ==========================================================================
``<key>.safetensors``     the tensors of one key (``policy``, ``optimizer``, ...)
``state.json``            everything else: config, counters, random generators, environment state
``manifest.json``         the schema version and the SHA-256 of each other file
========================  ==========================================================================

Nothing is pickled: loading a checkpoint runs no code that it brings.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST, STATE = "manifest.json", "state.json"
BIT_GENERATORS = {c.__name__: c for c in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox)}
NON_FINITE = "non-finite"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or must not be overwritten; the message says what to do."""


def save_checkpoint(
    folder: str | Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, schema: int = 1
) -> None:
    """Write a checkpoint beside ``folder`` and rename it into place once it is complete and on the disk.

    Killed at any moment, it leaves either the old checkpoint or the new one to :func:`load_checkpoint`.

    Args:
        folder: the checkpoint; an older one there is replaced.
        tensors: by file and name. Tensors that share memory are stored apart.
        state: JSON types only (tuples become lists, numpy scalars plain numbers); floats may be NaN or infinite.
        schema: version of the layout of ``tensors`` and ``state``.

    Raises:
        CheckpointError: if ``folder`` holds files that no checkpoint wrote; they would be lost.
        TypeError: if ``state`` holds something that JSON cannot.
    """
    folder = Path(folder).resolve()
    text = dump_json(state)
    _recover(folder)
    _refuse_foreign_files(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed while writing
    fresh.mkdir()
    for key, values in tensors.items():
        if not key or Path(key).name != key or key.startswith("."):
            raise ValueError(f"tensors has the key {key!r}, expected the name of a file without its suffix")
        own = {name: value.detach().cpu().clone().contiguous() for name, value in values.items()}
        save_file(own, fresh / f"{key}.safetensors")
    (fresh / STATE).write_text(text, encoding="utf-8")
    hashes = {path.name: _sha256(path) for path in sorted(fresh.iterdir())}
    (fresh / MANIFEST).write_text(dump_json({"schema": schema, "sha256": hashes}), encoding="utf-8")
    for path in (*fresh.iterdir(), fresh):
        _to_disk(path)
    _swap(fresh, folder)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of one file, on the CPU, and the text in its header.

    Raises:
        FileNotFoundError: if there is no such file.
        SafetensorError: if it is none of safetensors, or damaged.
    """
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118, no mapping


def load_checkpoint(folder: str | Path, *, schema: int = 1) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read and verify a checkpoint.

    Args:
        folder: what :func:`save_checkpoint` wrote.
        schema: the newest version that the caller understands.

    Returns:
        the tensors, on the CPU, and the state.

    Raises:
        CheckpointError: if it is missing, incomplete, changed since it was written, or of a newer schema.
    """
    folder = Path(folder).resolve()
    _recover(folder)
    written, hashes = _read_manifest(folder)
    if written > schema:
        raise CheckpointError(
            f"the checkpoint {folder} has schema {written}, but this version of aligngym reads up to "
            f"{schema}: update aligngym"
        )
    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    for name, expected in hashes.items():
        with _damage_reported(folder, name):
            if _sha256(folder / name) != expected:
                raise CheckpointError(
                    f"the file {name} of the checkpoint {folder} is damaged (its SHA-256 is not the manifest's): load "
                    "an earlier checkpoint or copy this one again"
                )
            if name == STATE:
                state = load_json((folder / name).read_text(encoding="utf-8"))
            else:
                tensors[name.removesuffix(".safetensors")] = load_file(folder / name)
    return tensors, state


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimiser as tensors by name and JSON; :func:`restore_optimizer` is the inverse."""
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"state": {}, "groups": []}
    for index, values in saved["state"].items():
        tensors |= {f"state.{index}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        plain["state"][str(index)] = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
    for index, group in enumerate(saved["param_groups"]):
        tensors |= {f"group.{index}.{k}": v for k, v in group.items() if isinstance(v, Tensor)}
        plain["groups"].append({k: v for k, v in group.items() if not isinstance(v, Tensor)})
    return tensors, plain


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """Give ``optimizer``, built over the same parameters, the state that :func:`flatten_optimizer` took.

    Raises:
        CheckpointError: if the parameters are not as many, or not of the shapes, that the state was taken from.
    """
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain["state"].items()}
    groups = [dict(group) for group in plain["groups"]]
    for name, value in tensors.items():
        kind, number, key = name.split(".", 2)
        target = state[int(number)] if kind == "state" else groups[int(number)]
        target[key] = value.clone()
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != [len(group["params"]) for group in groups]:
        raise CheckpointError(
            f"the optimizer has groups of {sizes} parameters, the checkpoint of {[len(g['params']) for g in groups]}: "
            "resume with the policy and the config that were saved"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape:
                raise CheckpointError(
                    f"the optimizer's {key} of parameter {index} has shape {tuple(value.shape)} in the checkpoint, but "
                    f"the parameter has {tuple(parameters[index].shape)}: resume with the policy that was saved"
                )
    for group, current in zip(groups, optimizer.param_groups, strict=True):
        group |= {k: tuple(v) for k, v in group.items() if isinstance(current.get(k), tuple)}  # JSON has lists only
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def write_generator(generator: np.random.Generator | torch.Generator) -> dict[str, Any]:
    """The state of a random generator, as JSON types."""
    if isinstance(generator, torch.Generator):
        data = base64.b64encode(generator.get_state().numpy().tobytes()).decode()
        return {"library": "torch", "device": str(generator.device), "state": data}
    return {"library": "numpy", "state": _lists(generator.bit_generator.state)}


def read_generator(state: Mapping[str, Any]) -> Any:
    """A generator that goes on where the one given to :func:`write_generator` stood.

    Raises:
        CheckpointError: if the state is of an unknown kind.
    """
    if state["library"] == "torch":
        data = np.frombuffer(base64.b64decode(state["state"]), np.uint8)
        generator = torch.Generator(state["device"])
        generator.set_state(torch.from_numpy(data.copy()))
        return generator
    name = state["state"]["bit_generator"]
    if name not in BIT_GENERATORS:
        raise CheckpointError(f"the random generator {name!r} is unknown, expected one of {', '.join(BIT_GENERATORS)}")
    bits = BIT_GENERATORS[name]()
    bits.state = state["state"]
    return np.random.Generator(bits)


def check_own_teacher(folder: str | Path, expected: bool, teacher: object | None) -> None:
    """Compare the teacher given to ``load`` with what the checkpoint says of one of the user's own.

    Raises:
        ValueError: if one is missing, or was not expected.
    """
    if expected != (teacher is not None):
        wanted = "needs the teacher that the agent was given" if expected else "takes no teacher"
        raise ValueError(f"{folder} {wanted}: load(folder, teacher=...) is for teachers of your own")


def dump_json(values: Any) -> str:
    """Strict JSON in which NaN and the infinities survive, as ``{"non-finite": "nan"}``.

    Raises:
        TypeError: for a value or a key that JSON does not have.
    """
    return json.dumps(_encoded(values), indent=1, allow_nan=False, ensure_ascii=True)


def load_json(text: str) -> Any:
    """Inverse of :func:`dump_json`."""
    return json.loads(text, object_hook=lambda d: float(d[NON_FINITE]) if d.keys() == {NON_FINITE} else d)


def _encoded(values: Any) -> Any:
    if isinstance(values, np.generic):
        values = values.item()
    if isinstance(values, float) and not math.isfinite(values):
        return {NON_FINITE: str(values)}
    if isinstance(values, Mapping):
        if wrong := [k for k in values if not isinstance(k, str)]:
            raise TypeError(f"the key {wrong[0]!r} is a {type(wrong[0]).__name__}, but JSON has only strings")
        return {k: _encoded(v) for k, v in values.items()}
    return [_encoded(v) for v in values] if isinstance(values, list | tuple) else values


def _lists(values: Any) -> Any:
    if isinstance(values, dict):
        return {k: _lists(v) for k, v in values.items()}
    return values.tolist() if isinstance(values, np.ndarray | np.generic) else values


def _read_manifest(folder: Path) -> tuple[int, dict[str, str]]:
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is no checkpoint (it has no {MANIFEST}): give the folder that save() wrote")
    with _damage_reported(folder, MANIFEST):
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        schema, hashes = int(manifest["schema"]), dict(manifest["sha256"])
        if any(Path(name).name != name for name in hashes) or STATE not in hashes:
            raise ValueError(f"expected the names of files beside it, {STATE} among them")
    return schema, hashes


@contextmanager
def _damage_reported(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the checkpoint {folder} is incomplete, {name} is missing: load an earlier one or copy this one again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"the file {name} of the checkpoint {folder} cannot be read ({error}): load an earlier one or copy this "
            "one again"
        ) from error


def _refuse_foreign_files(folder: Path) -> None:
    """Replacing a folder deletes what is in it, hence only a checkpoint may be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"cannot write a checkpoint to {folder}: it is a file; give another folder")
    present = {path.name for path in folder.iterdir()}
    if MANIFEST in present:
        present = {name for name in present - {MANIFEST, STATE} if not name.endswith(".safetensors")}
    if present:
        raise CheckpointError(
            f"cannot replace {folder}: it holds {', '.join(sorted(present)[:3])}, which no checkpoint wrote; give "
            "another folder or move that away"
        )


def _swap(fresh: Path, folder: Path) -> None:
    """Put ``fresh`` in the place of ``folder``. Between the two renames the old one waits where ``_recover`` looks."""
    previous = _previous(folder)
    if folder.exists():
        os.replace(folder, previous)
    os.replace(fresh, folder)
    _to_disk(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _recover(folder: Path) -> None:
    """Finish what a killed :func:`_swap` left behind."""
    previous = _previous(folder)
    if not previous.exists():
        return
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        os.replace(previous, folder)


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Force a file or a folder's entries onto the disk: a rename must not arrive there before what it names."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
