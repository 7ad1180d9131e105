"""Exported runs in the readers that people use: `make test-adapters`."""

import pytest
from support import make_dataset

from starec_agents import ScriptedChat, UserAgent, graphs, run_population, scripted_user
from starec_agents.runs.export import export_runs

pytestmark = pytest.mark.adapters
duckdb = pytest.importorskip("duckdb", reason="make test-adapters installs duckdb")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for seed, graph in enumerate([graphs.reflect_always, graphs.rank_only]):
        agent = UserAgent.factory(ScriptedChat(scripted_user(seed)), graph=graph)
        run_population(make_dataset(), agent, out=folder / str(seed), turns=2, seed=seed, progress=False)
    one = [export_runs([folder / str(seed)], folder / f"one-{seed}")[0].parent for seed in (0, 1)]
    both = export_runs([folder / "0", folder / "1"], folder / "both", "hf")[0].parent
    texts = export_runs([folder / "0", folder / "1"], folder / "csv", "csv")[0].parent
    return one, both, texts


def test_duckdb_tells_runs_apart_and_joins_their_calls(exported):
    one, both, texts = exported
    asked = "select graph, seed, count(*), avg(reward) from '{}' group by all order by seed"
    rows = duckdb.sql(asked.format(both / "steps.parquet")).fetchall()
    assert [row[:3] for row in rows] == [("reflect-always", 0, 24), ("rank-only", 1, 24)]
    assert rows == duckdb.sql(asked.format(one[0].parent / "one-*" / "steps.parquet")).fetchall()
    assert rows == duckdb.sql(asked.format(texts / "steps.csv")).fetchall()
    joined = f"from '{both}/steps.parquet' s join '{both}/calls.parquet' c using (run, user_id, turn)"
    assert duckdb.sql(f"select count(*) {joined}").fetchall() == [(24 * 2 + 24,)]
    assert duckdb.sql(f"select c.messages[1].role {joined} limit 1").fetchall() == [("system",)]


def test_datasets_loads_the_folder_by_its_card(exported, tmp_path):
    from datasets import concatenate_datasets, load_dataset

    one, both, _ = exported
    for name, n in (("steps", 48), ("calls", 72)):
        whole = load_dataset(str(both), name, cache_dir=tmp_path)["train"]
        assert len(whole) == n and len(set(whole["run"])) == 2
        files = [str(folder / f"{name}.parquet") for folder in one]
        assert len(load_dataset("parquet", data_files=files, cache_dir=tmp_path)["train"]) == n
        parts = [load_dataset("parquet", data_files=file, cache_dir=tmp_path)["train"] for file in files]
        assert concatenate_datasets(parts).features == whole.features


def test_pandas_and_polars_read_both(exported):
    import pandas as pd
    import polars as pl

    one, both, _ = exported
    together = pd.concat([pd.read_parquet(folder / "calls.parquet") for folder in one], ignore_index=True)
    assert together.groupby("run")["completion"].count().tolist() in ([48, 24], [24, 48])
    assert pl.read_parquet([folder / "steps.parquet" for folder in one]).equals(pl.read_parquet(both / "steps.parquet"))
