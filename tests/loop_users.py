"""Simulated users of one's own, as `starec loop --user loop_users:fans` takes them: each likes one genre."""

import asyncio
import os
import signal
from typing import Any

import numpy as np

from starec_env.recommend.responses import NOTHING, Responses
from starec_env.types import Dataset

PATIENCE = 3


class Fans:
    """User u takes the first item of genre u % 4 in a slate, and leaves a visit at the third slate without any."""

    def __init__(self, dataset: Dataset, stops: np.ndarray | None = None) -> None:
        self.dataset = dataset
        self.stops = dataset.indptr[1:] if stops is None else stops
        names = sorted({item.attributes["genres"] for item in dataset.items})
        self.genre = np.array([names.index(item.attributes["genres"]) for item in dataset.items])
        self.calls = 0

    def open(self, n: int, seed: int = 0) -> "FanVisits":
        return FanVisits(self, n)


class FanVisits:
    def __init__(self, fans: Fans, n: int) -> None:
        self.fans, self.user = fans, np.zeros(n, np.int64)
        self.fruitless = np.zeros(n, np.int64)

    def begin(self, rows: np.ndarray, users: np.ndarray, visits: np.ndarray) -> None:
        self.user[rows], self.fruitless[rows] = users, 0

    def respond(self, rows: np.ndarray, slates: np.ndarray) -> Responses:
        self.fans.calls += 1
        if self.fans.calls == int(os.environ.get("LOOP_KILLED_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        hit = self.fans.genre[slates] == self.user[rows, None] % 4
        taken = np.where(hit.any(axis=1), hit.argmax(axis=1), NOTHING)
        took = taken != NOTHING
        self.fruitless[rows] += ~took
        seen = np.ones(slates.shape, bool)
        stars = np.where(took, 5, np.nan).astype(np.float32)
        return Responses(seen, taken, stars, took, self.fruitless[rows] >= PATIENCE)

    async def arespond(self, rows: np.ndarray, slates: np.ndarray) -> Responses:
        return self.respond(rows, slates)


class LoneFans(Fans):
    """The same, but asked one by one, and the wearier the more often they were shown nothing in all visits."""

    def open(self, n: int, seed: int = 0) -> "LoneFanVisits":
        return LoneFanVisits(self, n)


class LoneFanVisits(FanVisits):
    def __init__(self, fans: Fans, n: int) -> None:
        super().__init__(fans, n)
        self.weary = np.zeros(n, np.int64)
        self.begun: list[int] = []

    def begin(self, rows: np.ndarray, users: np.ndarray, visits: np.ndarray) -> None:
        super().begin(rows, users, visits)
        self.begun += rows.tolist()
        self.fruitless[rows] = np.minimum(self.weary[rows] // 4, PATIENCE - 1)

    async def arespond(self, rows: np.ndarray, slates: np.ndarray) -> Responses:
        for _ in range(int(self.user[rows[0]]) % 5):
            await asyncio.sleep(0)
        given = self.respond(rows, slates)
        self.weary[rows] += given.taken == NOTHING
        return given

    async def aend(self, rows: np.ndarray) -> None:
        self.weary[rows] += 1

    def record(self, rows: np.ndarray) -> list[list[dict[str, Any]]]:
        return [[{"weary": int(self.weary[row])}] for row in rows]

    def snapshot(self, rows: np.ndarray) -> list[dict[str, Any]]:
        return [{"user": int(self.user[row]), "weary": int(self.weary[row])} for row in rows]

    def restore(self, rows: np.ndarray, states: list[dict[str, Any]]) -> None:
        for row, state in zip(rows, states, strict=True):
            self.user[row], self.weary[row] = state["user"], state["weary"]


def fans(dataset: Dataset) -> Fans:
    return Fans(dataset)


def lone_fans(dataset: Dataset) -> Fans:
    return LoneFans(dataset)
