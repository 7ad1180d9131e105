"""Several seeds in one table: figures and intervals over seeds and users."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from fake_endpoint import FakeEndpoint, scripted
from support import make_dataset

from starec_agents.runs.reading import read_steps
from starec_env.errors import InvalidOption, RunError
from starec_env.metrics import difference, holm, interval, ndcg, resampled_means
from starec_eval.commands import eval_command
from starec_eval.evaluate import evaluate
from starec_eval.protocol import Protocol, Reading
from starec_eval.rankers import ItemKNN, Pop
from starec_eval.report.page import write_report
from starec_eval.seeds import SeedResults, evaluate_seeds
from starec_eval.table import Results, Scored

DATASET = make_dataset(n_users=60, n_items=80, length=20)


def protocol(seed):
    return Protocol(DATASET, Reading(min_interactions=2), users=25, seed=seed)


def starec_eval(*args):
    result = CliRunner().invoke(eval_command, [*map(str, args), "--quiet"], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def results():
    rng, found = np.random.default_rng(0), {}
    for seed in (3, 5, 8):
        made = protocol(seed)
        good = rng.integers(1, 9, len(made.cases)).astype(float)
        methods = [Scored("good", good, 1.0), Scored("worse", good + rng.integers(0, 3, len(good)), 2.0)]
        found[seed] = Results(made.describe(), made.cases, methods)
    return SeedResults(found, against="good")


def by_user(results, method):
    """(seeds, all users of the data set) NDCG@10, written down plainly."""
    table = np.full((len(results.by_seed), DATASET.n_users), np.nan)
    for row, part in zip(table, results.by_seed.values(), strict=True):
        (ranks,) = (scored.ranks for scored in part.methods if scored.method == method)
        for user in np.unique(part.cases.users):
            row[user] = ndcg(ranks[part.cases.users == user], 10).mean()
    return table[:, ~np.isnan(table).all(axis=0)]


def test_figures_are_means_over_seeds_and_users_and_intervals_hold_both(results):
    good, worse = results.rows
    values = by_user(results, "good")
    assert 25 < values.shape[1] == good["users"] <= 60 and np.isnan(values).any()  # seeds test users of their own
    assert good["ndcg@10"] == pytest.approx(100 * np.nanmean(values), abs=1e-3)
    assert (good["ndcg@10_low"], good["ndcg@10_high"]) == pytest.approx(100 * np.array(interval(values)), abs=1e-3)
    assert good["ndcg@10_se"] == pytest.approx(100 * resampled_means(values).std(ddof=1), abs=1e-3)
    alone = [part.rows[0]["ndcg@10"] for part in results.by_seed.values()]
    assert good["ndcg@10_by_seed"] == alone and good["ndcg@10"] == pytest.approx(np.mean(alone), abs=1e-3)
    assert (good["cases"], good["seconds"], worse["seconds"], good["missing"]) == (225, 3.0, 6.0, 0.0)
    shown = f"{good['ndcg@10']:.1f} ({good['ndcg@10_low']:.1f} to {good['ndcg@10_high']:.1f})"
    notes = results.notes()
    assert shown in results.data.to_markdown()
    assert any(
        note.startswith(f"NDCG@10 by seed 3, 5, 8: good {', '.join(f'{one:.1f}' for one in alone)}; worse ")
        for note in notes
    )
    assert all(f"candidates {part.cases.hash}" in " ".join(notes) for part in results.by_seed.values())
    assert sum(note.startswith("reading: ") for note in notes) == 1 and not any("±" in note for note in notes)


def test_gaps_are_paired_over_seeds_and_users_and_holms(results):
    gaps = by_user(results, "worse") - by_user(results, "good")
    found = results.compare("good")["worse"]
    assert found == difference(gaps) and found.gap == pytest.approx(np.nanmean(gaps)) and found.users == gaps.shape[1]
    assert (found.low, found.high) == interval(gaps) and found.high < 0 and found.p == 2 / 2001
    three = {
        seed: replace(part, methods=[*part.methods, replace(part.methods[0], method="same")])
        for seed, part in results.by_seed.items()
    }
    several = SeedResults(three, against="good")
    adjusted = holm([gap.p for gap in several.compare("good").values()])
    assert adjusted[0] == 2 * found.p and adjusted[1] == 1
    (note,) = [note for note in several.notes() if note.startswith("against good at NDCG@10")]
    assert "p of the bootstrap over seeds and users after Holm" in note and f"p = {adjusted[0]:.3f}" in note


def test_a_method_that_failed_under_a_seed_has_no_figure_and_no_gap(results):
    parts = dict(results.by_seed)
    broken = Scored("worse", np.full(75, np.nan), error="out of memory")
    parts[5] = replace(parts[5], methods=[parts[5].methods[0], broken])
    table = SeedResults(parts, against="good")
    assert table.rows[1]["error"] == "seed 5: out of memory" and table.rows[1]["ndcg@10"] is None
    assert table.compare("good") == {} and "seed 5: worse failed: out of memory" in table.notes()
    assert "| worse | failed | failed |" in table.data.to_markdown()


def test_a_seeds_part_is_the_evaluation_of_that_seed_alone_and_resuming_fits_nothing(tmp_path, monkeypatch):
    def make(seed):
        return [Pop(), ItemKNN(seed=seed)], protocol(seed)

    found = evaluate_seeds(make, [0, 1], out=tmp_path, against="pop")
    found.write(tmp_path)
    alone = evaluate([Pop(), ItemKNN(seed=1)], protocol(1))
    for one, other in zip(found.by_seed[1].methods, alone.methods, strict=True):
        assert one.ranks.tolist() == other.ranks.tolist()
    whole = json.loads((tmp_path / "results.json").read_text())
    assert whole["rows"] == found.rows and whole["seeds"] == [0, 1] and "seed" not in whole
    assert whole["candidates"] == {"0": protocol(0).cases.hash, "1": protocol(1).cases.hash}
    assert json.loads((tmp_path / "seed-1" / "results.json").read_text())["candidates"] == protocol(1).cases.hash

    monkeypatch.setattr(ItemKNN, "fit", lambda self, train: pytest.fail("fitted again"))
    again = evaluate_seeds(make, [0, 1], out=tmp_path, resume=True)
    assert again.rows == found.rows
    with pytest.raises(RunError, match="holds ranks already: pass resume"):
        evaluate_seeds(make, [0, 1], out=tmp_path)
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    low, high = found.rows[1]["ndcg@10_low"], found.rows[1]["ndcg@10_high"]
    assert "seeds 0, 1: ranking in percent with 95 % intervals over seeds and users" in page
    assert f"({low:.1f} to {high:.1f})" in page and ", seed 1: ranking in percent ± standard error" in page


def test_the_command_takes_seeds_and_refuses_what_they_make_senseless(tmp_path):
    for given, message in (
        (["--seeds", "0"], "at least two"),
        (["--seeds", "0,0"], "each once"),
        (["--seeds", "0,-1"], "'-1' is no whole number from 0"),
        (["--seeds", "0,1", "--seed", "2"], "--seed has no effect with --seeds"),
    ):
        with pytest.raises(InvalidOption, match=message):
            starec_eval(*given, "--users", 20, "--methods", "pop")
    output = starec_eval("--seeds", "0,1", "--users", 20, "--methods", "pop,item-knn", "--out", tmp_path / "t")
    rows = json.loads((tmp_path / "t" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["pop", "item-knn"] and "a folder a seed" in output
    starec_eval("--users", 20, "--methods", "pop", "--out", tmp_path / "one")
    with pytest.raises(RunError, match="of a single seed: choose another folder"):
        starec_eval("--seeds", "0,1", "--users", 20, "--methods", "pop", "--out", tmp_path / "one", "--resume")


def test_agents_answer_each_seeds_own_lists_and_a_dry_run_says_for_how_many(tmp_path):
    args = ["--seeds", "0,1", "--users", 3, "--repetitions", 1, "--methods", "pop,rank-only", "--model", "scripted"]
    with FakeEndpoint(scripted(), models=("scripted",)) as endpoint:
        asking = [*args, "--base-url", endpoint.url, "--out", tmp_path / "t"]
        planned = starec_eval(*asking, "--dry-run")
        assert "that is of seed 0, and the others ask as much each: 1" in planned and endpoint.requests == 0
        starec_eval(*asking)
        assert endpoint.requests == 6
        rows = json.loads((tmp_path / "t" / "results.json").read_text())["rows"]
        starec_eval(*asking, "--resume")
        assert endpoint.requests == 6
    runs = [tmp_path / "t" / f"seed-{seed}" / "runs" / "rank-only" / "0" for seed in (0, 1)]
    users = [{step.user_id for step in read_steps(run)} for run in runs]
    assert rows[1]["cases"] == 6 and rows[1]["users"] == len(users[0] | users[1]) and users[0] != users[1]
