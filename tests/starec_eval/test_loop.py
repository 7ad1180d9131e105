"""The closed loop: what is shown, recorded, learned from and measured, and that a killed one goes on to the same."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from loop_users import Fans, LoneFans, LoneFanVisits
from small_twin import small_twin
from support import make_dataset

from starec_agents import ScriptedChat, UserAgent, scripted_user
from starec_agents.responder import AgentResponder
from starec_env.cases import PAD
from starec_env.cli import main
from starec_env.data.cut import with_events
from starec_env.errors import InvalidOption, RunError, UnknownName
from starec_env.metrics import entropy, gini
from starec_env.recommend.responses import NOTHING, Responses
from starec_env.recommend.twin import Twin
from starec_env.types import Dataset, Query, Ranking
from starec_eval.loop.commands import loop_command
from starec_eval.loop.record import Answers
from starec_eval.loop.results import genre_table, visit_values
from starec_eval.loop.run import run_loop
from starec_eval.rankers import Pop, build
from starec_eval.recommenders import (
    RankerRecommender,
    Request,
    ScorerRecommender,
    build_recommenders,
    first_of,
)
from starec_eval.report import write_report

SIZES: dict[str, Any] = {"users": 16, "rounds": 3, "slate_size": 3, "horizon": 5}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset(24, 120, 12)


def loop(responder: Fans, out: Path, names: str = "random,pop", **more: Any) -> Any:
    return run_loop(responder, build_recommenders(names.split(",")), out=out, **{**SIZES, **more})


class Spy:
    """Shows the first allowed items, and keeps what it is given."""

    def __init__(self) -> None:
        self.fitted: list[Dataset] = []
        self.asked: list[Request] = []

    def fit(self, dataset: Dataset) -> None:
        self.fitted.append(dataset)

    def recommend(self, asked: Request, k: int) -> np.ndarray:
        self.asked.append(asked)
        return np.argsort(~asked.allowed, axis=1, kind="stable")[:, :k]


def test_what_users_take_is_learned_from_before_the_next_round(dataset: Dataset, tmp_path: Path) -> None:
    spy = Spy()
    found = run_loop(Fans(dataset), {"spy": spy}, out=tmp_path, **SIZES)
    first, second, third = spy.fitted
    assert first.n_interactions == dataset.n_interactions
    for data, round_ in ((second, 0), (third, 1)):
        rounds = found.answers["spy"][: round_ + 1]
        assert data.n_interactions == dataset.n_interactions + sum((a.taken != NOTHING).sum() for a in rounds)
    user = int(found.users[0])
    own = slice(int(third.indptr[user]), int(third.indptr[user + 1]))
    expected = [
        int(a.slate[row, a.taken[row]])
        for a in found.answers["spy"][:2]
        for row in np.flatnonzero((a.row == 0) & (a.taken != NOTHING))
    ]
    assert third.item_indices[own].tolist()[12:] == expected != []
    assert (np.diff(third.timestamps[own]) > 0).all() and set(third.ratings[own].tolist()[12:]) == {5.0}


def test_nobody_is_shown_what_was_met_or_shown_in_the_visit(dataset: Dataset, tmp_path: Path) -> None:
    spy = Spy()
    found = run_loop(Fans(dataset), {"spy": spy}, out=tmp_path, **SIZES)
    met = {
        row: set(dataset.item_indices[dataset.indptr[u] : dataset.indptr[u + 1]]) for row, u in enumerate(found.users)
    }
    for answers in found.answers["spy"]:
        shown: dict[int, set[int]] = {row: set() for row in met}
        for row, slate, taken in zip(answers.row, answers.slate, answers.taken, strict=True):
            assert not (met[row] | shown[row]) & set(slate)
            shown[row] |= set(slate)
            if taken != NOTHING:
                met[row].add(slate[taken])
    last = spy.asked[-1]
    assert {tuple(row[row != PAD][:12]) for row in last.history} <= {
        tuple(dataset.item_indices[dataset.indptr[u] : dataset.indptr[u + 1]]) for u in found.users
    }


def test_users_go_on_from_where_the_responder_says(dataset: Dataset, tmp_path: Path) -> None:
    spy = Spy()
    run_loop(Fans(dataset, dataset.indptr[1:] - 4), {"spy": spy}, out=tmp_path, **{**SIZES, "rounds": 1})
    assert spy.fitted[0].n_interactions == dataset.n_interactions - 4 * dataset.n_users
    assert spy.asked[0].history.shape[1] == 8


def test_users_may_begin_without_any_history(dataset: Dataset, tmp_path: Path) -> None:
    fans = Fans(dataset, np.where(np.arange(24) < 20, dataset.indptr[:-1], dataset.indptr[1:]))
    users = dataset.user_ids[:8].tolist()
    names = ["pop", "item-knn", "markov", "ease", "sasrec"]
    recommenders = build_recommenders(names)
    recommenders["sasrec"].scorer.epochs = 1  # type: ignore[attr-defined]
    found = run_loop(fans, recommenders, out=tmp_path, **{**SIZES, "users": users})
    assert all(found.overall[name]["clicks"].mean > 0 for name in names)


def test_each_recommender_has_a_world_of_its_own(dataset: Dataset, tmp_path: Path) -> None:
    together = loop(Fans(dataset), tmp_path / "two", "random,pop")
    alone = loop(Fans(dataset), tmp_path / "one", "pop")
    assert json.dumps(together.to_json()["rounds"]["pop"]) == json.dumps(alone.to_json()["rounds"]["pop"])


@pytest.mark.parametrize("kind", [Fans, LoneFans])
def test_a_seed_decides_all(kind: type[Fans], dataset: Dataset, tmp_path: Path) -> None:
    for out in ("a", "b"):
        loop(kind(dataset), tmp_path / out)
    loop(kind(dataset), tmp_path / "c", seed=1)
    a, b, c = ((tmp_path / out / "loop.json").read_text() for out in "abc")
    assert a == b != c


def test_asked_one_by_one_users_answer_as_in_step(dataset: Dataset, tmp_path: Path) -> None:
    class Unwearied(LoneFanVisits):
        def begin(self, rows: np.ndarray, users: np.ndarray, visits: np.ndarray) -> None:
            self.weary[rows] = 0
            super().begin(rows, users, visits)

    lone = LoneFans(dataset)
    lone.open = lambda n, seed=0: Unwearied(lone, n)  # type: ignore[method-assign]
    in_step, one_by_one = loop(Fans(dataset), tmp_path / "a"), loop(lone, tmp_path / "b", concurrency=5)
    assert in_step.to_json()["rounds"] == one_by_one.to_json()["rounds"]


def test_a_loop_goes_on_after_its_last_whole_round(dataset: Dataset, tmp_path: Path) -> None:
    whole = loop(Fans(dataset), tmp_path)
    kept = (tmp_path / "loop.json").read_bytes()
    for path in ("pop/round-002.parquet", "pop/round-003.parquet", "loop.json"):
        (tmp_path / path).unlink()
    fans = Fans(dataset)
    assert loop(fans, tmp_path, resume=True).rounds == whole.rounds
    assert (tmp_path / "loop.json").read_bytes() == kept
    calls = fans.calls
    assert loop(fans, tmp_path, resume=True).rounds == whole.rounds and fans.calls > calls


def test_users_with_snapshots_are_not_asked_again(dataset: Dataset, tmp_path: Path) -> None:
    whole = loop(LoneFans(dataset), tmp_path, "pop")
    (tmp_path / "pop" / "round-003.parquet").unlink()
    journal = tmp_path / "pop" / "visits-003.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:10]) + lines[10][:50])  # as a kill may leave it
    fans = LoneFans(dataset)
    assert loop(fans, tmp_path, "pop", resume=True).rounds == whole.rounds
    asked_again = sum(len(json.loads(line)["answers"]["row"]) for line in lines[10:])
    assert fans.calls == asked_again


@pytest.mark.parametrize("kind", ["fans", "lone_fans"])
def test_a_loop_that_is_killed_is_resumed_to_the_same_record(
    kind: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("user_id", "item_id", "rating", "timestamp")
    with open(tmp_path / "log.csv", "w", newline="") as file:
        columns = dataset.owner, dataset.item_indices, dataset.ratings, dataset.timestamps
        csv.writer(file).writerows([names, *zip(*(column.tolist() for column in columns), strict=True)])
    items = [(place, item.title, item.attributes["genres"]) for place, item in enumerate(dataset.items)]
    with open(tmp_path / "items.csv", "w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title", "genres"), *items])

    args = "loop --dataset log.csv --items items.csv --min-interactions 1 --recommenders random,pop --quiet "
    args += f"--users 16 --rounds 3 --slate-size 3 --horizon 5 --user loop_users:{kind}"
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "LOOP_KILLED_AT": "23" if kind == "fans" else "250", "PYTHONPATH": path}
    command = [sys.executable, "-m", "starec_env.cli", *args.split(), "--out", "killed"]
    assert subprocess.run(command, cwd=tmp_path, env=env, capture_output=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "loop.json").exists()
    monkeypatch.chdir(tmp_path)
    for more in ("--out whole", "--out killed --resume"):
        with pytest.raises(SystemExit) as ended:
            main([*args.split(), *more.split()])
        assert not ended.value.code and f"written to {more.split()[1]}" in capsys.readouterr().out
    for path in sorted((tmp_path / "whole").rglob("round-*.parquet")):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()
    assert (tmp_path / "whole" / "loop.json").read_bytes() == (tmp_path / "killed" / "loop.json").read_bytes()


def test_a_twins_users_go_on_over_rounds_and_are_resumed(tmp_path: Path) -> None:
    twin, sizes = small_twin(), {"users": 20, "rounds": 3, "slate_size": 2, "horizon": 2}
    whole = run_loop(twin, build_recommenders(["item-knn"]), out=tmp_path, **sizes)
    assert whole.overall["item-knn"]["clicks"].mean > 0
    (tmp_path / "item-knn" / "round-003.parquet").unlink()
    again = run_loop(Twin(**vars_of(twin)), build_recommenders(["item-knn"]), out=tmp_path, resume=True, **sizes)
    assert again.to_json() == whole.to_json()
    other = Twin(**{**vars_of(twin), "stops": twin.stops - 1})
    with pytest.raises(RunError, match="responder"):
        run_loop(other, build_recommenders(["item-knn"]), out=tmp_path, resume=True, **sizes)


def vars_of(twin: Twin) -> dict[str, Any]:
    return {name: getattr(twin, name) for name in ("choice", "stars", "calibration", "dataset", "stops")}


def test_agents_are_recorded_with_their_calls_and_taken_up_where_they_were(dataset: Dataset, tmp_path: Path) -> None:
    asked: list[int] = []

    def agents() -> AgentResponder:
        user = scripted_user()

        def reply(messages: Any, sampling: Any) -> str:
            asked.append(1)
            return str(user(messages, sampling))

        return AgentResponder(UserAgent.factory(ScriptedChat(reply), answer_format="scores"), dataset)

    sizes = {"users": 5, "rounds": 2, "slate_size": 3, "horizon": 3, "concurrency": 2}
    whole = run_loop(agents(), build_recommenders(["pop"]), out=tmp_path, **sizes)
    calls = len(asked)
    journal = tmp_path / "pop" / "visits-002.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert all(line["record"] and line["record"][0]["calls"] for line in lines)
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]))
    (tmp_path / "pop" / "round-002.parquet").unlink()
    assert (
        run_loop(agents(), build_recommenders(["pop"]), out=tmp_path, resume=True, **sizes).to_json() == whole.to_json()
    )
    assert 0 < len(asked) - calls < calls / 2
    again = {line["row"]: line for line in map(json.loads, journal.read_text().splitlines())}
    assert {row: line["snapshot"] for row, line in again.items()} == {line["row"]: line["snapshot"] for line in lines}


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"seed": 1}, "seed was 0, is 1"), ({"horizon": 4}, "horizon"), ({"names": "pop,random"}, "against|recommenders")],
)
def test_other_settings_are_refused_by_name(changed: Any, said: str, dataset: Dataset, tmp_path: Path) -> None:
    loop(Fans(dataset), tmp_path, "random,item-knn", rounds=1)
    with pytest.raises(RunError, match=said):
        loop(Fans(dataset), tmp_path, **{"names": "random,item-knn", "rounds": 1, "resume": True, **changed})
    with pytest.raises(RunError, match="--resume"):
        loop(Fans(dataset), tmp_path, "random,item-knn", rounds=1)


def test_users_who_answer_otherwise_than_recorded_are_found_out(dataset: Dataset, tmp_path: Path) -> None:
    loop(Fans(dataset), tmp_path, "pop")
    fans = Fans(dataset)
    fans.genre = (fans.genre + 1) % 4
    with pytest.raises(RunError, match="otherwise than recorded"):
        loop(fans, tmp_path, "pop", resume=True)


@pytest.mark.parametrize(
    ("slate", "said"),
    [([0, 0, 1], "an item twice"), ([0, 1, 999], "isn't in the catalogue"), ([0, 1], "shape"), (None, "isn't allowed")],
)
def test_a_slate_that_is_none_is_refused(slate: Any, said: str, dataset: Dataset, tmp_path: Path) -> None:
    class Wrong(Spy):
        def recommend(self, asked: Request, k: int) -> np.ndarray:
            good = super().recommend(asked, k)
            if slate is None:
                return np.argsort(asked.allowed, axis=1, kind="stable")[:, :k]
            return np.tile(slate, (len(good), 1))

    with pytest.raises(InvalidOption, match=said):
        run_loop(Fans(dataset), {"wrong": Wrong()}, out=tmp_path, **SIZES)


def answering(dataset: Dataset, change: Any) -> Fans:
    """Fans whose answers, a dict of columns, are changed on the way."""

    class Odd(Fans):
        def open(self, n: int, seed: int = 0) -> Any:
            visits = super().open(n, seed)
            answer = visits.respond
            visits.respond = lambda rows, slates: change(dict(vars(answer(rows, slates))))  # type: ignore[method-assign]
            return visits

    return Odd(dataset)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("taken", lambda taken: np.full(len(taken), 3), "isn't one of 3"),
        ("taken", lambda taken: taken.astype(float), "type float64: wanted .* integers"),
        ("taken", lambda taken: taken.tolist(), "wanted .* integers"),
        ("left", lambda left: left.astype(int), "type int64: wanted .* truth values"),
        ("stars", lambda stars: stars[:-1], "wanted .* floats"),
        ("stars", lambda stars: np.where(np.isnan(stars), np.nan, 1), "liked otherwise than its stars say"),
        ("said", lambda said: ("x",), "wanted 16 texts"),
        ("problems", lambda problems: (None,) * 16, "wanted 16 texts"),
    ],
)
def test_answers_that_are_none_are_refused(name: str, change: Any, said: str, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=said):
        loop(answering(dataset, lambda given: Responses(**{**given, name: change(given[name])})), tmp_path)
    with pytest.raises(InvalidOption, match="answered with a dict: wanted Responses"):
        loop(answering(dataset, dict), tmp_path / "other")


def test_half_characters_that_users_say_are_recorded_and_resumed(dataset: Dataset, tmp_path: Path) -> None:
    fans = answering(dataset, lambda given: Responses(**{**given, "said": ("a\ud800b",) * len(given["taken"])}))
    assert {*loop(fans, tmp_path, "pop").answers["pop"][0].said} == {"a?b"}
    (tmp_path / "pop" / "round-003.parquet").unlink()
    assert {*loop(fans, tmp_path, "pop", resume=True).answers["pop"][0].said} == {"a?b"}


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        *(("rounds", wrong) for wrong in (0, True, 2.5, "2")),
        *(("seed", wrong) for wrong in (-1, None, 1.5)),
        *(("users", wrong) for wrong in (0, True, "12", [])),
        ("slate_size", None),
        ("horizon", True),
        ("concurrency", 1.5),
    ],
)
def test_numbers_that_cant_be_are_refused(option: str, wrong: Any, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption):
        loop(Fans(dataset), tmp_path / "loop", **{option: wrong})
    assert not (tmp_path / "loop").exists()


def test_recommenders_are_recorded_in_folders_of_their_own_inside_the_loops(dataset: Dataset, tmp_path: Path) -> None:
    one, other = build_recommenders(["pop", "random"]).values()
    with pytest.raises(InvalidOption, match="'a/b' and 'A:b' would be recorded in one folder"):
        run_loop(Fans(dataset), {"a/b": one, "A:b": other}, out=tmp_path, **SIZES)
    run_loop(Fans(dataset), {"..": one, "": other}, out=tmp_path / "loop", **SIZES)
    assert {path.name for path in tmp_path.iterdir()} == {"loop"}
    assert len([*(tmp_path / "loop").glob("*/round-001.parquet")]) == 2


def test_a_loop_keeps_its_folder_from_another(dataset: Dataset, tmp_path: Path) -> None:
    refused: list[str] = []

    class Twice(Spy):
        def fit(self, dataset: Dataset) -> None:
            with pytest.raises(RunError, match=f"in use by process {os.getpid()}") as error:
                loop(Fans(dataset), tmp_path, resume=True)
            refused.append(str(error.value))

    run_loop(Fans(dataset), {"twice": Twice()}, out=tmp_path, **SIZES)
    assert len(refused) == SIZES["rounds"]


def test_another_start_of_the_users_histories_is_another_loop(dataset: Dataset, tmp_path: Path) -> None:
    loop(Fans(dataset), tmp_path, "pop")
    with pytest.raises(RunError, match=r"responder.stops was"):
        loop(Fans(dataset, dataset.indptr[1:] - 2), tmp_path, "pop", resume=True)
    with pytest.raises(InvalidOption, match="stops has"):
        loop(Fans(dataset, dataset.indptr[1:] + 1), tmp_path, "pop", resume=True)


@pytest.mark.parametrize("column", ["row", "taken", "slate", "user_id"])
def test_a_round_that_is_no_round_of_these_users_is_refused_by_its_path(
    column: str, dataset: Dataset, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    loop(Fans(dataset), tmp_path, "pop")
    path = tmp_path / "pop" / "round-001.parquet"
    table = pq.read_table(path)
    value = [500, 501, 502] if column == "slate" else 99
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, pa.array([value] * len(table))), path)
    with pytest.raises(RunError, match=r"round-001.parquet can't be read as a round's record"):
        loop(Fans(dataset), tmp_path, "pop", resume=True)


@pytest.mark.parametrize("damage", ["[]", '{"row": 0}', "last"])
def test_a_journal_of_other_visits_is_refused_by_its_path(damage: str, dataset: Dataset, tmp_path: Path) -> None:
    loop(LoneFans(dataset), tmp_path, "pop")
    path = tmp_path / "pop" / "visits-001.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([rest[-1] if damage == "last" else damage, *rest]) + "\n")
    with pytest.raises(RunError, match=r"visits-001.jsonl can't be read"):
        loop(LoneFans(dataset), tmp_path, "pop", resume=True)


def test_markup_of_data_and_names_is_text_on_the_loops_pages(dataset: Dataset, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>|\nz"
    found = run_loop(Fans(dataset), {name: Spy(), "b": Spy()}, out=tmp_path, user=name, **SIZES)
    found.write_pages(tmp_path)
    assert "<img" not in (tmp_path / "loop.html").read_text() and "<img" not in (tmp_path / "loop.md").read_text()
    rows = [line for line in (tmp_path / "loop.md").read_text().splitlines() if line.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows[:4]} == {len(found.tables()[0].head) + 1}


def test_users_whom_nothing_is_left_to_show_are_not_taken(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="0 users of tiny have the 110 unmet items"):
        loop(Fans(dataset), tmp_path, rounds=2, horizon=10, slate_size=10)
    with pytest.raises(InvalidOption, match="user 3 has less"):
        loop(Fans(dataset), tmp_path, rounds=2, horizon=10, slate_size=10, users=[3])
    with pytest.raises(UnknownName):
        loop(Fans(dataset), tmp_path, users=["nobody"])


@pytest.mark.parametrize("names", ["popp", "pop,pop", "starec", "loop_users:fans", "loop_users:PATIENCE"])
def test_names_of_what_cant_recommend_are_refused(names: str) -> None:
    with pytest.raises((InvalidOption, UnknownName)):
        build_recommenders(names.split(","))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--user twine", "did you mean 'twin'"),
        ("--base-url http://127.0.0.1:9/v1", "--base-url has no effect unless --user is agent"),
        ("--user agent", "give --base-url"),
        ("--user loop_users:PATIENCE", "wanted a function that can be called with the data set"),
        ("--recommenders pop,item-nn", "did you mean 'item-knn'"),
        ("--against bpr", "pop"),
        ("--users 99999", "670 users of ml-latest-small"),
    ],
)
def test_options_that_cant_be_are_refused_before_anything_is_written(given: str, said: str, tmp_path: Path) -> None:
    out = tmp_path / "loop"
    done = CliRunner().invoke(loop_command, [*given.split(), "--quiet", "--out", str(out)])
    assert said in str(done.exception) and not out.exists()


def test_the_recommender_of_the_docs_recommends(dataset: Dataset, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "loop.md").read_text()
    named: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], named)
    found = run_loop(Fans(dataset), {"newest": named["NewestFirst"]()}, out=tmp_path, **SIZES)
    first = found.answers["newest"][0]
    assert first.slate[first.step == 0].min() > 90


@pytest.mark.parametrize("name", ["random", "pop", "item-knn", "markov", "ease", "next-id", "bpr", "sasrec", "gru4rec"])
def test_every_score_of_the_catalogue_is_what_scores_gives(name: str, dataset: Dataset) -> None:
    scorer = build([name])[0]
    for setting, value in {"epochs": 2}.items():
        if hasattr(scorer, setting):
            setattr(scorer, setting, value)
    scorer.fit(dataset)
    history = dataset.item_indices.reshape(24, 12)[:6].copy()
    history[3, :5] = PAD
    users = dataset.user_ids[:6].tolist()
    from starec_eval.rankers.scorer import Scorer

    usual = Scorer.every_score(scorer, users, history, dataset.n_items)
    assert np.allclose(scorer.every_score(users, history, dataset.n_items), usual, atol=1e-5)
    assert usual.shape == (6, 120)


def test_the_first_of_a_batch_are_the_first_of_each_alone() -> None:
    rng = np.random.default_rng(0)
    scores, ties = rng.integers(0, 4, (50, 30)).astype(float), rng.integers(0, 2**60, (50, 30)).astype(np.uint64)
    found = first_of(scores, ties, 7)
    assert found.tolist() == [np.lexsort((t, -s))[:7].tolist() for s, t in zip(scores, ties, strict=True)]


def test_a_ranker_recommends_as_its_ranking_says_and_sees_what_was_simulated(dataset: Dataset, tmp_path: Path) -> None:
    seen = []

    class LastFirst:
        def rank(self, query: Query) -> Ranking:
            seen.append(query)
            return Ranking(order=tuple(range(len(query.candidates)))[::-1])

    found = run_loop(Fans(dataset), {"mine": RankerRecommender(LastFirst())}, out=tmp_path, **SIZES)
    query = max(seen, key=lambda query: len(query.history))
    assert len(query.history) > 12 and query.history[-1].rating == 5
    assert found.answers["mine"][0].slate[0, 0] == max(set(range(120)) - set(seen[0].history.item_indices.tolist()))


def test_random_order_is_another_at_each_visit(dataset: Dataset, tmp_path: Path) -> None:
    class Idle(Fans):
        def open(self, n: int, seed: int = 0) -> Any:
            visits = super().open(n, seed)
            self.genre = np.where(np.arange(self.dataset.n_items) < 60, 9, 0)  # user 0 alone takes anything
            return visits

    found = loop(Idle(dataset), tmp_path, "random")
    first, second = (answers.at(answers.step == 0).slate for answers in found.answers["random"][:2])
    assert (first != second).any(axis=1).mean() > 0.9


def test_popularity_learns_what_is_taken_in_the_loop(dataset: Dataset) -> None:
    n = 30
    more = with_events(dataset, np.full(n, 5), np.full(n, 77), np.full(n, 4.0), np.arange(n) + 100)
    recommender = ScorerRecommender(Pop()).fit(more)
    asked = Request([1], np.full((1, 1), PAD, np.int32), np.ones((1, 120), bool), lambda _: None)  # type: ignore[arg-type, return-value]
    assert recommender.recommend(asked, 3)[0, 0] == 77


def test_events_follow_each_users_own_rows(dataset: Dataset) -> None:
    more = with_events(dataset, np.array([3, 1, 3]), np.array([7, 8, 9]), np.array([1, 2, 3]), np.array([50, 50, 60]))
    assert more.n_interactions == dataset.n_interactions + 3
    of_three = slice(int(more.indptr[3]), int(more.indptr[4]))
    assert more.item_indices[of_three].tolist() == [*dataset.item_indices[36:48].tolist(), 7, 9]
    assert more.timestamps[of_three].tolist()[-3:] == [11, 50, 60] and more.hash != dataset.hash


def test_values_of_a_visit_are_counted() -> None:
    nan = np.nan
    answers = Answers(
        row=np.array([0, 1, 0]),
        step=np.array([0, 0, 1]),
        slate=np.array([[0, 1], [2, 3], [4, 5]]),
        seen=np.ones((3, 2), bool),
        taken=np.array([1, NOTHING, 0]),
        stars=np.array([4, nan, nan], np.float32),
        liked=np.array([True, False, False]),
        left=np.array([False, True, False]),
        said=np.array(["", "more", ""], object),
        problem=np.array(["", "", ""], object),
    )
    kinds = np.eye(2)[[0, 1, 0, 0, 0, 0]]
    found = {key: values.tolist() for key, values in visit_values(answers, 2, kinds).items()}
    assert found["clicks"] == [2, 0] and found["likes"] == [1, 0] and found["slates"] == [2, 1]
    assert found["exits"] == [0, 1] and found["genres"] == [1.0, 0.0]
    assert found["stars"][0] == 4 and np.isnan(found["stars"][1])
    again = Answers.from_json(json.loads(json.dumps(answers.to_json())))
    assert again.to_json() == answers.to_json() and again.responses().said == ("", "more", "")


def test_a_film_of_two_genres_is_half_of_each(dataset: Dataset) -> None:
    table = genre_table(dataset)
    assert table is not None and table.shape == (120, 4) and (table.sum(axis=1) == 1).all()


def test_inequality_and_variety_of_counts() -> None:
    assert gini([3, 3, 3]) == 0 and gini([0, 0, 0, 8]) == 0.75 and np.isnan(gini([0, 0]))
    assert entropy([[1, 1, 0, 0], [5, 0, 0, 0]]).tolist() == [1.0, 0.0] and np.isnan(entropy([0, 0]))


def test_tables_and_figures_are_in_the_report(dataset: Dataset, tmp_path: Path) -> None:
    found = loop(Fans(dataset), tmp_path, "random,pop,item-knn")
    assert set(found.differences) == {"random", "item-knn"}
    difference, p = found.differences["random"]["likes"]
    means = {name: found.overall[name]["likes"].mean for name in ("random", "pop")}
    assert difference.gap == pytest.approx(means["random"] - means["pop"]) and p >= difference.p
    assert found.write_pages(tmp_path) == ["loop.md", "loop.html", "loop.svg"]
    page = (tmp_path / "loop.html").read_text()
    report = write_report([tmp_path], tmp_path / "report.html").read_text()
    for text in (page, report):
        assert "Closed loop on tiny" in text and "Compared with pop" in text and text.count("<figure>") == 7
    assert "<svg" in (tmp_path / "loop.svg").read_text()
