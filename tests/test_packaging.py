"""What is built, without a network: the wheel and the sdist hold what they should, and are small."""

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from test_architecture import PACKAGES, ROOT

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_all_packages_the_bundled_data_and_the_weights_once(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for package in PACKAGES:
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= set(names)
    assert any(name.startswith("starec_env/data/bundled/ml-latest-small") for name in names)
    assert any("LICENSE-ml-latest-small" in name for name in names)
    assert not any(name.startswith(("tests/", "eval/", "agents/", "training/", "docs/")) for name in names)
    weights = [name for name in names if name.endswith((".gguf", ".safetensors"))]
    assert weights == ["starec_agents/serving/nano/starec-nano.gguf"]
    assert wheel.stat().st_size < 7 * MEGABYTE


def test_the_sdist_holds_the_documents_too(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    documents = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert documents | {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "mkdocs.yml"} <= names
    assert {"pyproject.toml", "hatch_build.py", "Makefile", "tests/test_readme.py", "examples/ppo.py"} <= names
    assert sdist.stat().st_size < 8 * MEGABYTE


def test_the_package_says_who_made_it_where_it_runs_and_what_it_follows(metadata: email.message.Message) -> None:
    assert metadata["Author"] == "The starec authors"
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2508.18812"]
    systems = [line for line in metadata.get_all("Classifier", []) if line.startswith("Operating System")]
    assert systems == ["Operating System :: MacOS", "Operating System :: POSIX :: Linux"]
    assert (ROOT / "CITATION.cff").read_text().count(f"version: {metadata['Version']}\n") == 1


def test_the_description_on_an_index_has_no_link_into_the_repository(metadata: email.message.Message) -> None:
    text = str(metadata.get_payload())
    assert metadata["Description-Content-Type"] == "text/markdown" and len(text) > 2_000
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets and all(target.startswith("https://") for target in targets)
    assert "docs/agents.md" in text
