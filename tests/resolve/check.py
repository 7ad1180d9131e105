"""Resolve every extra, and the pairs that must go together, on every Python: `make test-resolve` (a few minutes).

Each line is one `uv pip compile` of wheels alone, as pip would choose them. Nothing is installed. Exits 1 if one fails.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PAIRS = (("train", "vllm"), ("train", "baselines", "report", "examples", "ray"), ("serve", "report"))
SHOWN = ("torch", "transformers", "trl", "vllm", "openai", "ray", "xllamacpp")
PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def resolve(extras: tuple[str, ...], python: str) -> tuple[dict[str, str], str]:
    """The versions by package, and what uv said if it found none."""
    chosen = [word for extra in extras for word in ("--extra", extra)]
    quietly = ["--quiet", "--no-header", "--no-annotate", "--only-binary", ":all:", "--python-version", python]
    command = [Path(sys.executable).with_name("uv"), "pip", "compile", *quietly, PROJECT, *chosen]
    done = subprocess.run(command, capture_output=True, text=True)
    return dict(re.findall(r"^(\S+)==(\S+)", done.stdout, re.MULTILINE)), done.stderr.strip()


def main() -> int:
    """Print the table."""
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    failed = 0
    print(f"{'extras':<44} {'Python':<7} {'packages':>8}  versions")
    for wanted in ((), *((extra,) for extra in extras), *PAIRS):
        for python in PYTHONS:
            found, said = resolve(wanted, python)
            failed += not found
            shown = " ".join(f"{name} {found[name]}" for name in SHOWN if name in found) if found else said[-400:]
            print(f"{'+'.join(wanted) or '(none)':<44} {python:<7} {len(found):>8}  {shown}", flush=True)
    print(f"{failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
