"""The report, in a real browser: it opens without errors, everything is text, and timelines are found and read."""

import base64
import gzip
import json
import re
from dataclasses import replace

import pytest
from browser import chromium
from click.testing import CliRunner
from support import make_dataset

from starec_agents.agent import UserAgent
from starec_agents.llm import ScriptedChat
from starec_agents.llm.scripted import scripted_user
from starec_agents.runs.population import run_population
from starec_agents.runs.reading import read_steps
from starec_env.errors import RunError
from starec_env.metrics import Estimate, ndcg
from starec_eval.evaluate import evaluate
from starec_eval.protocol import Protocol, Reading
from starec_eval.rankers import build, build_llm
from starec_eval.report import report, write_report
from starec_eval.report.data import Run, find_runs
from starec_eval.report.figures import FigureData, svg
from starec_eval.report.page import page_html
from starec_eval.report.tables import TableData
from starec_eval.report.timelines import timeline_chunks

HOSTILE = "<script>window.hacked = 1</script></script><img src=x onerror=window.hacked=2> $x$ (1999)"
SAID = "Likes drama. </script><script>window.hacked = 3</script> \U0001f3ac"


LOWEST_CONTRAST = """
const channel = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(channel);
  return .2126 * r + .7152 * g + .0722 * b;
};
const behind = (element) => {
  const colour = getComputedStyle(element).backgroundColor;
  return colour.endsWith(", 0)") ? behind(element.parentElement) : colour;
};
const contrast = (element) => {
  const both = [light(getComputedStyle(element).color), light(behind(element))];
  return [(Math.max(...both) + .05) / (Math.min(...both) + .05), element.tagName];
};
const texts = [...document.querySelectorAll("p, td, th, summary, small, ins, del, mark, a, figcaption, label, li")];
const seen = texts.filter((element) => element.offsetParent && element.textContent.trim());
return seen.map(contrast).sort((a, b) => a[0] - b[0])[0];
"""


def dataset():
    tiny = make_dataset(n_users=24, n_items=80, length=20)
    items = tuple(replace(item, title=HOSTILE) if number % 7 == 0 else item for number, item in enumerate(tiny.items))
    return replace(tiny, items=items, name="tiny <b>bold</b>")


def answer(messages, sampling):
    said = scripted_user()(messages, sampling)
    if "<description>" in said:
        return f"<description>{SAID} {said[-30:-14]}</description>"
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An evaluation with two agents beside popularity, and a run, in one folder."""
    out, data = tmp_path_factory.mktemp("report") / "all <i>of it", dataset()
    protocol = Protocol(data, Reading(min_interactions=2), users=8)
    chat = ScriptedChat(answer)
    methods = [*build(["pop"]), build_llm("starec", chat, warmup=3), build_llm("llmrank", chat)]
    evaluate(methods, protocol, out=out / "eval").write(out / "eval")
    run_population(data, UserAgent.factory(chat), out=out / "run", turns=3, targets="all", progress=False)
    return out


@pytest.fixture(scope="module")
def page(folder):
    return write_report([folder], folder / "report.html", price_in=1.0, price_out=2.0)


@pytest.fixture(scope="module")
def driver(page, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as session:
        session.get(page.as_uri())
        wait(session, "return document.querySelectorAll('#list > li').length > 0")
        yield session


def wait(session, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(session, 20, 0.05).until(lambda driver: driver.execute_script(condition))


def search(session, words):
    typed = "const box = document.getElementById('search'); box.value = arguments[0]; "
    session.execute_script(typed + "box.dispatchEvent(new Event('input'))", words)
    return session.execute_script("return document.getElementById('count').textContent")


def errors(session):
    return [entry for entry in session.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_the_page_opens_without_console_errors_and_asks_for_nothing(driver, page):
    assert not errors(driver)
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page.read_text())
    assert page.stat().st_size < 1_000_000


def test_hostile_titles_memories_and_names_show_as_text(driver):
    from selenium.webdriver.common.by import By

    search(driver, "<script>window")
    driver.execute_script("document.querySelectorAll('#list summary').forEach((s) => s.click())")
    wait(
        driver, "return document.querySelectorAll('.step').length > 8 && !document.body.innerText.includes('Unpacking')"
    )
    shown = driver.find_element(By.ID, "list").text
    assert HOSTILE in shown and "</script><script>window.hacked = 3</script> 🎬" in shown
    assert driver.execute_script("return window.hacked") is None
    assert driver.execute_script("return document.images.length + document.querySelectorAll('b, i').length") == 0
    assert "tiny <b>bold</b>" in driver.find_element(By.ID, "tables").text
    assert "all <i>of it" in driver.title
    assert not errors(driver)
    search(driver, "")


def test_search_finds_users_titles_and_memories(driver, folder):
    assert search(driver, "") == "40 of 40 timelines"
    assert search(driver, "no such thing").startswith("0 of")
    steps = list(read_steps(folder / "run"))
    users = {step.user_id for step in steps if "Film 23" in dataset().items[step.candidates[step.target] - 100].title}
    driver.execute_script("document.getElementById('run').value = '2'")
    found = search(driver, "film 23 (1973)")
    assert int(found.split()[0]) == len(users)
    driver.execute_script("document.getElementById('run').value = ''")
    assert search(driver, "likes drama").split()[0] == "32"


def test_a_timeline_shows_ranking_feedback_reflection_and_what_changed_in_the_memory(driver, folder):
    from selenium.webdriver.common.by import By

    steps = [step for step in read_steps(folder / "run") if step.user_id == 5]
    driver.execute_script("document.getElementById('run').value = '2'")
    search(driver, "5")
    at = [e.text.split()[1] for e in driver.find_elements(By.CSS_SELECTOR, "#list summary")].index("5")
    details = driver.find_elements(By.CSS_SELECTOR, "#list details")[at]
    details.find_element(By.TAG_NAME, "summary").click()
    wait(driver, f"return document.querySelectorAll('#list > li:nth-child({at + 1}) .step').length === {len(steps)}")
    for step, turn in zip(steps, details.find_elements(By.CLASS_NAME, "step"), strict=True):
        verb = "liked" if step.feedback.liked else "disliked"
        assert f", which the user {verb}. The agent ranked it {step.feedback.rank} of 20" in turn.text
        ranking = [e.text for e in turn.find_elements(By.CSS_SELECTOR, ".ranking li")]
        titles = [" ".join(dataset().items[step.candidates[p] - 100].title.split()) for p in step.ranking.order]
        assert ranking == titles
        script = "return [...arguments[0].querySelector('.memory').childNodes]"
        kept = f"{script}.filter((n) => n.tagName !== 'DEL').map((n) => n.textContent).join('').split(/\\s+/)"
        gone = f"{script}.filter((n) => n.tagName !== 'INS').map((n) => n.textContent).join('').split(/\\s+/)"
        assert list(filter(None, driver.execute_script(kept, turn))) == step.memory.profile.split()
        assert list(filter(None, driver.execute_script(gone, turn))) == step.memory_before.profile.split()
        assert turn.find_elements(By.TAG_NAME, "ins") and turn.find_elements(By.TAG_NAME, "del")
        assert "Model answer (reflect)" in turn.text
    driver.execute_script("document.getElementById('run').value = ''")
    search(driver, "")


def test_a_timeline_is_scored_by_its_liked_targets_alone(folder):
    (run,) = [run for run in find_runs([folder]) if run.folders[0].name == "run"]
    packed, _ = timeline_chunks([run])
    rows = json.loads(gzip.decompress(base64.b64decode(packed)))["timelines"]
    for user, _, _, _, score, _ in rows:
        values = [float(ndcg(s.feedback.rank, 10)) for s in run.steps if str(s.user_id) == user and s.feedback.liked]
        assert score == (pytest.approx(sum(values) / len(values), abs=1e-4) if values else None)
    assert any(row[4] is None for row in rows)


def test_the_page_is_used_by_keyboard_alone(driver):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    search(driver, "")
    driver.find_element(By.TAG_NAME, "body").send_keys("/")
    assert driver.switch_to.active_element.get_attribute("id") == "search"
    driver.switch_to.active_element.send_keys("drama", Keys.ARROW_DOWN)
    driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    summary = driver.switch_to.active_element
    second = driver.find_elements(By.CSS_SELECTOR, "#list > li > details > summary")[1]
    assert summary == second
    summary.send_keys(Keys.ENTER)
    wait(driver, "return document.querySelector('#list > li:nth-child(2) .step') !== null")
    summary.send_keys(Keys.ARROW_UP)
    driver.switch_to.active_element.send_keys(Keys.ARROW_UP)
    assert driver.switch_to.active_element.get_attribute("id") == "search"
    search(driver, "")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overflows_at_any_width_and_text_stands_out_in_light_and_dark(page, tmp_path, width, dark):
    with chromium(tmp_path, width, 780, dark) as session:
        session.get(page.as_uri())
        wait(session, "return document.querySelectorAll('#list > li').length > 0")
        session.execute_script("document.querySelector('#list summary').click()")
        wait(session, "return document.querySelector('.step') !== null")
        assert session.execute_script("return document.documentElement.scrollWidth") == width
        contrast, tag = session.execute_script(LOWEST_CONTRAST)
        assert contrast >= 4.5, tag  # WCAG 2 AA
        shades = session.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (shades == "rgb(255, 255, 255)") != dark
        assert not errors(session)


def test_ten_thousand_timelines_stay_usable(folder, tmp_path):
    run = next(run for run in find_runs([folder]) if run.name.startswith("reflect"))
    many = Run("many", run.config, run.folders)
    steps = [run.steps[n % len(run.steps)].model_copy(update={"user_id": f"u{n}"}) for n in range(10_000)]
    vars(many).update(repetitions=[steps])
    page = tmp_path / "many.html"
    page.write_text(page_html("many", [], [], [many]), encoding="utf-8")
    with chromium(tmp_path / "profile") as session:
        session.get(page.as_uri())
        wait(session, "return document.querySelectorAll('#list > li').length > 0")
        assert session.execute_script("return document.getElementsByTagName('*').length") < 1000
        assert search(session, "") == "10,000 of 10,000 timelines"
        assert search(session, "u9999 ") == "1 of 10,000 timelines"
        session.execute_script("document.querySelector('#list summary').click()")
        wait(session, "return document.querySelector('.step') !== null")
        search(session, "")
        session.execute_script("document.getElementById('more').click()")
        assert session.execute_script("return document.querySelectorAll('#list > li').length") == 100
        assert not errors(session)


def test_figures_are_text_with_their_numbers_beside_and_share_no_id():
    points = [Estimate("1", 0.5, 0.1, 3), Estimate("2", 0.25, float("nan"), 1)]
    figure = FigureData("A <b>", "note", "turn", "NDCG", {"_a & <b>": points, "none": []})
    drawn = svg(figure)
    assert drawn.startswith("<svg") and "<text" in drawn and "NDCG" in drawn and "metadata" not in drawn
    html = page_html("two", [], [figure, replace(figure, title="B")], [])
    assert "<b>" not in html and "0.5 ± 0.1 (3)" in html and "0.25 (1)" in html and ">none<" not in html
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 10
    assert FigureData.from_json(json.loads(json.dumps(figure.to_json()))).labels == ["1", "2"]


def test_a_series_keeps_its_colour_where_another_has_no_data():
    points = [Estimate("1", 0.5, 0.1, 3), Estimate("2", 0.25, 0.1, 3)]
    alone = svg(FigureData("F", "n", "turn", "NDCG", {"first": [], "second": points}))
    both = svg(FigureData("F", "n", "turn", "NDCG", {"first": points, "second": points}))
    first, second = "#0062a3", "#c2410c"
    assert first in both and second in both and first not in alone and second in alone


def test_bars_with_long_names_are_horizontal_so_that_the_names_can_be_read():
    points = [Estimate(f"method-with-a-name-{number}", number, 1.0, 3) for number in range(12)]
    drawn = svg(FigureData("F", "n", "", "NDCG@10, %", {"NDCG@10": points}, bars=True))
    assert all(point.label in drawn for point in points) and "NDCG@10, %" in drawn
    assert "rotate(-0 " in drawn and not re.search(r"rotate\(-[1-9]", drawn)  # neither names nor a vertical axis' label


def test_tables_mark_best_and_second_and_escape_the_rest():
    table = TableData("T", ["method", "x"], [["<b>", "**1.0**"], ["b", "__0.5__"], ["c", "***"]], ["<i>"])
    html = page_html("t", [table], [], [])
    assert "<strong>1.0</strong>" in html and "<u>0.5</u>" in html and "&lt;b&gt;" in html and "<i>" not in html
    assert ">***<" in html


def test_every_figure_and_table_that_the_runs_can_make_is_there(page):
    text = page.read_text()
    for title in (
        "Learning",
        "Activity",
        "Position bias",
        "Calibration",
        "Memory: length",
        "Memory: drift",
        "Tokens",
        "NDCG@10 on",
    ):
        assert f"<h3>{title}" in text, title
    rows = ("memory claims contradicted", "dislikes predicted", "cost", "popularity bias", "answers with invented")
    for row in rows:
        assert f'<th scope="row">{row}' in text, row


def test_the_command_writes_the_report_and_refuses_a_folder_without_runs(folder, tmp_path):
    done = CliRunner().invoke(report, [str(folder / "run"), "--out", str(tmp_path / "a.html"), "--no-timelines"])
    assert done.exit_code == 0 and "needs no network" in done.output
    with pytest.raises(RunError, match="nothing to report"):
        write_report([tmp_path], tmp_path / "b.html")
