import logging
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from starec_agents.llm import Completion
from starec_agents.llm.cache import AnswerCache
from starec_env.errors import InvalidOption

ANSWER = Completion(text="Ça va? 😀\n", latency=2.0, token_ids=(1, 2), logprobs=(-0.5, -1.0))


def fill(folder: Path, start: int) -> None:
    cache = AnswerCache(folder)
    for number in range(start, start + 50):
        cache.put(str(number), ANSWER)


def test_a_completion_comes_back_whole_but_for_its_latency(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "new" / "folder")
    assert cache.get("a") is None
    cache.put("a", ANSWER)
    assert AnswerCache(tmp_path / "new" / "folder").get("a") == ANSWER.model_copy(update={"latency": 0.0})


def test_processes_and_threads_share_it(tmp_path: Path) -> None:
    shared = AnswerCache(tmp_path)
    processes = [get_context("spawn").Process(target=fill, args=(tmp_path, start)) for start in (0, 50)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: shared.put(str(number), ANSWER), range(100, 200)))
    for process in processes:
        process.join()
    assert all(shared.get(str(number)) is not None for number in range(200))


@pytest.mark.parametrize("row", ['{"text": "cut of', "", "[]", '{"text": 7}', b"\xff\x00", 3])
def test_a_damaged_row_is_no_answer_and_is_replaced(tmp_path: Path, row: object) -> None:
    cache = AnswerCache(tmp_path)
    cache._file.execute("INSERT INTO completions VALUES ('a', ?)", (row,))
    assert cache.get("a") is None
    cache.put("a", ANSWER)
    assert (found := cache.get("a")) and found.text == ANSWER.text


@pytest.mark.parametrize("content", [b"not a database, but long enough to look like one" * 50])
def test_a_file_that_is_no_cache_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "completions.sqlite").write_bytes(content)
    with pytest.raises(InvalidOption, match="delete it or name another folder"):
        AnswerCache(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOption, match="cache_dir"):
        AnswerCache(tmp_path / "file" / "cache")


def test_a_cache_that_breaks_is_logged_once_and_then_does_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = AnswerCache(tmp_path)
    cache._file.execute("DROP TABLE completions")
    cache.put("a", ANSWER)
    cache.put("a", ANSWER)
    assert cache.get("a") is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
