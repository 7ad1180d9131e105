"""The closed loop: recommend, record what users answer, learn from it, and go on; each recommender in its own world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from starec_agents.agent import wait_for
from starec_agents.runs.config import DataConfig, ids_hash
from starec_agents.runs.store import locked
from starec_env.data.splits import sample
from starec_env.errors import InvalidOption, RunError, check_whole, unknown
from starec_env.recommend.responses import NOTHING, Responder, Responses, Visits, check_responder
from starec_env.replay.env import list_of_ids
from starec_env.types import Dataset, Id
from starec_eval.evaluate import file_name
from starec_eval.loop.record import Answers, Journal, LoopConfig, open_folder
from starec_eval.loop.results import LoopResults
from starec_eval.loop.world import World, met_before
from starec_eval.recommenders import Recommender, ScorerRecommender

Ints = NDArray[np.int64]
Report = Callable[[str, int, int], None]
"""Called with what goes on, and how much of it is done: slates of a visit, or visits where users go alone."""

_USERS = 0x4C4F4F50


@runtime_checkable
class LoneVisits(Visits, Protocol):
    """Visits whose users are asked one by one, and are taken up again from a snapshot instead of by asking again."""

    def snapshot(self, rows: NDArray[np.integer[Any]]) -> list[dict[str, Any]]:
        """All that users at rows go on from, as JSON types."""
        ...

    def restore(self, rows: NDArray[np.integer[Any]], states: Sequence[Mapping[str, Any]]) -> None:
        """Put users at rows who go on from their snapshots."""
        ...

    def record(self, rows: NDArray[np.integer[Any]]) -> list[list[dict[str, Any]]]:
        """What else is to be recorded of users at rows since they were last recorded, as JSON types."""
        ...

    async def aend(self, rows: NDArray[np.integer[Any]]) -> None:
        """End visits that were cut short."""
        ...


def run_loop(
    responder: Responder,
    recommenders: Mapping[str, Recommender],
    *,
    out: str | Path,
    users: int | Sequence[Id] = 100,
    rounds: int = 5,
    slate_size: int = 10,
    horizon: int = 20,
    seed: int = 0,
    against: str | None = None,
    user: str = "",
    resume: bool = False,
    concurrency: int = 64,
    data: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> LoopResults:
    """Run each recommender in its own world for some rounds, and measure what came of it.

    In a round every user visits once. A visit is a row of slates, each of items that the user hasn't met and wasn't
    shown in this visit, until the user leaves or `horizon` slates are shown. What is taken becomes part of the user's
    history at once, and of the data that the recommender learns from before the next round. All recommenders meet the
    same users with the same seed.

    Args:
        responder: The simulated users, their data set, and where in it they go on from.
        recommenders: By name.
        out: Folder of the record.
        users: How many visit, sampled by the seed; or their ids.
        rounds: How often each visits.
        slate_size: Items of a slate.
        horizon: Most slates of a visit.
        seed: Of the sample and of the users' answers.
        against: The recommender that others are compared with; None: "pop" if it is there, else the first.
        user: What the responder is called in the record.
        resume: Go on with the loop in `out`.
        concurrency: Users of a round who are asked at once, where they are asked one by one (`LoneVisits`).
        data: How the data set is loaded again, as `DataSpec` has it; recorded.
        report: Called as it goes on.

    Returns:
        Measures by recommender and round; they are also written to `out` as loop.json.

    Raises:
        InvalidOption: A number is out of range, a user has too few unmet items, or a recommender shows what it can't.
        UnknownName: `against` or a user's id is unknown.
        RunError: `out` holds another loop, or any and `resume` is False; or the users answer otherwise than recorded.
    """
    for name, number in {
        "rounds": rounds,
        "slate_size": slate_size,
        "horizon": horizon,
        "concurrency": concurrency,
    }.items():
        check_whole(name, number)
    check_whole("seed", seed, 0)
    check_responder(responder)
    against = reference_of(recommenders, against)
    dataset, needed = responder.dataset, (rounds - 1) * horizon + slate_size * horizon
    chosen = _chosen(dataset, responder.stops, users, needed, seed)
    config = LoopConfig(
        dataset=DataConfig.of(dataset),
        recommenders={name: _described(recommender) for name, recommender in recommenders.items()},
        against=against,
        user=user or type(responder).__name__,
        responder={**describe(responder), "stops": ids_hash(np.asarray(responder.stops).tolist())},
        rounds=rounds,
        users=len(chosen),
        users_hash=ids_hash(dataset.user_ids[chosen].tolist()),
        slate_size=slate_size,
        horizon=horizon,
        seed=seed,
    )
    with locked(Path(out)):
        open_folder(Path(out), config, resume, data)
        loop = _Loop(responder, config, Path(out), chosen, concurrency, report or (lambda *_: None))
        answers = {name: loop.run(name, recommender) for name, recommender in recommenders.items()}
        results = LoopResults(config, dataset, chosen, answers)
        results.write(Path(out))
    return results


def reference_of(recommenders: Collection[str], against: str | None) -> str:
    """The recommender that the others are compared with: the one named, else "pop" if it is there, else the first.

    Raises:
        UnknownName: The one named isn't there.
        InvalidOption: There is none, or two would be recorded in one folder.
    """
    if not recommenders:
        raise InvalidOption("no recommender is named: give at least one")
    folders: dict[str, str] = {}
    for name in recommenders:
        if (other := folders.setdefault(file_name(name).casefold(), name)) != name:
            raise InvalidOption(f"recommenders {other!r} and {name!r} would be recorded in one folder: rename one")
    against = against or ("pop" if "pop" in recommenders else next(iter(recommenders)))
    if against not in recommenders:
        raise unknown("recommender to compare against", against, recommenders)
    return against


def _chosen(dataset: Dataset, stops: Ints, users: int | Sequence[Id], needed: int, seed: int) -> Ints:
    """Ascending indices of the users who visit: those named, or so many of those with enough items to be shown."""
    named = None
    if isinstance(users, Integral):
        check_whole("users", users)
    else:
        named = np.unique([dataset.user_index(user) for user in list_of_ids(users)])
    asked = np.arange(dataset.n_users) if named is None else named
    unmet = np.concatenate(
        [(~met_before(dataset, stops, part)).sum(1) for part in np.array_split(asked, 1 + len(asked) // 1000)]
    )
    able = asked[unmet >= needed]
    shorter = f"{needed:,} unmet items that all rounds may show; give fewer rounds, a shorter horizon or smaller slates"
    if named is not None and len(able) < len(named):
        lacking = dataset.user(int(asked[unmet < needed][0])).id
        raise InvalidOption(f"user {lacking!r} has less than the {shorter}")
    if named is None and not 1 <= int(users) <= len(able):  # type: ignore[arg-type]
        raise InvalidOption(f"users={users}: {len(able):,} users of {dataset.name} have the {shorter}")
    return able if named is not None else np.sort(sample(able, int(users), (seed, _USERS)))  # type: ignore[arg-type]


def _described(recommender: Recommender) -> str:
    if isinstance(recommender, ScorerRecommender):
        return repr(recommender.scorer)
    return str(getattr(recommender, "settings", type(recommender).__name__))


def describe(responder: Responder) -> dict[str, Any]:
    """What a responder says of itself (`settings`), or a digest of a fitted one's parameters; else its class."""
    if found := getattr(responder, "settings", None):
        return dict(found)
    known: dict[str, Any] = {"class": type(responder).__name__, "data_hash": responder.dataset.hash}
    model: object = responder
    if is_dataclass(model):
        digest = blake2b(digest_size=8)
        _digest(model, digest.update)
        known["parameters"] = digest.hexdigest()
    return known


def _digest(value: Any, add: Callable[[bytes], None]) -> None:
    """Digest a fitted model: arrays by their bytes, parts by theirs, and all else as it prints; the data has a hash."""
    if isinstance(value, np.ndarray):
        add(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif is_dataclass(value) and not isinstance(value, Dataset):
        for field in fields(value):
            add(field.name.encode())
            _digest(getattr(value, field.name), add)
    elif not isinstance(value, Dataset):
        add(repr(value).encode())


@dataclass(frozen=True)
class _Loop:
    responder: Responder
    config: LoopConfig
    out: Path
    users: Ints
    concurrency: int
    report: Report

    def run(self, name: str, recommender: Recommender) -> list[Answers]:
        """All rounds of one recommender, those on record without asking anybody."""
        config, n = self.config, len(self.users)
        dataset, folder = self.responder.dataset, self.out / file_name(name)
        world = World(dataset, self.responder.stops, self.users, config.rounds * config.horizon)
        visits = self.responder.open(n, config.seed)
        found: list[Answers] = []
        for number in range(1, config.rounds + 1):
            path, journal = folder / f"round-{number:03}.parquet", folder / f"visits-{number:03}.jsonl"
            if path.exists():
                answers = Answers.read(path, world.ids, config.slate_size, dataset.n_items)
                self._replay(world, visits, number, answers, journal, path)
            else:
                self.report(f"{name}, round {number}: learning", 0, 0)
                recommender.fit(world.recorded())
                one = _Round(self, world, visits, recommender, name, number, journal)
                answers = wait_for(one.run())
                answers.write(path, world.ids)
            found.append(answers)
        return found

    def _replay(self, world: World, visits: Visits, number: int, answers: Answers, journal: Path, path: Path) -> None:
        """Let world and users go through a recorded round; users who have snapshots take up the one at its end."""
        everyone = np.arange(len(self.users))
        world.begin(everyone)
        if isinstance(visits, LoneVisits):
            states = {line["row"]: line["snapshot"] for line in Journal(journal, world.ids).lines}
            if set(states) != set(everyone.tolist()):
                raise RunError(f"{journal} lacks users whom {path.name} has: delete both, and the round is made again")
            visits.restore(everyone, [states[row] for row in everyone.tolist()])
        else:
            visits.begin(everyone, self.users, np.full(len(everyone), number))
        for part in answers.by_step():
            if not isinstance(visits, LoneVisits):
                _check_same_answers(visits.respond(part.row, part.slate), part, path)
            world.note(part.row, number, int(part.step[0]), part.slate, part.responses())


def _check_same_answers(given: Responses, recorded: Answers, path: Path) -> None:
    for name in ("taken", "left", "stars"):
        was, now = getattr(recorded, name), getattr(given, name)
        if not np.array_equal(was, now, equal_nan=name == "stars"):
            raise RunError(
                f"{path}: the users answer otherwise than recorded ({name} at step {int(recorded.step[0])}), so that "
                "the loop can't go on from there: use what made the record, or choose another folder"
            )


@dataclass(frozen=True)
class _Round:
    loop: _Loop
    world: World
    visits: Visits
    recommender: Recommender
    name: str
    number: int
    journal: Path

    async def run(self) -> Answers:
        """Everybody's visit: all in step, or each at the user's own pace."""
        if not isinstance(self.visits, LoneVisits):
            return await self._visit(np.arange(len(self.loop.users)), self._tell)
        journal, visits = Journal(self.journal, self.world.ids), self.visits
        done = [self._take_up(line, visits) for line in journal.lines]
        there = {line["row"] for line in journal.lines}
        todo = iter([row for row in range(len(self.loop.users)) if row not in there])
        fresh = await _workers(self.loop.concurrency, (self._alone(row, visits, journal) for row in todo))
        return Answers.together([*done, *fresh])

    def _take_up(self, line: Mapping[str, Any], visits: LoneVisits) -> Answers:
        """A visit that was finished before the loop was interrupted."""
        row, answers = np.array([line["row"]]), Answers.from_json(line["answers"])
        visits.restore(row, [line["snapshot"]])
        self.world.begin(row)
        for part in answers.by_step():
            self.world.note(part.row, self.number, int(part.step[0]), part.slate, part.responses())
        return answers

    async def _alone(self, row: int, visits: LoneVisits, journal: Journal) -> Answers:
        rows = np.array([row])
        answers = await self._visit(rows)
        await visits.aend(rows)
        (recorded,), (snapshot,) = visits.record(rows), visits.snapshot(rows)
        about = {"row": row, "user": self.world.ids[row]}
        journal.add({**about, "answers": answers.to_json(), "record": recorded, "snapshot": snapshot})
        self._tell(len(journal.lines), len(self.loop.users))
        return answers

    def _tell(self, done: int, total: int) -> None:
        self.loop.report(f"{self.name}, round {self.number}", done, total)

    async def _visit(self, rows: Ints, tell: Callable[[int, int], None] | None = None) -> Answers:
        """One visit of users at rows, in step with each other."""
        world, config, parts = self.world, self.loop.config, []
        world.begin(rows)
        self.visits.begin(rows, self.loop.users[rows], np.full(len(rows), self.number))
        for step in range(config.horizon):
            slates = world.slates(self.recommender, self.name, rows, config.slate_size)
            given = await self.visits.arespond(rows, slates)
            users = [world.ids[row] for row in rows.tolist()]
            _check_answers(given, users, config.slate_size, self.loop.responder.dataset.liked_above)
            world.note(rows, self.number, step, slates, given)
            parts.append(Answers.of(rows, step, slates, given))
            if tell:
                tell(step + 1, config.horizon)
            rows = rows[~given.left]
            if not len(rows):
                break
        return Answers.together(parts)


async def _workers(n: int, visits: Iterator[Any]) -> list[Any]:
    """The results of coroutines, at most n of which run at once; the first error ends all."""
    found = []

    async def work() -> None:
        for visit in visits:
            found.append(await visit)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(n):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return found


_KINDS = {"seen": "b", "taken": "iu", "stars": "f", "liked": "b", "left": "b"}
"""Of the arrays that users answer with."""


def _check_answers(given: Responses, users: Sequence[Id], k: int, liked_above: float) -> None:
    """Refuse answers that can't be recorded, or that say two things at once."""
    if not isinstance(given, Responses):
        raise InvalidOption(f"the users answered with a {type(given).__name__}: wanted Responses")
    n = len(users)
    for name, kinds in _KINDS.items():
        column = getattr(given, name)
        shape = (n, k) if name == "seen" else (n,)
        if not isinstance(column, np.ndarray) or column.shape != shape or column.dtype.kind not in kinds:
            got = f"{column.shape} and type {column.dtype}" if isinstance(column, np.ndarray) else repr(column)[:100]
            raise InvalidOption(f"the users' {name} has shape {got}: wanted {shape} {_KIND_NAMES[kinds]}")
    for name in ("said", "problems"):
        texts = getattr(given, name)
        if texts and (len(texts) != n or not all(isinstance(text, str) for text in texts)):
            raise InvalidOption(f"the users' {name} is {texts!r:.100}: wanted {n} texts, or none at all")
    took = given.taken != NOTHING
    _refuse_answer((given.taken < NOTHING) | (given.taken >= k), users, f"took a place that isn't one of {k}")
    _refuse_answer(~took & (given.liked | ~np.isnan(given.stars)), users, "rated without having taken anything")
    _refuse_answer(np.isinf(given.stars), users, "gave a rating that isn't finite")
    disagree = ~np.isnan(given.stars) & (given.liked != (given.stars.astype(np.float32) > liked_above))
    _refuse_answer(disagree, users, f"liked otherwise than its stars say, which are a like above {liked_above:g}")


_KIND_NAMES = {"b": "truth values", "iu": "integers", "f": "floats, nan where nothing is rated"}


def _refuse_answer(wrong: NDArray[np.bool_], users: Sequence[Id], why: str) -> None:
    if wrong.any():
        raise InvalidOption(f"user {users[int(wrong.argmax())]!r} {why}: correct the responder")
