"""The vllm that the extra allows is the vllm that the pinned TRL accepts."""

import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement

trl = pytest.importorskip("trl")

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS = PYPROJECT["optional-dependencies"]
(VLLM,) = map(Requirement, EXTRAS["vllm"])


def accepts(version: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether TRL's own check finds nothing to warn of where this vllm is installed."""
    from trl import import_utils

    monkeypatch.setattr(import_utils, "_is_package_available", lambda name, return_version=False: (True, version))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert import_utils.is_vllm_available()
    return not said


def test_the_trl_that_is_installed_is_the_one_that_is_pinned() -> None:
    (pinned,) = (Requirement(line) for line in EXTRAS["train"] if Requirement(line).name == "trl")
    assert pinned.specifier.contains(trl.__version__)


@pytest.mark.parametrize("version", [f"0.{minor}.{patch}" for minor in range(20, 36) for patch in (0, 1)])
def test_the_extra_allows_no_vllm_that_trl_refuses_and_refuses_none_that_it_accepts(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert VLLM.specifier.contains(version) == accepts(version, monkeypatch)
