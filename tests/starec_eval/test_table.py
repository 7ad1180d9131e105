"""The table in every form: what it says must be what was measured."""

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from support import make_dataset

from starec_env.errors import StarecWarning, UnknownName
from starec_env.metrics import METRICS, hit_rate, holm, mean_and_se, ndcg
from starec_eval.protocol import Protocol, Reading
from starec_eval.table import Results, Scored


@pytest.fixture(scope="module")
def results():
    protocol = Protocol(make_dataset(n_users=60, n_items=80, length=20), Reading(min_interactions=2), users=25)
    rng = np.random.default_rng(0)
    good = rng.integers(1, 6, len(protocol.cases)).astype(float)
    like = np.where(rng.random(len(good)) < 0.05, good + 1, good)
    methods = [
        Scored("poor_one", np.full(len(good), 15.0), 1.25),
        Scored("good", good),
        Scored("alike", like, violations=["user 3, repetition 1: missing: 2"]),
        Scored("broken", np.full(len(good), np.nan), error="user 5: pip install starec[train]"),
    ]
    return Results(protocol.describe(), protocol.cases, methods)


def test_rows_hold_each_metric_in_percent_with_its_error_users_and_seconds(results):
    poor, good, _, broken = results.rows
    assert poor["ndcg@20"] == 25 and poor["ndcg@20_se"] == 0 and poor["ndcg@10"] == 0 and poor["seconds"] == 1.25
    assert good["ndcg@10"] == pytest.approx(100 * ndcg(results.methods[1].ranks, 10).mean(), abs=1e-3)
    assert good["users"] == 25 and good["cases"] == 75 and good["hr@5"] == 100
    assert broken["ndcg@1"] is None and broken["error"] == "user 5: pip install starec[train]"


def test_every_form_marks_best_and_second_and_the_failed_method(results):
    best, second = f"{results.rows[1]['ndcg@10']:.1f}", f"{results.rows[2]['ndcg@10']:.1f}"
    markdown, latex = results.to_markdown(), results.to_latex()
    assert re.search(rf"good .*\*\*{best} ± ", markdown) and re.search(rf"alike .*<u>{second} ± ", markdown)
    assert re.search(rf"\\textbf{{{best} \$\\pm\$", latex) and re.search(rf"\\underline{{{second} \$\\pm\$", latex)
    assert r"poor\_one & " in latex and latex.count(r"\\") == 5 and r"\toprule" in latex
    assert "| broken | failed | failed |" in markdown
    assert "broken failed: user 5: pip install starec[train]" in str(results)


def test_every_table_prints_hash_reading_counts_and_seed(results):
    for text in (results.to_markdown(), results.to_latex(), " ".join(str(results).split())):
        assert results.cases.hash in text and "negatives=history" in text and "seed 0" in text
        assert "1,200 interactions, sparsity 75.00 %" in text


def test_no_gap_is_claimed_unless_a_method_was_named_in_advance(results):
    (note,) = [note for note in results.notes() if "gap" in note]
    assert note.startswith("no gap was tested: name a method in advance") and "--against" in note
    with pytest.warns(StarecWarning, match="good over alike.*holds zero"):
        results.compare("alike")["good"].check("good over alike")
    with pytest.raises(UnknownName, match="alike"):
        results.compare("alikee")
    with pytest.raises(UnknownName):
        results.compare("broken")


def test_p_values_against_the_method_named_are_holms(results):
    gaps = results.compare("alike")
    poor, good = holm([gaps["poor_one"].p, gaps["good"].p])
    note = next(note for note in replace(results, against="alike").notes() if note.startswith("against alike"))
    assert "after Holm" in note and re.search(r"poor_one -[\d.]+ \([^)]*\) p < 0.001", note)
    assert poor == 2 * gaps["poor_one"].p and f"p = {good:.3f}" in note


def test_a_disliked_target_is_left_out_unless_the_reading_says_otherwise(results):
    disliked = np.isin(results.cases.users, np.unique(results.cases.users)[:5])
    disliked |= np.arange(len(results.cases)) == len(results.cases) - 1
    cases = replace(results.cases, liked=~disliked)
    methods = [Scored("good", np.where(disliked, 1.0, results.methods[1].ranks))]
    sour = Results(results.settings, cases, methods)
    (row,) = sour.rows
    kept = ~disliked
    assert (row["users"], row["cases"]) == (20, int(kept.sum()))
    assert row["ndcg@10"] == pytest.approx(
        100 * mean_and_se(ndcg(methods[0].ranks[kept], 10), cases.users[kept])[0], abs=1e-3
    )
    assert f"{int(disliked.sum())} lists whose target the user disliked are not scored" in sour.notes()
    assert sour.per_user()["ndcg@10"].to_numpy()[:5] == pytest.approx([np.nan] * 5, nan_ok=True)
    reading = {**results.settings["reading"], "relevant": "taken"}
    taken = Results({**results.settings, "reading": reading}, cases, methods)
    assert taken.rows[0]["users"] == 25 and taken.rows[0]["ndcg@10"] > row["ndcg@10"]


def test_cut_offs_beyond_the_list_cover_all_of_it_and_the_table_says_so():
    dataset = make_dataset(n_users=60, n_items=80, length=20)
    protocol = Protocol(dataset, Reading(min_interactions=2), users=5, n_candidates=8)
    short = Results(protocol.describe(), protocol.cases, [Scored("last", np.full(15, 8.0))])
    assert "NDCG@20 covers the whole list of 8" in short.notes()
    assert short.rows[0]["ndcg@10"] == short.rows[0]["ndcg@20"] == pytest.approx(100 / np.log2(9), abs=1e-3)


def test_the_notes_tell_paired_differences_to_any_chosen_method(results):
    notes = replace(results, against="poor_one").notes()
    gap = results.compare("poor_one")["good"]
    said = f"good +{100 * gap.gap:.1f} (+{100 * gap.low:.1f} to +{100 * gap.high:.1f})"
    told = next(note for note in notes if note.startswith("against poor_one at NDCG@10"))
    assert said in told and "alike +" in told and "broken" not in told


def test_a_metric_added_in_one_place_is_in_every_file(results, monkeypatch, tmp_path):
    monkeypatch.setitem(METRICS, "first half", partial(hit_rate, k=10))
    again = replace(results)
    again.write(tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["first half"] for row in rows] == [row["hr@10"] for row in rows]
    assert "first half" in pq.read_table(tmp_path / "per_user.parquet").column_names


def test_the_files_hold_what_the_table_shows(results, tmp_path):
    results.write(tmp_path)
    whole = json.loads((tmp_path / "results.json").read_text())
    assert whole["rows"] == results.rows and whole["candidates"] == results.cases.hash
    assert whole["reading"]["negatives"] == "history" and whole["seed"] == 0 and len(whole["counts"]) == 3
    table = pq.read_table(tmp_path / "per_user.parquet")
    mine = table.filter(np.array([name == "good" for name in table["method"].to_pylist()]))
    assert mine.num_rows == 25
    assert 100 * np.mean(mine["ndcg@10"].to_numpy()) == pytest.approx(results.rows[1]["ndcg@10"], abs=1e-3)
    assert pa_csv.read_csv(tmp_path / "per_user.csv").num_rows == table.num_rows == 75
    assert pq.read_schema(tmp_path / "candidates.parquet").metadata[b"starec_hash"].decode() == results.cases.hash
    assert "alike: user 3, repetition 1: missing: 2" in (tmp_path / "violations.txt").read_text()


def test_a_method_without_a_scored_target_has_not_failed(results):
    nobody = replace(results.cases, liked=np.zeros(len(results.cases), bool))
    table = Results(results.settings, nobody, [method for method in results.methods if not method.error])
    table.against = table.methods[0].method
    text = table.to_markdown()
    assert "none scored" in text and "failed" not in text and "nan" not in text
    assert "no user to compare" in text
