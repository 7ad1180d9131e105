"""The layout holds: imports run one way, light packages stay light, the wheel is whole."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import starec
from starec_env import load_dataset
from starec_env._moved import _MOVED  # noqa: PLC2701

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "starec": ROOT / "starec",
    "starec_env": ROOT / "starec_env",
    "starec_agents": ROOT / "agents" / "starec_agents",
    "starec_training": ROOT / "training" / "starec_training",
    "starec_eval": ROOT / "eval" / "starec_eval",
}
ALLOWED = {
    "starec": {"starec_env", "starec_agents", "starec_eval"},
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


def lines_of_code(path: Path) -> int:
    """How many lines a module has but blank ones, comments, docstrings and imports."""
    text = path.read_text()
    lines = {number for number, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(ast.parse(text)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def test_each_adapter_is_short() -> None:
    folder = PACKAGES["starec_agents"] / "adapters"
    lengths = {path.stem: lines_of_code(path) for path in folder.glob("[a-z]*.py")}
    assert lengths.keys() == {"inspect_task", "openenv_server", "trl_tools", "verifiers_env"}
    assert max(lengths.values()) <= 25, lengths


@pytest.mark.parametrize("package", ["starec", "starec_env", "starec_agents", "starec_eval"])
def test_importing_a_package_pulls_in_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & HEAVY
    if package == "starec":
        assert not {name for name in loaded if name.startswith("starec_")} | loaded & {"numpy", "click"}
    if package == "starec_env":
        assert not loaded & {"pyarrow", "langgraph", "openai", "rich", "click", "pandas", "scipy"}


def test_the_usual_names_are_in_one_package() -> None:
    assert set(starec.__all__) == {name for name in dir(starec) if not name.startswith("__")}
    homes = {name: getattr(starec, name) for name in starec.__all__}
    assert all(made.__name__ == name for name, made in homes.items())
    assert homes["load_dataset"] is load_dataset
    with pytest.raises(ImportError, match="no_such_name"):
        exec("from starec import no_such_name")


def test_python_m_starec_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "starec", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Usage: starec [OPTIONS]" in done.stdout and "simulate" in done.stdout


@pytest.mark.parametrize("old", sorted(_MOVED))
def test_a_module_that_moved_is_found_at_its_old_name_with_a_warning(old: str) -> None:
    package, _, name = old.rpartition(".")
    code = f"from {package} import {name}; print({name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _MOVED[old] and f"DeprecationWarning: {old} is {_MOVED[old]} now" in done.stderr
