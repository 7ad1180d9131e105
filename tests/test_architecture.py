"""The layout holds: imports run one way, light packages stay light, the wheel is whole."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from starec_env._moved import _MOVED  # noqa: PLC2701

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "starec_env": ROOT / "starec_env",
    "starec_agents": ROOT / "agents" / "starec_agents",
    "starec_training": ROOT / "training" / "starec_training",
    "starec_eval": ROOT / "eval" / "starec_eval",
}
ALLOWED = {
    "starec_env": set(),
    "starec_agents": {"starec_env"},
    "starec_training": {"starec_env", "starec_agents"},
    "starec_eval": {"starec_env", "starec_agents"},
}
HEAVY = {"torch", "trl", "transformers", "ray", "peft", "datasets"}


def imported(path: Path) -> set[str]:
    """Top-level names that a module imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    for path in PACKAGES[package].rglob("*.py"):
        foreign = imported(path) & set(PACKAGES) - {package} - ALLOWED[package]
        assert not foreign, f"{path} imports {foreign}"


@pytest.mark.parametrize("package", ["starec_env", "starec_agents", "starec_eval"])
def test_importing_a_package_pulls_in_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & HEAVY
    if package == "starec_env":
        assert not loaded & {"pyarrow", "langgraph", "openai", "rich", "click", "pandas", "scipy"}


@pytest.mark.parametrize("old", sorted(_MOVED))
def test_a_module_that_moved_is_found_at_its_old_name_with_a_warning(old: str) -> None:
    package, _, name = old.rpartition(".")
    code = f"from {package} import {name}; print({name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _MOVED[old] and f"DeprecationWarning: {old} is {_MOVED[old]} now" in done.stderr


def test_the_wheel_holds_all_four_packages_and_the_bundled_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for package in PACKAGES:
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    assert any(name.startswith("starec_env/data/bundled/ml-latest-small") for name in names)
    assert any("LICENSE-ml-latest-small" in name for name in names)
    assert not any(name.startswith(("tests/", "eval/", "agents/", "training/")) for name in names)
    assert {"starec_agents/nano/starec-nano.gguf", "starec_agents/nano/model.safetensors"} <= set(names)
    assert wheel.stat().st_size < 20_000_000
