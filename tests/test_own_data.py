"""Data of one's own on the command line: from a file with its own column names to a run, its tables and a report."""

import csv
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from fake_endpoint import FakeEndpoint, scripted

from starec_agents.agent import UserAgent
from starec_agents.llm import ScriptedChat
from starec_agents.llm.scripted import scripted_user
from starec_agents.runs.population import run_population
from starec_agents.runs.reading import read_run, read_steps
from starec_env.cli import starec
from starec_env.data import from_frame, load_dataset, prepare
from starec_env.data.spec import DataSpec
from starec_env.errors import DataError, InvalidOption, RunError, StarecError
from starec_env.types import Dataset

COLUMNS = {"user": "reader", "item": "book", "rating": "stars_given", "time": "at_ms", "title": "called"}
NAMED = ",".join(map("=".join, COLUMNS.items()))


def rows() -> list[dict[str, Any]]:
    """40 readers of 25 of 60 books each, rated 1 to 10, a time in milliseconds."""
    rng = random.Random(0)
    return [
        {"reader": f"r-{r}", "book": f"b{b}", "stars_given": rng.randint(1, 10), "at_ms": 1_600_000_000_000 + k * 7 + r}
        for r in range(40)
        for k, b in enumerate(rng.sample(range(60), 25))
    ]


def write_csv(path: Path, table: list[dict[str, Any]], **style: Any) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), **style)
        writer.writeheader()
        writer.writerows(table)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """books.csv, with its rows not in order of time, and titles.csv."""
    folder = tmp_path_factory.mktemp("own")
    shuffled = random.Random(1).sample(rows(), k=1000)
    write_csv(folder / "books.csv", shuffled)
    titles = [
        {"book": f"b{b}", "called": f'Volume "{b}",\nnew', "genre": "verse" if b % 2 else "prose"} for b in range(60)
    ]
    write_csv(folder / "titles.csv", titles)
    return folder


def spec(folder: Path, **changes: Any) -> DataSpec:
    given = {"dataset": folder / "books.csv", "items": folder / "titles.csv", "columns": COLUMNS, "liked_above": 6}
    return DataSpec.of(**{**given, **changes})


def data_options(folder: Path) -> list[object]:
    own = ["--dataset", folder / "books.csv", "--columns", NAMED, "--items", folder / "titles.csv"]
    return [*own, "--liked-above", 6, "--min-interactions", 5, "--max-length", 30, "--domain", "book"]


def shell(*args: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "starec_env.cli", *map(str, args)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def call(*args: object) -> str:
    """A command in this process; its errors are raised."""
    result = CliRunner().invoke(starec, list(map(str, args)), standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint(scripted(), models=("scripted",)) as server:
        yield server


@pytest.fixture(scope="module")
def runs(folder: Path, endpoint: FakeEndpoint) -> Path:
    """Two runs of the same users on books.csv, from the shell: `a` of 2 turns and `b`, another agent's, of 3."""
    common = ["--quiet", "--users", 8, "--base-url", endpoint.url, "--model", "scripted", *data_options(folder)]
    for name, turns, agent in (("a", 2, "starec"), ("b", 3, "rank-only")):
        shell(
            "simulate",
            *common,
            "--turns",
            turns,
            "--agent",
            agent,
            "--targets",
            "liked",
            "--out",
            folder / "runs" / name,
        )
    return folder / "runs"


def test_data_check_shows_counts_scale_dates_and_notes(folder: Path) -> None:
    output = shell("data", "check", *data_options(folder)[1:])
    assert "40" in output and "1,000" in output and "5-core" in output
    assert "10: " in output and "liked (above 6)" in output
    assert "times 2020-09-13 to 2020-09-13" in output
    assert "user=reader, item=book, rating=stars_given, time=at_ms" in output


def test_a_run_remembers_its_file_its_columns_and_its_preparation(folder: Path, runs: Path) -> None:
    about = read_run(runs / "a")
    assert about["data"] == {
        "dataset": str(folder / "books.csv"),
        "data_dir": None,
        "columns": COLUMNS,
        "items": str(folder / "titles.csv"),
        "domain": "book",
        "liked_above": 6,
        "min_interactions": 5,
        "max_length": 30,
    }
    loaded = DataSpec.of(**about["data"]).load()
    assert loaded.hash == about["dataset"]["hash"] and loaded.source == about["data"]
    step = next(read_steps(runs / "a"))
    prompt = step.calls[0].messages[-1]["content"]
    assert 'Volume "' in prompt and "book" in prompt


def test_a_run_is_evaluated_by_its_folder_alone_and_reported(runs: Path) -> None:
    output = shell("eval", "--quiet", "--run", runs / "a", "--methods", "random,pop", "--out", runs / "table")
    found = json.loads((runs / "table" / "results.json").read_text())
    assert found["dataset"] == "books" and found["runs"] == [str(runs / "a")]
    assert [row["method"] for row in found["rows"]] == ["reflect-always (scripted)", "random", "pop"]
    assert found["rows"][0]["cases"] == 16 and "pop" in output
    pytest.importorskip("matplotlib")
    shell("report", runs / "a", "--out", runs / "page.html")
    assert "reflect-always a" in (runs / "page.html").read_text()


def test_runs_are_compared_with_each_other_on_the_turns_that_all_finished(runs: Path) -> None:
    output = shell(
        "eval", "--quiet", "--run", runs / "a", "--run", runs / "b", "--methods", "pop", "--out", runs / "both"
    )
    found = json.loads((runs / "both" / "results.json").read_text())
    assert [row["method"] for row in found["rows"]] == [
        "a: reflect-always (scripted)",
        "b: rank-only (scripted)",
        "pop",
    ]
    assert {row["cases"] for row in found["rows"]} == {16}
    assert "16 of its 24 finished turns (67%) are in all runs" in " ".join(output.split())
    assert "against a: reflect-always (scripted)" in " ".join(output.split())
    other = call("eval", "--quiet", "--run", runs / "b", "--run", runs / "a", "--methods", "pop", "--against", "b")
    assert "against b: rank-only (scripted)" in " ".join(other.split())


def test_an_order_of_runs_changes_no_row(runs: Path) -> None:
    tables = []
    for names in ("ab", "ba"):
        given = [part for name in names for part in ("--run", runs / name)]
        call("eval", "--quiet", *given, "--methods", "pop,item-knn", "--out", runs / names)
        rows = json.loads((runs / names / "results.json").read_text())["rows"]
        tables.append({row["method"]: (row["ndcg@10"], row["ndcg@10_se"]) for row in rows})
    assert tables[0] == tables[1]


def run_on(data: Dataset, out: Path, **options: Any) -> Path:
    agent = UserAgent.factory(ScriptedChat(scripted_user()), answer_format="compact")
    run_population(data, agent, out=out, progress=False, **{"users": 8, "turns": 2, **options})
    return out


def test_runs_without_a_shared_turn_or_with_other_candidates_are_refused_with_the_reason(
    folder: Path, tmp_path: Path
) -> None:
    data = spec(folder).load()
    a = run_on(data, tmp_path / "a", users=["r-1", "r-2"])
    apart = run_on(data, tmp_path / "apart", users=["r-3"])
    reseeded = run_on(data, tmp_path / "reseeded", users=["r-1"], seed=7)
    shorter = run_on(data, tmp_path / "shorter", users=["r-1"], n_candidates=5)
    for other, why in ((apart, "no turn is finished in all"), (reseeded, "seed is 7 there and 0"), (shorter, "is 5 ")):
        with pytest.raises(RunError, match=why):
            call("eval", "--quiet", "--run", a, "--run", other)
    with pytest.raises(InvalidOption, match="given twice"):
        call("eval", "--quiet", "--run", a, "--run", a)


def test_data_that_changed_since_the_run_are_refused_and_moved_ones_are_found_where_they_are_said_to_be(
    folder: Path, tmp_path: Path
) -> None:
    mine, titles = tmp_path / "mine.csv", folder / "titles.csv"
    mine.write_bytes((folder / "books.csv").read_bytes())
    run = run_on(DataSpec.of(dataset=mine, columns=COLUMNS, items=titles).load(), tmp_path / "run")
    moved = mine.rename(tmp_path / "moved.csv")
    with pytest.raises(RunError, match=f"the run's {mine} isn't there: --dataset says where it is now"):
        call("eval", "--quiet", "--run", run)
    assert "pop" in call("eval", "--quiet", "--run", run, "--methods", "pop", "--dataset", moved)
    moved.write_text(moved.read_text().replace("r-1,", "r-one,"))
    with pytest.raises(RunError, match=r"other data: mine.*this is moved.*--dataset"):
        call("eval", "--quiet", "--run", run, "--dataset", moved)


def test_a_run_on_a_table_in_memory_asks_for_its_file(folder: Path, tmp_path: Path) -> None:
    table = {name: [row[name] for row in rows()] for name in rows()[0]}
    names = {"user": "reader", "item": "book", "rating": "stars_given", "timestamp": "at_ms"}
    run = run_on(prepare(from_frame(table, **names)), tmp_path / "run")
    assert read_run(run)["data"] is None
    with pytest.raises(InvalidOption, match=r"table in memory.*--dataset FILE"):
        call("eval", "--quiet", "--run", run)
    file = write_csv(tmp_path / "table.csv", rows())
    columns = NAMED.removesuffix(",title=called")
    assert "pop" in call("eval", "--quiet", "--run", run, "--methods", "pop", "--dataset", file, "--columns", columns)


def test_a_run_on_a_named_data_set_remembers_its_preparation(tmp_path: Path) -> None:
    run = run_on(prepare(load_dataset("ml-latest-small"), min_interactions=3, max_length=20), tmp_path / "run")
    assert read_run(run)["data"]["min_interactions"] == 3
    assert "pop" in call("eval", "--quiet", "--run", run, "--methods", "pop")


def test_a_data_set_prepared_twice_or_changed_has_no_source() -> None:
    once = prepare(load_dataset("ml-latest-small"))
    assert once.source is not None and prepare(once).source is None
    assert once.with_rows(np.arange(once.n_interactions)).source is None


@pytest.mark.parametrize("kind", ["tsv", "semicolons", "bom", "csv.gz", "jsonl", "json.gz", "parquet", "parquet dates"])
def test_every_kind_of_file_gives_the_same_data_set(kind: str, folder: Path, tmp_path: Path) -> None:
    table, path = rows(), tmp_path / f"books.{kind.split()[0]}"
    if kind == "tsv":
        write_csv(path, table, delimiter="\t", lineterminator="\n\n")
    elif kind == "semicolons":
        write_csv(path, table, delimiter=";", quoting=csv.QUOTE_ALL)
    elif kind == "bom":
        path.write_bytes(b"\xef\xbb\xbf" + write_csv(tmp_path / "plain", table).read_bytes() + b"\r\n,,,\r\n")
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(write_csv(tmp_path / "plain", table).read_bytes()))
    elif kind.startswith("json"):
        text = "\n".join(json.dumps({**row, "text": "\ud83d"}) for row in table)
        path.write_bytes(gzip.compress(text.encode()) if kind == "json.gz" else text.encode())
    else:
        columns: dict[str, Any] = {name: [row[name] for row in table] for name in table[0]}
        if kind == "parquet dates":
            columns["at_ms"] = pa.array(columns["at_ms"]).cast(pa.timestamp("ms"))
        pq.write_table(pa.table(columns), path)
    want = spec(folder, dataset=write_csv(tmp_path / "same.csv", table)).load()
    found = spec(folder, dataset=path).load()
    assert found.hash == want.hash
    assert found.items[0].title == 'Volume "0", new' and found.items[1].attributes == {"genre": "verse"}


def test_usual_names_of_columns_are_found_and_said(tmp_path: Path) -> None:
    days = [datetime(2020, 1, day + 1, tzinfo=UTC).date().isoformat() for day in range(3)]
    table = [{"userId": 7, "movie-id": k, "Score": 4.5, "date": day, "note": "x"} for k, day in enumerate(days)]
    dataset = DataSpec.of(dataset=write_csv(tmp_path / "films.csv", table)).read()
    assert dataset.user_ids.tolist() == [7] and [item.id for item in dataset.items] == [0, 1, 2]
    assert dataset.timestamps.tolist() == [1_577_836_800 + 86_400 * day for day in range(3)]
    assert "user=userId, item=movie-id, rating=Score, time=date" in dataset.notes[0]


def test_without_ratings_and_times_all_are_liked_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "plays.csv", [{"user": "a", "item": item} for item in "cab"])
    dataset = DataSpec.of(dataset=path).read()
    order = [dataset.items[i].id for i in dataset.item_indices]
    assert order == ["c", "a", "b"] and dataset.liked.all()
    assert "no rating, no time" in dataset.notes[0]


@pytest.mark.parametrize("ids", [["007", "7"], ["1_0", "10"], ["2 ", "2"], [str(2**63), "1"], ["\uff12", "2"]])
def test_ids_stay_text_and_apart_unless_all_are_whole_numbers(ids: list[str], tmp_path: Path) -> None:
    path = write_csv(tmp_path / "ids.csv", [{"user": user, "item": "x"} for user in ids])
    assert sorted(DataSpec.of(dataset=path).read().user_ids.tolist()) == sorted(ids)


def test_ids_of_two_files_are_numbers_only_if_all_are(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "ids.csv", [{"user": 1, "item": 2}, {"user": 1, "item": 3}])
    items = write_csv(tmp_path / "items.csv", [{"id": "2", "name": "Two"}, {"id": "3", "name": "Three"}])
    assert DataSpec.of(dataset=path, items=items).read().items[0].id == 2
    write_csv(items, [{"id": "2", "name": "Two"}, {"id": "3", "name": "Three"}, {"id": "x", "name": "Ex"}])
    found = DataSpec.of(dataset=path, items=items).read()
    assert {item.id: item.title for item in found.items}["2"] == "Two"


def test_a_column_may_be_an_items_id_and_its_title(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "plays.csv", [{"who": "a", "artist": artist} for artist in ("The  Who", "Can")])
    columns = {"user": "who", "item": "artist", "title": "artist"}
    found = DataSpec.of(dataset=path, columns=columns).read()
    assert {item.id: item.title for item in found.items} == {"The  Who": "The Who", "Can": "Can"}
    items = write_csv(
        tmp_path / "artists.csv", [{"artist": name, "title": "Sir", "item": 3} for name in ("The  Who", "Can")]
    )
    found = DataSpec.of(dataset=path, items=items, columns=columns).read()
    assert found.items[found.item_index("Can")].title == "Can"
    assert dict(found.items[0].attributes) == {"title_": "Sir", "item_": "3"}


def test_few_bad_rows_are_left_out_and_counted_many_are_an_error(tmp_path: Path) -> None:
    lines = ["user,item,rating,time", *(f"u{n % 20},i{n},4,{n}" for n in range(400))]
    path = tmp_path / "mine.csv"
    for number, bad in ((7, "u1,i5,none,3"), (9, "u1,i5"), (11, ",i5,4,3")):
        lines[number] = bad
        path.write_text("\n".join(lines))
        found = DataSpec.of(dataset=path).read()
        assert any("mine.csv" in note and "line 8" in note and "'none'" in note for note in found.notes)
    lines[13:16] = ["u1,i5,1_0,3", "u1,i5,nan,3", "u1,i5,4,yesterday"]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="6 of 400 rows"):
        DataSpec.of(dataset=path).read()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("the reader,i\n1,2\n", "as --columns 'user=the reader,item=i' "),
        ("u,i,r\n1,2,3\n", r"no column that is known as user or item, but u, i, r: .*--columns user=u,item=i"),
        ("user_id:token\titem_id:token\n1\t2\n", "--dataset recbole --data-dir"),
        ("user,item\n", "holds no interactions"),
        ("user,item,user\n1,2,3\n", "two columns are called 'user'"),
        ('[{"user": 1, "item": 2}]', "JSON lines"),
        ('user,item\n1,"' + "x" * 200_000, "line 2.*quote"),
        ("\0\1\2\3", "binary"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_the_reason(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        DataSpec.of(dataset=path).read()


def test_a_gzip_stream_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv.gz"
    path.write_bytes(gzip.compress(b"user,item\n" + b"".join(b"u%d,i%d\n" % (n, n) for n in range(9999)))[:-300])
    with pytest.raises(DataError, match="cut short"):
        DataSpec.of(dataset=path).read()


def test_a_column_that_is_named_but_not_there_is_refused_with_those_that_are(folder: Path) -> None:
    with pytest.raises(DataError, match="no column 'buch', but reader, book, stars_given, at_ms"):
        spec(folder, columns={**COLUMNS, "item": "buch"}).load()
    with pytest.raises(DataError, match="as --columns item=book "):
        spec(folder, columns={**COLUMNS, "item": "bok"}).load()
    with pytest.raises(DataError, match=r"titles.csv: .*no column 'name', but book, called, genre"):
        spec(folder, columns={**COLUMNS, "title": "name"}).load()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["data", "check", "ml-latest-smal"], r"did you mean 'ml-latest-small'\?; nor is there a file of that name"),
        (["data", "check", "ml-latest-small", "--columns", "user=u"], "--columns is for a file of your own"),
        (["data", "check", "ml-latest-small", "--items", "FILE"], "--items is for a file of your own"),
        (["data", "check", "FILE", "--data-dir", "."], "--data-dir is for a data set by name"),
        (["data", "check", "."], "is a folder: give --dataset NAME --data-dir"),
        (["data", "check", "FILE", "--dataset", "FILE"], "--dataset has no effect beside"),
        (["data", "check", "FILE", "--columns", "user"], "wanted ROLE=NAME"),
        (["data", "check", "FILE", "--columns", "person=u"], "no column to name 'person'"),
        (["data", "check", "FILE", "--columns", "user=u,item=u"], "user and item are both 'u'"),
        (["eval", "--run", "RUN", "--users", 3], "--users has no effect with --run"),
        (["eval", "--run", "RUN", "--set", "min_history=3", "--seed", 1], "--seed.* no effect with --run"),
        (["eval", "--run", "RUN", "--reading", "paper"], "--reading has no effect with --run"),
        (["eval", "--run", "RUN", "--repetitions", 1], "--repetitions has no effect with --run"),
        (["eval", "--run", "RUN", "--train-users", "FILE"], "--train-users has no effect with --run"),
        (["eval", "--run", "RUN", "--candidates", "FILE"], "--candidates has no effect with --run"),
        (["eval", "--run", "RUN", "--n-candidates", 9], "--n-candidates has no effect with --run"),
        (["eval", "--run", "RUN", "--min-interactions", 3], "--min-interactions has no effect with --run"),
        (["eval", "--run", "RUN", "--columns", "user=u"], "--columns has no effect with --run"),
        (["eval", "--run", "RUN", "--base-url", "http://x/v1"], "--base-url has no effect unless one of --methods"),
        (["eval", "--run", "RUN", "--against", "c"], "no method or run to compare against 'c'"),
        (["eval", "--warmup", 3], "--warmup has no effect unless one of --methods asks a model"),
        (["eval", "--max-retries", 3], "--max-retries has no effect unless"),
        (["eval", "--resume"], "--resume has no effect without --out"),
        (["eval", "--config", "FILE"], "--config has no effect without METHOD@NAME"),
        (["eval", "--candidates", "FILE", "--users", 3], "--users has no effect with --candidates"),
        (["eval", "--min-interactions", 3, "--set", "min_interactions=4"], "are the same: give one"),
        (["eval", "--tables", 4, "--config", "FILE", "--out", "x", "--seed", 3], "--seed has no effect with --tables"),
        (["simulate", "--ray-address", "auto"], "--ray-address has no effect without --engine ray"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused_by_name(
    args: list[object], said: str, folder: Path, runs: Path
) -> None:
    places = {"FILE": folder / "books.csv", "RUN": runs / "a"}
    given = [places.get(str(arg), arg) for arg in args]
    if args[0] == "simulate":
        given += ["--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--out", folder / "none"]
    with pytest.raises(StarecError, match=said):
        call(*given)


@pytest.mark.parametrize(
    ("args", "new"),
    [
        (["simulate", "--candidates", 1], "--candidates is --n-candidates now"),
        (["eval", "--retries=-1"], "--retries is --max-retries now"),
    ],
)
def test_old_spellings_are_taken_with_a_warning_that_names_the_new(args: list[object], new: str) -> None:
    output = shell(*args, code=2)  # the value is out of range, which the new name's error says
    assert new in output and "the old name goes with the next release" in output
    assert f"Invalid value for '{new.split()[2]}'" in output


def test_own_data_are_evaluated_without_a_run_under_their_own_filter(folder: Path, tmp_path: Path) -> None:
    call("eval", "--quiet", *data_options(folder), "--users", 10, "--methods", "pop", "--out", tmp_path / "t")
    found = json.loads((tmp_path / "t" / "results.json").read_text())
    assert found["reading"]["min_interactions"] == 5 and found["reading"]["max_length"] == 30
    assert found["rows"][0]["users"] == 10


def test_times_as_text_keep_their_nanoseconds_and_ids_their_spaces_which_is_noted(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    lines = [f"u,{item} ,2018-09-21T13:05:00.1234560{late}\n" for item, late in (("c", 30), ("b", 20), ("a", 10))]
    file.write_text("user,item,time\n" + "".join(lines))
    dataset = DataSpec(dataset=str(file), min_interactions=None, max_length=None).load()
    assert dataset.user_ids.tolist() == ["u"]
    assert [dataset.items[index].id for index in dataset.item_indices] == ["a ", "b ", "c "]
    assert dataset.nanoseconds is not None and dataset.nanoseconds.tolist() == [123456010, 123456020, 123456030]
    assert any(note.startswith("3 item ids with spaces at an end, e.g. 'a '") for note in dataset.notes)


def test_the_table_of_a_run_prints_which_targets_it_asked_for(folder: Path, tmp_path: Path) -> None:
    run = run_on(spec(folder).load(), tmp_path / "all", targets="all", min_history=2)
    output = " ".join(call("eval", "--quiet", "--run", run, "--methods", "pop").split())
    assert "targets=all" in output and "min_history=2" in output
