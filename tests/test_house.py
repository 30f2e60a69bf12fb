"""The house: who may import whom, what is packaged, what importing the package costs and registers."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import gymnasium
import pytest

import aligngym
from aligngym.envs import ENVIRONMENTS, register, registered_ids

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OUTSIDE = {"tests", "examples", "benchmarks", "scripts", "docs", "build", "dist", "runs"}

SHARED = {"answers", "assets", "tabular", "trajectories"}
MAY_IMPORT = {
    "answers": set(),
    "assets": set(),
    "tabular": set(),
    "trajectories": set(),
    "rewards": {"answers", "assets"},
    "envs": {"rewards"} | SHARED,
    "wrappers": {"rewards"} | SHARED,
    "agents": SHARED,
}
EVERYTHING = {"", "catalogue", "reproduce", *MAY_IMPORT}  # "" is the root module
HEAVY = {"torch", "transformers", "tokenizers", "peft", "stable_baselines3", "pandas", "matplotlib", "mujoco"}


def sources(*, everywhere: bool = False) -> list[Path]:
    """The Python files of the package; with ``everywhere`` those of tests, examples and scripts too."""
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    kept = (p for p in files if not any(part.startswith(".") for part in p.parts))
    skipped = {"build", "dist", "runs"} if everywhere else OUTSIDE
    return sorted(p for p in kept if p.parts[0] not in skipped)


def component(module: str) -> str:
    """``envs`` of ``aligngym.envs.text``; an empty string for the root."""
    return ".".join(module.split(".")[1:2])


def module_name(path: Path) -> str:
    parts = ("aligngym", *path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_components(source: str, path: Path) -> set[str]:
    """Which parts of the package a file imports, anywhere in it: functions and TYPE_CHECKING blocks included."""
    package = ["aligngym", *path.parent.parts]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {component(alias.name) for alias in node.names if alias.name.split(".")[0] == "aligngym"}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if module == "aligngym":
                names = {alias.name for alias in node.names}
                found |= names & MAY_IMPORT.keys() or {""}
            elif module.startswith("aligngym."):
                found.add(component(module))
    return found


def python(code: str) -> str:
    """What a fresh interpreter prints, started outside the repository."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("path", sources(), ids=str)
def test_imports_keep_to_the_layers(path: Path) -> None:
    own = component(module_name(path))
    allowed = MAY_IMPORT.get(own, EVERYTHING) | {own}
    assert imported_components((ROOT / path).read_text(encoding="utf-8"), path) <= allowed


@pytest.mark.parametrize(
    "source",
    [
        "from ..envs import generation",
        "from .. import envs",
        "import aligngym.envs.text",
        "from aligngym.envs import register",
        "def late():\n    from ..envs.text import llm_align",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..envs import generation",
    ],
)
def test_the_layer_check_sees_every_kind_of_import(source: str) -> None:
    assert imported_components(source, Path("agents/ppo.py")) == {"envs"}


@pytest.mark.parametrize("path", sources(), ids=str)
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "aligngym" for alias in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] != "aligngym"


@pytest.mark.parametrize("path", sources(everywhere=True), ids=str)
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert source.count("\n") < 400
    if path.name != "conftest.py":
        assert ast.get_docstring(ast.parse(source)), "no module docstring"


def test_packages_listed_are_the_packages_there_are() -> None:
    there = {module_name(path) for path in sources() if path.name == "__init__.py"}
    assert sorted(there) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_no_module_is_imported_twice() -> None:
    files: dict[str, list[str]] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        # torch makes modules whose __file__ is a bare name, of no file at all.
        if file and Path(file).is_absolute() and Path(file).resolve().is_relative_to(ROOT):
            path = Path(file).resolve().relative_to(ROOT)
            if path.parts[0] not in OUTSIDE and not path.parts[0].startswith("."):
                files.setdefault(str(path), []).append(name)
    assert files["__init__.py"] == ["aligngym"]
    assert files == {path: [module_name(Path(path))] for path in files}


def test_tests_are_not_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_import_loads_nothing_heavy() -> None:
    assert python(f"import sys, aligngym; print(*({HEAVY!r} & sys.modules.keys()))").split() == []


def test_every_environment_is_registered_plain_and_prefixed() -> None:
    register()  # a second call is harmless
    for name in ENVIRONMENTS:
        specs = [gymnasium.spec(env_id) for env_id in registered_ids(name)]
        assert specs[0].id == name and {s.namespace for s in specs} >= {"RewardDesign" if "/" in name else "aligngym"}
        assert len({(s.entry_point, s.vector_entry_point) for s in specs}) == 1


def test_make_needs_no_import() -> None:
    made = python("import gymnasium as gym; print(gym.make('aligngym:LLMAlign-v0').unwrapped)")
    assert "LLMAlignEnv" in made


def test_public_names_are_lazy_and_all_there() -> None:
    for name in aligngym.__all__:
        assert getattr(aligngym, name) is not None
    assert set(aligngym.__all__) <= set(dir(aligngym))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = aligngym.nothing_of_the_kind


def test_type_checkers_see_the_lazy_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: f".{node.module}"
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == aligngym._LAZY
    assert sorted({*seen, "__version__"}) == sorted(aligngym.__all__)


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0].lower().replace("_", "-") for line in requirements}


def test_constraints_pin_every_direct_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", pin) for pin in pins)
    assert pins == sorted(pins, key=lambda pin: pin.split("==")[0])
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = requirement_names([*PROJECT["project"]["dependencies"], *(r for name in extras for r in extras[name])])
    assert wanted - requirement_names(pins) == {"aligngym"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"^TORCH \?= (.*)$", makefile, re.MULTILINE) == [pin for pin in pins if pin.startswith("torch==")]


def test_extras() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["all"] == [f"aligngym[{','.join(name for name in extras if name not in ('all', 'dev'))}]"]
    assert {entry.extra for entry in ENVIRONMENTS.values()} - {None} <= extras.keys()


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    # Built from a copy: setuptools leaves a build folder, whose stale files would be in the next wheel.
    copy = tmp_path / "source"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", *OUTSIDE))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(command, cwd=copy, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (wheel,) = (copy / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    embedded = [path for path in (ROOT / "assets").glob("*/*") if "__pycache__" not in path.parts]
    data = {f"aligngym/{path.relative_to(ROOT)}" for path in embedded}
    assert names == {f"aligngym/{path}" for path in sources()} | data | {"aligngym/py.typed"}
    assert {"aligngym/assets/stories/model.safetensors", "aligngym/assets/prompts/eval.jsonl"} <= names
