"""A server that answers chat requests after a fixed time with canned bytes: fast enough not to be what is measured.

    python eval/benchmarks/canned.py --latency 0.2      # prints its URL, serves until its stdin is closed

Rankings are asked of it as labels, and get 20 labels; reflections get a profile of 40 words. It parses no
JSON and holds a request for about 40 us of one core. `GET /cpu` says how many seconds of CPU it has used.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.request import urlopen

RANKING = "A B C D E F G H I J K L M N O P Q R S T"
PROFILE = "Updated User description: " + "Likes thrillers of the nineties and slow dramas, and dislikes musicals. " * 4


def response(text: str, words: int) -> bytes:
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 900, "completion_tokens": words, "total_tokens": 900 + words}
    answer = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "fake"}
    return plain(json.dumps({**answer, "choices": [message], "usage": usage}))


def plain(text: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    return (head + text).encode()


class Canned(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, latency: float) -> None:
        self.latency, self.seen = latency, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to answer."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer a request once it is whole."""
        self.seen += data
        head, there, body = self.seen.partition(b"\r\n\r\n")
        if not there:
            return
        _, _, rest = head.lower().partition(b"content-length:")
        if len(body) < int(rest.partition(b"\r\n")[0] or 0):
            return
        self.seen = b""
        if head.startswith(b"GET"):
            text = str(time.process_time()) if b" /cpu " in head[:20] else '{"data": [{"id": "fake"}]}'
            self.transport.write(plain(text))
        else:
            answer = ANSWERS[b"preference analyst" in body]
            asyncio.get_running_loop().call_later(self.latency, self.transport.write, answer)


ANSWERS = (response(RANKING, 20), response(PROFILE, 40))


@contextlib.contextmanager
def spawn(latency: float) -> Iterator[str]:
    """Serve in another process; yields the base_url."""
    command = [sys.executable, __file__, "--latency", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def cpu_of(base_url: str) -> float:
    """Seconds of CPU that the server has used."""
    with urlopen(base_url.removesuffix("/v1") + "/cpu") as answer:
        return float(answer.read())


async def serve(latency: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Canned(latency), "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    gc.freeze()
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds to every answer")
    asyncio.run(serve(parser.parse_args().latency))


if __name__ == "__main__":
    main()
