"""Methods by name and endpoint, `starec eval` with a model, and the whole of section 5 from one file."""

import json
import re

import pytest
from click.testing import CliRunner
from fake_endpoint import FakeEndpoint

from starec_agents.llm.base import Endpoint
from starec_agents.llm.scripted import scripted_user
from starec_agents.runs.reading import read_steps
from starec_agents.serving.card import ModelCard
from starec_env.data.spec import DataSpec
from starec_env.data.splits import Split, make_split
from starec_env.errors import InvalidOption, RunError, UnknownName
from starec_eval.commands import eval_command
from starec_eval.paper import read_config
from starec_eval.rankers import LLMRanker, build_methods
from starec_eval.report import write_report
from starec_eval.report.figures import FigureData
from starec_eval.report.tables import TableData

HERE = {"": Endpoint(base_url="http://127.0.0.1:9/v1", model="m"), "big": Endpoint(base_url="http://x/v1", model="b")}


def answer(body):
    if "'Choice: A'" in body["messages"][0]["content"]:
        return "Choice: A\nReason: why not."
    said = scripted_user()(body["messages"], {})
    if body["temperature"]:  # samples differ
        labels = said.split()
        shift = answer.calls = getattr(answer, "calls", 0) + 1
        return " ".join(labels[shift % 20 :] + labels[: shift % 20])
    return said


@pytest.fixture(scope="module")
def server():
    with FakeEndpoint(answer, models=("small", "large")) as running:
        yield running


def starec_eval(*args, code=0):
    result = CliRunner().invoke(eval_command, [*map(str, args), "--quiet"], standalone_mode=False)
    if result.exception:
        raise result.exception
    assert result.return_value == code, result.output
    return result.output


CONFIG = """
users = 5
repetitions = 2
warmup = 1
answer_format = "compact"
concurrency = 8
max_history = 12
[endpoints.small]
base_url = "{url}"
model = "small"
max_retries = 0
[endpoints.large]
base_url = "{url}"
model = "large"
max_retries = 0
[endpoints.gone]
base_url = "http://127.0.0.1:9/v1"
model = "gone"
max_retries = 0
[datasets.ml-latest-small]
[tables.4]
Pop = "pop"
LLMRank = "llmrank@small"
AgentCF = "agentcf-like@small"
"STARec-Teacher (R1-32B)" = "starec@gone"
"STARec_sample" = "starec@large"
[tables.5]
STARec = "starec@small"
"w/o Self-Reflection" = "append-history@small"
[tables.6]
"STARec-SFT-0.5B" = "starec@small"
"STARec-SFT-1.5B" = "starec@large"
[figures.2a]
"STARec-1.5B" = "starec@large"
[figures.2b]
sampled = "starec@small"
against = "starec@large"
samples = 10
"""


@pytest.fixture(scope="module")
def section(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("section5")
    (folder / "c.toml").write_text(CONFIG.format(url=server.url))
    args = ("--tables", "4,5,6", "--figures", "2a,2b", "--config", folder / "c.toml", "--out", folder / "out")
    return folder / "out", args, starec_eval(*args, code=3)


def test_one_command_makes_all_tables_and_figures_and_a_failed_method_says_so(section):
    out, _, printed = section
    whole = json.loads((out / "section5.json").read_text())
    tables = [TableData(**table) for table in whole["tables"]]
    figures = [FigureData.from_json(figure) for figure in whole["figures"]]
    assert [len(table.rows) for table in tables] == [5, 2, 2]
    assert [figure.title.rpartition("(")[2] for figure in figures] == ["Table 6)", "Figure 2a)", "Figure 2b)"]
    teacher = next(row for row in tables[0].rows if row[0].startswith("STARec-Teacher"))
    assert teacher[1:] == ["failed"] * 4 and any("127.0.0.1:9" in note for note in tables[0].notes)
    assert all("failed" not in row for row in tables[1].rows + tables[2].rows)
    assert not any("llmrank" in note or "127.0.0.1:9" in note for note in tables[1].notes)
    assert tables[1].notes[-1] == "STARec: starec@small; w/o Self-Reflection: append-history@small"
    assert "Table 5" in printed and "w/o Self-Reflection" in printed
    scales, activity, best = figures
    assert [point.label for point in scales.series["STARec-SFT, ml-latest-small"]] == ["0.5", "1.5"]
    assert sum(point.n for point in activity.series["STARec-1.5B, ml-latest-small"]) == 5
    curve = best.series["starec@small, ml-latest-small"]
    assert [point.label for point in curve] == ["1", "5", "10"]
    assert curve[0].mean < curve[1].mean < curve[2].mean and list(best.lines) == [
        "starec@large, N = 1, ml-latest-small"
    ]


def test_tables_are_markdown_and_latex_with_best_and_second_marked(section):
    out, _, _ = section
    latex = (out / "table4.tex").read_text()
    assert latex.count(r"\textbf{") >= 4 and latex.count(r"\underline{") >= 4 and r"\toprule" in latex
    assert r"STARec\_sample" in latex and "**" not in latex and "__" not in latex
    rows = re.findall(r"^.+ \\\\$", latex, re.MULTILINE)
    assert {row.count("&") for row in rows} == {4}
    assert "| Pop | " in (out / "table4.md").read_text()


def test_each_method_runs_once_and_a_second_call_only_tries_what_failed(section, server):
    out, args, _ = section
    runs = {path.name for path in (out / "ml-latest-small" / "runs").iterdir()}
    assert {"starec@small", "starec@large", "append-history@small", "llmrank@small", "agentcf-like@small"} <= runs
    asked = server.requests
    with pytest.raises(RunError, match="--resume"):
        starec_eval(*args)
    starec_eval(*args, "--resume", code=3)
    assert server.requests == asked


def test_the_report_shows_the_section(section, tmp_path):
    out, _, _ = section
    text = write_report([out], tmp_path / "r.html").read_text()
    for title in (
        "Table 4: performance on ml-latest-small",
        "Table 6: model scales on ml-latest-small",
        "Model scales",
        "Best of N (Figure 2b)",
    ):
        assert f"<h3>{title}" in text
    assert "starec@large" in text and "STARec-Teacher (R1-32B)" in text


def test_the_command_evaluates_methods_at_an_endpoint_and_at_named_ones(server, tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG.format(url=server.url))
    args = ("--users", 4, "--methods", "pop,starec,rank-only@large", "--base-url", server.url, "--model", "small")
    more = ("--config", tmp_path / "c.toml", "--answer-format", "compact", "--warmup", 1, "--out", tmp_path / "out")
    printed = starec_eval(*args, *more, "--max-history", 2, "--against", "pop")
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["pop", "starec", "rank-only@large"]
    assert all(row["error"] is None and row["users"] == 4 and row["cases"] == 12 for row in rows)
    steps = list(read_steps(tmp_path / "out" / "runs" / "starec" / "0"))
    assert len(steps) == 8 and steps[0].calls[0].messages[-1]["content"].count("\n+ ") <= 2
    assert re.search(r"against pop at NDCG@10,.*:\s+starec\s+[+-]\d", printed, re.S)
    with pytest.raises(UnknownName, match="popp"):
        starec_eval("--methods", "pop", "--against", "popp")
    with pytest.raises(InvalidOption, match="--base-url and --model"):
        starec_eval("--methods", "starec")


def test_an_endpoint_that_is_gone_fails_its_own_row_only(tmp_path):
    args = ("--users", 3, "--methods", "starec,pop", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    starec_eval(*args, "--set", "min_history=6", "--timeout", 1, "--max-retries", 0, "--out", tmp_path, code=3)
    starec, pop = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert "127.0.0.1:9" in starec["error"] and starec["ndcg@10"] is None and pop["error"] is None


def test_llm_methods_rank_a_runs_own_turns_too(server, tmp_path):
    from starec_agents import Endpoint, OpenAIChat, UserAgent, run_population
    from starec_env import load_dataset, prepare

    llm = OpenAIChat(Endpoint(base_url=server.url, model="small"))
    data = prepare(load_dataset("ml-latest-small"))
    options = {"targets": "liked", "progress": False}
    run_population(data, UserAgent.factory(llm), users=3, turns=2, out=tmp_path / "run", **options)
    args = ("--run", tmp_path / "run", "--methods", "llmrank", "--base-url", server.url, "--model", "small")
    starec_eval(*args, "--out", tmp_path / "out")
    agent, llmrank = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert agent["cases"] == llmrank["cases"] == 6 and llmrank["error"] is None


def test_settings_of_a_reading_change_by_name(tmp_path):
    settings = ("--set", "negatives=target", "--set", "max_length=30")
    starec_eval("--users", 5, "--methods", "pop", *settings, "--out", tmp_path)
    reading = json.loads((tmp_path / "results.json").read_text())["reading"]
    assert (reading["negatives"], reading["max_length"], reading["sequences"]) == ("target", 30, "all")
    with pytest.raises(KeyError, match="did you mean 'negatives'"):
        starec_eval("--set", "negative=target")
    for wrong in ("negatives=none", "max_length=many", "transductive=perhaps"):
        with pytest.raises(InvalidOption, match=wrong.split("=")[0]):
            starec_eval("--set", wrong)


def test_methods_keep_their_order_and_share_an_endpoints_client():
    made = build_methods(["starec@big", "pop", "llmrank", "sasrec-full", "starec", "rank-only@big"], HERE, warmup=3)
    assert [getattr(method, "label", getattr(method, "name", "")) for method in made] == [
        "starec@big", "pop", "llmrank", "sasrec-full", "starec", "rank-only@big",
    ]  # fmt: skip
    agents = [method for method in made if isinstance(method, LLMRanker)]
    assert [method.warmup for method in agents] == [3, 0, 3, 0]
    assert agents[0].agent().llm is agents[3].agent().llm is not agents[1].agent().llm


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("users = [", InvalidOption, "isn't TOML"),
        ("user = 3", InvalidOption, "user: Extra inputs"),
        ("warmup = 50", InvalidOption, "warmup"),
        ("[endpoints.a]\nmodel = 'x'", InvalidOption, "endpoints.a.base_url"),
        ("[tables.4]\nPop = 'pop'", InvalidOption, "names no data set"),
        ("[datasets.ml-latest-small]\n[tables.5]\nPop = 'pop'", UnknownName, "no table in the configuration '4'"),
        ("[datasets.ml-latest-small]\n[tables.4]\nPop = 'pip'", UnknownName, "did you mean 'pop'"),
        ("[datasets.ml-latest-small]\n[tables.4]\nA = 'starec@a'", UnknownName, "no endpoint 'a'"),
        ("[datasets.ml-latest-small]\nreading = 'papper'\n[tables.4]\nPop = 'pop'", UnknownName, "mean 'paper'"),
    ],
)
def test_a_wrong_configuration_is_named_before_anything_runs(text, error, said, tmp_path):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(error, match=re.escape(said)):
        starec_eval("--tables", "4", "--config", tmp_path / "c.toml", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_data_set_has_its_own_split_and_models_and_a_model_trained_on_test_users_is_refused(server, tmp_path):
    split = make_split(DataSpec(), test=4, train=20)
    split.save(tmp_path / "split.json")
    ModelCard(stage="sft", base_model="m", split=Split(dataset=split.dataset, train=split.test)).save(tmp_path)
    text = f"""
        answer_format = "labels"
        [endpoints.mine]
        base_url = "{server.url}"
        model = "elsewhere"
        [datasets.ml-latest-small]
        split_file = "{tmp_path}/split.json"
        [datasets.ml-latest-small.endpoints.mine]
        base_url = "{server.url}"
        model = "small"
        [tables.5]
        STARec = "rank-only@mine"
        """
    (tmp_path / "c.toml").write_text(text)
    args = ("--tables", "5", "--config", tmp_path / "c.toml", "--out")
    starec_eval(*args, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "ml-latest-small" / "results.json").read_text())
    assert results["split"] == split.hash and results["test_users"] == 4 and results["reading"]["warmup"] == 10
    (tmp_path / "c.toml").write_text(f'{text}[model_cards]\nmine = "{tmp_path}"')
    with pytest.raises(InvalidOption, match="4 of 4 users are among those"):
        starec_eval(*args, tmp_path / "refused")
    (tmp_path / "c.toml").write_text(text.replace("split_file", "users = 3\nsplit_file"))
    with pytest.raises(InvalidOption, match="users beside split_file"):
        starec_eval(*args, tmp_path / "both")


def test_tables_and_figures_need_a_configuration_and_a_folder(tmp_path):
    with pytest.raises(InvalidOption, match="--config and --out"):
        starec_eval("--tables", "4", "--out", tmp_path)
    (tmp_path / "c.toml").write_text("[datasets.ml-latest-small]\n[figures.2b]\nsampled = 'starec@x'\nagainst = 'pop'")
    with pytest.raises(InvalidOption, match="an endpoint of the file"):
        starec_eval("--figures", "2b", "--config", tmp_path / "c.toml", "--out", tmp_path / "out")
    assert read_config(tmp_path / "c.toml").seed == 0
