"""How long `starec --help` takes, and `starec simulate` until its first request reaches the server.

    python eval/benchmarks/startup.py [--rounds 5] [--starec PATH]

CPU time of the process is shown beside the wall time: on a free core they are the same, on a busy machine CPU time is
the one to go by. --starec names the root of another checkout, to compare with. The modules that are slow to import
and have no business on the way are looked for among those that the process had loaded.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

UNWANTED = ("pandas", "scipy", "torch", "transformers", "openai", "matplotlib", "sklearn", "polars", "ray", "datasets")
ROOT = Path(__file__).parents[2]
CALL = "import sys; from starec_env.cli import main; sys.argv[1:] = {!r}; main()"


class Server(ThreadingHTTPServer):
    """Lists a model, and notes when the first chat request comes; it answers none."""

    def __init__(self) -> None:
        self.came, self.process = threading.Event(), subprocess.Popen[bytes]
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:  # noqa: D102, N802
        body = b'{"data": [{"id": "fake"}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:  # noqa: D102, N802
        self.server.came.set()  # type: ignore[attr-defined]
        time.sleep(5)

    def log_message(self, *args: object) -> None:  # noqa: D102
        pass


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment(root: Path) -> dict[str, str]:
    parts = (root, root / "agents", root / "training", root / "eval")
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, parts))}


def help_time(root: Path) -> tuple[float, float]:
    """CPU and wall seconds of `starec --help`."""
    began = time.perf_counter()
    command = [sys.executable, "-c", CALL.format(["--help"])]
    process = subprocess.Popen(command, env=environment(root), stdout=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    return used.ru_utime + used.ru_stime, time.perf_counter() - began


def first_request(root: Path, users: int) -> tuple[float, float]:
    """CPU and wall seconds from the start of `starec simulate` to its first request."""
    with Server() as server, tempfile.TemporaryDirectory() as out:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        options = ["--base-url", url, "--model", "fake", "--users", str(users), "--turns", "2", "--out", f"{out}/run"]
        began = time.perf_counter()
        command = [sys.executable, "-c", CALL.format(["simulate", *options, "--quiet"])]
        process = subprocess.Popen(command, env=environment(root), stderr=subprocess.PIPE)
        try:
            if not server.came.wait(120):
                raise SystemExit("no request came")
            return cpu_of(process.pid), time.perf_counter() - began
        finally:
            process.kill()
            process.communicate()
            server.shutdown()


def unwanted(root: Path) -> list[str]:
    """Slow modules that `starec simulate` loads before it asks anything."""
    code = (
        "import sys, starec_agents.commands, starec_agents.runs.population, starec_agents.llm.client, starec_agents\n"
        "from starec_agents import ScriptedChat, UserAgent, run_population, scripted_user\n"
        "from starec_env import load_dataset, prepare\n"
        "agent = UserAgent.factory(ScriptedChat(scripted_user()))\n"
        "run_population(prepare(load_dataset('ml-latest-small')), agent, users=2, turns=1, out=sys.argv[1])\n"
        f"print(*[name for name in {UNWANTED} if name in sys.modules])"
    )
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", code, f"{out}/run"]
        done = subprocess.run(command, env=environment(root), check=True, capture_output=True, text=True)
    return done.stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--starec", type=Path, default=ROOT)
    args = parser.parse_args()
    for name, measured in (
        ("starec --help", [help_time(args.starec) for _ in range(args.rounds)]),
        ("starec simulate, to the first request", [first_request(args.starec, args.users) for _ in range(args.rounds)]),
    ):
        cpu, wall = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name}: {cpu:.2f} s of CPU, {wall:.2f} s", flush=True)
    print("slow modules on the way:", ", ".join(unwanted(args.starec)) or "none")


if __name__ == "__main__":
    main()
