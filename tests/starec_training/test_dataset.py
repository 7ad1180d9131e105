"""Rows: the recorded prompts, self-sufficient snapshots, and nothing that must not train."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from starec_agents.agent import UserAgent
from starec_agents.llm import Completion, ScriptedChat
from starec_agents.llm.scripted import scripted_user
from starec_agents.memory import Memory
from starec_agents.runs.population import run_population
from starec_agents.runs.reading import read_steps
from starec_agents.tasks import rank_messages
from starec_env.errors import InvalidOption, TrainingError
from starec_env.replay.stream import Stream
from starec_env.types import Dataset
from starec_training.dataset import (
    Case,
    Rows,
    Shown,
    check_apart,
    read_rows,
    run_rows,
    to_dataset,
    whole_thought,
    write_rows,
)


def run(dataset: Dataset, out: Path, reply: Any = None, **options: Any) -> Path:
    llm = ScriptedChat(reply or scripted_user())
    options = {"targets": "liked", **options}
    run_population(dataset, UserAgent.factory(llm), out=out, progress=False, **options)
    return out


def test_a_run_gives_a_row_for_each_call_of_both_tasks(tiny_dataset: Dataset, tmp_path: Path) -> None:
    rows = run_rows(run(tiny_dataset, tmp_path), tiny_dataset)
    steps = sorted(read_steps(tmp_path), key=lambda step: (step.user_id, step.turn))
    users = {step.user_id for step in steps}
    ranked = [row for row in rows if row.task == "rank"]
    assert [row.completion for row in ranked] == [step.calls[0].completion for step in steps]
    assert [list(row.prompt) for row in ranked] == [list(step.calls[0].messages) for step in steps]
    assert [row.snapshot.shown.target for row in ranked] == [step.target for step in steps]
    assert len(rows) == 2 * len(steps) - len(users)
    assert rows.dropped == {"no turn follows the memory update": len(users)}


def test_a_recorded_profile_leads_to_the_prompt_that_was_asked_next(tiny_dataset: Dataset, tmp_path: Path) -> None:
    rows = run_rows(run(tiny_dataset, tmp_path), tiny_dataset)
    steps = {(step.user_id, step.turn): step for step in read_steps(tmp_path)}
    updates = [row.snapshot for row in rows if row.task == "reflect"]
    assert updates
    for snapshot in updates:
        profile = steps[snapshot.user_id, snapshot.turn].memory.profile
        asked = steps[snapshot.user_id, snapshot.turn + 1].calls[0].messages
        assert snapshot.follow_up_prompts(profile) == [list(asked)]


def test_a_case_makes_the_prompt_that_its_turn_makes(tiny_dataset: Dataset) -> None:
    stream, memory = Stream(tiny_dataset), Memory(profile="Likes it dark.", history=("a", "b"))
    for turn in stream.turns(int(stream.users[0])):
        case = Case.model_validate_json(Case.of(turn).model_dump_json())
        assert rank_messages(case.query(), memory) == rank_messages(turn.query, memory)
        assert case.target == turn.target


def test_more_follow_ups_pay_an_update_by_more_of_the_next_turns(tiny_dataset: Dataset, tmp_path: Path) -> None:
    rows = run_rows(run(tiny_dataset, tmp_path), tiny_dataset, follow_ups=3)
    assert max(len(row.snapshot.follow_ups) for row in rows) == 3
    with pytest.raises(InvalidOption):
        run_rows(tmp_path, tiny_dataset, follow_ups=0)


def test_rows_that_can_have_no_reward_are_dropped_and_counted(tiny_dataset: Dataset, tmp_path: Path) -> None:
    rows = run_rows(run(tiny_dataset, tmp_path, targets="all"), tiny_dataset)
    disliked = sum(not step.feedback.liked for step in read_steps(tmp_path))
    assert rows.dropped["no target: it was disliked"] == disliked > 0
    assert "dropped" in str(rows)


def test_reasoning_that_came_apart_is_put_back_as_the_thought(tiny_dataset: Dataset, tmp_path: Path) -> None:
    answer = Completion(text="Updated User description: likes it dark.", reasoning="He took noir.")
    rows = run_rows(run(tiny_dataset, tmp_path, lambda *_: answer), tiny_dataset)
    assert rows.rows[0].completion == "<think>\nHe took noir.\n</think>\nUpdated User description: likes it dark."


def test_an_answer_that_lacks_its_opening_tag_gets_one(tiny_dataset: Dataset, tmp_path: Path) -> None:
    text = "He took noir, so noir.\n</think>\n\n<description>Likes it dark.</description>"
    row = run_rows(run(tiny_dataset, tmp_path, lambda *_: text), tiny_dataset).rows[0]
    assert row.completion == "<think>\nHe took noir, so noir.\n</think>\n<description>Likes it dark.</description>"
    assert (row.thought, row.answer) == ("He took noir, so noir.", "<description>Likes it dark.</description>")
    assert whole_thought("no thought") == "no thought" and whole_thought("<think>open") == "<think>open"


def test_a_held_out_user_in_the_run_stops_training(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run(tiny_dataset, tmp_path, users=[3, 4])
    with pytest.raises(TrainingError, match="e.g. 3"):
        run_rows(tmp_path, tiny_dataset, heldout={"3", 9})
    check_apart([3, 4], [5, 6])
    assert run_rows(tmp_path, tiny_dataset, heldout=[5, 6]).rows


def test_a_run_on_other_data_is_refused(tiny_dataset: Dataset, films: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="other data"):
        run_rows(run(tiny_dataset, tmp_path), films)


def test_rows_survive_a_file_and_a_data_set(taught: Rows, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", taught)
    again = read_rows(tmp_path / "rows.jsonl")
    assert again.rows == taught.rows
    data = to_dataset(again)
    assert data.column_names == ["prompt", "completion", "task", "snapshot"]
    assert data[0]["completion"] == [{"role": "assistant", "content": taught.rows[0].completion}]
    assert data[5]["task"] == taught.rows[5].task


def test_a_line_whose_positive_is_not_a_candidate_is_named(taught: Rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, taught.rows[:2])
    bad = taught.rows[0].model_dump_json().replace('"target":', '"target":9')
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(TrainingError, match="line 3 .*the positive is not among the candidates"):
        read_rows(path)
    path.write_text("")
    with pytest.raises(TrainingError, match="no rows"):
        read_rows(path)
    with pytest.raises(TrainingError, match="can't read"):
        read_rows(tmp_path / "none.jsonl")


def test_users_kept_apart_are_in_no_training_row(taught: Rows) -> None:
    train, watched = taught.split(3)
    users = [{row.snapshot.user_id for row in part} for part in (train, watched)]
    assert len(users[1]) == 3 and not users[0] & users[1]
    assert len(train) + len(watched) == len(taught)
    with pytest.raises(InvalidOption, match="wanted 1 to"):
        taught.split(18)


def test_a_candidate_listed_twice_is_refused(taught: Rows) -> None:
    item = taught.rows[0].snapshot.shown.candidates[0]
    with pytest.raises(ValidationError, match="listed twice"):
        Shown(candidates=(item, item), target=0)
