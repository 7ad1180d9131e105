"""The Dockerfile and compose.yaml fit the repository: what they copy is there, and they call commands of ours."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from starec_env.cli import starec

ROOT = Path(__file__).parents[1]
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
OURS = [name for name, service in SERVICES.items() if service.get("build")]


def test_the_image_copies_what_the_build_needs() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.+)$", dockerfile, re.M) for word in line.split()[:-1]}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extras,) = re.findall(r"ARG EXTRAS=(\S+)", dockerfile)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {package.split("/")[0] for package in packages} <= copied


@pytest.mark.parametrize("name", OURS)
def test_the_commands_of_the_services_are_ours(name: str) -> None:
    line = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", SERVICES[name]["command"])
    command, *args = shlex.split(line)
    context = click.Context(starec, info_name="starec")
    made = starec.get_command(context, command)
    assert made is not None and made.make_context(command, args, parent=context).params


def test_populations_wait_for_a_server_that_answers_and_nothing_is_published() -> None:
    for service in SERVICES.values():
        assert "ports" not in service
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"} and SERVICES[other]["healthcheck"]["test"]
