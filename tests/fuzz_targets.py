"""What test_fuzz.py and eval/benchmarks/fuzz.py throw at us: hostile inputs, and what must hold for any of them."""

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support import make_dataset

from starec_agents import ScriptedChat, UserAgent, run_population, scripted_user
from starec_agents.llm import Completion
from starec_agents.runs.reading import read_failures, read_steps, read_trajectories
from starec_agents.runs.steps import Step
from starec_agents.runs.store import RunStore
from starec_agents.tasks import (
    ANSWER_FORMATS,
    MAX_SAID,
    Response,
    Visit,
    parse_ranking,
    profile_format,
    response_format,
)
from starec_env import load_dataset
from starec_env.errors import InvalidRanking, StarecError, StarecWarning
from starec_env.replay.env import UserFeedbackEnv
from starec_env.types import Candidates, Dataset, Item, ParseReport

PIECES = [
    *("<think>", "</think>", "<THINK >", "1. ", "2) ", "3: ", "- ", "Heat (1995)", "Alien", "Matrix, The (1999)"),
    *("The Matrix", "Alien (1979)", " - ", "\n", "\r\n", "A", "B ", "c", "D>", "[", "]", "{", "}", '"A": 3', ", "),
    *('"B": 1e400', '"', "**", "`", "Updated User description:", "\u202e", "\0", "(", ")", ": ", "|", "\ud800"),
    *('{"seen": ["A"], ', '"take": "A", ', '"take": null, ', '"stars": 4, ', '"stars": null, ', '"leave": false}'),
    *("<description>", "</description>", "Changes:", "é", "e\u0301", "🎬", "9" * 30),
]
INSERTS = (b"\n", b"\t", b"::", b",", b'"', b"\0", b"nan", b"1e999", b"-1", b"\xff\xfe", b"{}", b"[" * 500)
FOUR = Candidates(
    [Item(1, "Heat (1995)"), Item(2, "Alien"), Item(3, "Matrix, The (1999)"), Item(4, "Alien (1979)")],
    np.arange(4, dtype=np.int32),
)
VISIT = Visit(levels=(1, 2, 3, 4, 5), counts=(0, 1, 2, 3, 4))


def random_text(rng: random.Random) -> str:
    """Text of pieces of answers and of any characters, mostly short, sometimes long."""
    length = rng.choice((3, 10, 40, 200))
    if rng.random() < 0.3:
        return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x110000)))) for _ in range(length))
    return "".join(rng.choices(PIECES, k=length))


def check_parsers(text: str) -> None:
    """A ranking is made of distinct positions and valid exactly when whole; a profile is text, or its report says why.

    A response takes and rates one of what is shown, or nothing; one that has problems says nothing at all.

    Nothing is read of an answer that was cut off.
    """
    for answer_format in ANSWER_FORMATS:
        ranking = parse_ranking(text, FOUR, answer_format)
        assert len(set(ranking.order)) == len(ranking.order) and set(ranking.order) <= {0, 1, 2, 3}
        assert not ranking.valid or len(ranking.order) == 4
        assert ranking.report == ParseReport.model_validate_json(ranking.report.model_dump_json())
        assert bool(ranking.problems) == bool(ranking.report.kinds)
        profile, report = profile_format(answer_format).parse(text)
        assert (profile is None) == any((report.cut_off, report.empty, report.no_answer))
        assert profile is None or (profile.strip() and len(profile) <= 2_000)
        assert report == ParseReport.model_validate_json(report.model_dump_json())
        assert report.valid == (profile is not None and not report.too_long)
        assert bool(report.problems) == bool(report.kinds) == (not report.valid)
        cut = parse_ranking(text, FOUR, answer_format, cut_off=True)
        assert cut.order == () and cut.report.kinds[0] == "cut_off"
        assert profile_format(answer_format).parse(text, cut_off=True).text is None
        check_response(response_format(answer_format).parse(text, 4, VISIT))
        assert response_format(answer_format).parse(text, 4, VISIT, cut_off=True).report.kinds[0] == "cut_off"


def check_response(response: Response) -> None:
    """Whether a response is one that a user can give."""
    assert response.report.valid or response == Response(text=response.text, report=response.report)
    assert (response.taken is None) == (response.stars is None)
    assert response.taken is None or (response.taken in response.seen and response.stars in VISIT.levels)
    assert list(response.seen) == sorted(set(response.seen)) and set(response.seen) <= {0, 1, 2, 3}
    assert len(response.says) <= MAX_SAID and response.says.isprintable()
    assert response.report == ParseReport.model_validate_json(response.report.model_dump_json())


def check_run(folder: Path, rng: random.Random) -> None:
    """Run users whose model answers both tasks with anything: the record reads back as it was written.

    Each reflection has a report, and a profile changes exactly where that says that one was found.
    """

    def answer(*_: object) -> Completion:
        reason = rng.choice(("stop", "stop", "stop", "length", None))
        return Completion(text=random_text(rng), reasoning=rng.choice((None, random_text(rng))), finish_reason=reason)

    shutil.rmtree(folder, ignore_errors=True)
    kept: list[Step] = []
    agent = UserAgent.factory(ScriptedChat(answer), answer_format=rng.choice(ANSWER_FORMATS))
    run = run_population(
        make_dataset(2), agent, out=folder, turns=2, concurrency=1, progress=False, on_step=kept.append
    )
    steps = list(read_steps(folder))
    assert len(steps) == 4 and sorted(map(_encodable, steps)) == sorted(map(_encodable, kept))
    reports = [call.report for step in steps for call in step.calls if call.kind == "reflect"]
    assert len(reports) == 4 and all(reports)
    for step, report in zip(steps, reports, strict=True):
        assert report is not None
        found = not (report.cut_off or report.empty or report.no_answer)
        assert found or step.memory.profile == step.memory_before.profile
        assert len(step.memory.history) == len(step.memory_before.history) + 1
    assert run.metrics["valid_profiles"] == sum(report.valid for report in reports if report) / 4
    assert run.metrics["valid_share"] == sum(step.ranking.valid for step in steps) / 4


def _encodable(step: Step) -> str:
    """A step as JSON; half a surrogate pair, which UTF-8 can't hold, as a question mark."""
    return json.dumps(step.model_dump(), default=str, ensure_ascii=False).encode(errors="replace").decode()


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, put in or cut off."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, n = rng.randrange(len(made) + 1), rng.choice((1, 2, 8, 64))
        how = rng.randrange(6)
        if how == 0:
            made[at : at + n] = rng.randbytes(n)
        elif how == 1:
            del made[at : at + n]
        elif how == 2:
            made[at:at] = made[at : at + n]
        elif how == 3:
            made[at:at] = rng.choice(INSERTS)
        elif how == 4 and rng.random() < 0.2:
            del made[at:]
        else:
            made[at : at + n] = bytes(rng.choices(b"0123456789", k=min(n, len(made[at : at + n]))))
    return bytes(made)


def _rows(separator: str, make: Callable[[int, int], tuple[object, ...]]) -> str:
    return "".join(separator.join(map(str, make(u, i))) + "\n" for u in range(1, 5) for i in range(1, 6))


FILES: dict[str, dict[str, str]] = {
    "ml-latest-small": {
        "ratings.csv": "userId,movieId,rating,timestamp\n" + _rows(",", lambda u, i: (u, i, 4.0, 100 * u + i)),
        "movies.csv": 'movieId,title,genres\n1,"Heat, The (1995)",Action|Crime\n2,Up (2009),Drama\n'
        "3,Jaws (1975),Horror\n4,Big (1988),Comedy\n5,Ran (1985),(no genres listed)\n",
    },
    "ml-1m": {
        "ratings.dat": _rows("::", lambda u, i: (u, i, 4, 978300000 + 100 * u + i)),
        "movies.dat": "1::Heat (1995)::Action|Crime\n2::Up (2009)::Drama\n3::Jaws (1975)::Horror\n"
        "4::Big (1988)::Comedy\n5::Ran (1985)::Drama\n",
        "users.dat": "".join(f"{u}::F::25::7::12345\n" for u in range(1, 5)),
    },
    "amazon": {
        "CDs.json": "".join(
            json.dumps({"reviewerID": f"U{u}", "asin": f"B{i}", "overall": 4.0, "unixReviewTime": 100 * u + i}) + "\n"
            for u in range(1, 5)
            for i in range(1, 6)
        ),
        "meta_CDs.json": "".join(
            json.dumps({"asin": f"B{i}", "title": f"Disc {i}", "categories": [["CDs", "Rock"]], "brand": "Us"}) + "\n"
            for i in range(1, 6)
        ),
    },
    "recbole": {
        "x.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + _rows("\t", lambda u, i: (u, i, 4.0, 100.0 * u + i)),
        "x.item": "item_id:token\tmovie_title:token_seq\tgenre:token_seq\n"
        + "".join(f"{i}\tFilm {i}\tDrama\n" for i in range(1, 6)),
        "x.user": "user_id:token\tage:token\n" + "".join(f"{u}\t25\n" for u in range(1, 5)),
    },
}  # fmt: skip
"""A small whole data set of each format."""


def check_loader(name: str, folder: Path, rng: random.Random) -> None:
    """Load a data set one of whose files is damaged: it is a data set that hangs together, or an error of ours."""
    damaged = rng.choice(list(FILES[name]))
    for file, text in FILES[name].items():
        data = text.encode()
        (folder / file).write_bytes(mutated(data, rng) if file == damaged else data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StarecWarning)
        try:
            _check_dataset(load_dataset(name, folder))
        except StarecError:
            pass


def _check_dataset(dataset: Dataset) -> None:
    assert (
        dataset.indptr[0] == 0 and dataset.indptr[-1] == dataset.n_interactions and (np.diff(dataset.indptr) >= 0).all()
    )
    assert ((dataset.item_indices >= 0) & (dataset.item_indices < dataset.n_items)).all()
    assert np.isfinite(dataset.ratings).all()
    assert len(set(dataset.user_ids.tolist())) == dataset.n_users
    assert all(item.title for item in dataset.items)


def whole_record(folder: Path) -> dict[str, bytes]:
    """The files of a small finished run."""
    agent = UserAgent.factory(ScriptedChat(scripted_user()), answer_format="compact")
    run_population(make_dataset(4), agent, out=folder, turns=2, progress=False)
    names = ("run.json", "steps.jsonl", "prompts.jsonl", "failures.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


def check_record(files: dict[str, bytes], folder: Path, rng: random.Random) -> None:
    """Read and reopen a damaged record: only errors of ours, and whatever it holds after reopening can be read."""
    damaged = rng.choice(("run.json", "prompts.jsonl", "steps.jsonl", "steps.jsonl", "steps.jsonl"))
    (folder / "steps.damaged").unlink(missing_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(mutated(data, rng) if name == damaged else data)
    for read in (read_steps, read_trajectories):
        try:
            list(read(folder))
        except StarecError:
            pass
    settings = {key: value for key, value in json.loads(files["run.json"]).items() if key != "sessions"}
    try:
        store = RunStore(folder, settings, resume=True)
    except StarecError:
        return
    store.close()
    list(read_steps(folder))
    read_failures(folder)


def check_step(env: UserFeedbackEnv, rng: random.Random) -> None:
    """Any action is a ranking and earns a finite reward, or is refused by name and the turn stands."""
    env.reset(seed=0)
    numbers = [
        0,
        1,
        5,
        19,
        20,
        -1,
        2**31,
        2**63,
        1.0,
        0.5,
        float("nan"),
        True,
        None,
        "1",
        [],
        np.int8(3),
        np.float32(2),
    ]
    lists = (np.array([[1, 2]]), np.array(4), np.array(["a"]), np.array([1 + 2j]), np.array([np.nan]), range(5), {1: 2})
    others = (None, 3, 2**70, "abc", b"\1\2", {}, set(), frozenset((1, 2)), (x for x in (1, 2)), object())
    action: object = rng.choice(
        (
            rng.sample(range(20), rng.randrange(21)),
            rng.choices(numbers, k=rng.randrange(6)),
            np.array(rng.choices(range(-2, 25), k=rng.randrange(25))),
            rng.choice(lists),
            rng.choice(others),
        )
    )
    try:
        _, reward, *_ = env.step(action)
    except InvalidRanking:
        env.step([0])
    else:
        assert -1 <= float(reward) <= 1
