"""The record of a run: each thing once, whole, and only ever its own run's."""

import inspect
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import make_dataset, record

from starec_agents.agent import UserAgent
from starec_agents.llm import Completion, Message, OpenAIChat, ScriptedChat
from starec_agents.llm.base import Call, Endpoint, Usage
from starec_agents.llm.scripted import scripted_user
from starec_agents.memory import Memory
from starec_agents.runs.lines import Before, read_line, start_check, write_line
from starec_agents.runs.population import Run, arun_population, run_population
from starec_agents.runs.reading import read_failures, read_run, read_steps
from starec_agents.runs.steps import Step
from starec_agents.runs.store import RunStore
from starec_env.data import load_dataset
from starec_env.data.preparation import prepare
from starec_env.errors import InvalidOption, RunError, StarecWarning
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Feedback, ParseReport, Ranking

DATA = make_dataset()
N_STEPS = 18
"""Of the first six users by seed, three turns each."""


def simulate(out: Path, llm: Any = None, agent: Callable[[], Any] | None = None, **options: Any) -> Run:
    make = agent or UserAgent.factory(llm or ScriptedChat(scripted_user()), answer_format="compact")
    return run_population(DATA, make, **{"out": out, "turns": 3, "users": 6, "progress": False, **options})


def refuse(*args: object, **options: object) -> str:
    raise AssertionError("asked again for what is recorded")


class Mood(Memory):
    """A memory of one's own."""

    mood: str = "calm"


def steps_of(seed: int, n: int = 6) -> list[Step]:
    """A user's steps with texts that repeat in all sorts of ways."""
    rng = random.Random(seed)
    lines = [f"{'-+'[i % 2]} Film {i}: {'the ' * rng.randrange(40)}end" for i in range(30)] + ["", "a", "\u2028", "é\r"]

    def text() -> str:
        chosen = [rng.choice(lines) for _ in range(rng.randrange(12))]
        return rng.choice(["\n", "\n\n", ": ", ""]).join(chosen)

    found: list[Step] = []
    memory: Memory = Memory(profile=text(), history=(text(),))
    for turn in range(n):
        call = Call(
            kind=rng.choice(["rank", "reflect"]),
            messages=({"role": "system", "content": "Rank."}, {"role": "user", "content": text() + memory.profile}),
            completion=text(),
            reasoning=rng.choice([None, "", text()]),
            usage=Usage(prompt_tokens=rng.randrange(9)),
            logprobs=rng.choice([None, (-0.5, 0.0)]),
            latency=rng.random(),
        )
        order = tuple(rng.sample(range(4), rng.randrange(5)))
        report = ParseReport(missing=rng.randrange(2))
        ranking = Ranking(order=order, report=report, text=rng.choice([call.completion, text()]))
        feedback = Feedback(item_id=12, rank=ranking.rank_of(2), predicted_liked=True, liked=bool(turn % 2))
        after: Memory = memory.updated(profile=rng.choice([None, text(), call.completion]), event=text())
        after = rng.choice([after, memory, Memory(profile="new"), Mood(profile=text(), mood="glad")])
        found.append(
            Step(
                user_id="a\u2028b", turn=3 * turn, candidates=(10, 11, 12, 13), target=2, ranking=ranking,
                feedback=feedback, reward=rng.random(), calls=(call,) * rng.randrange(3), memory_before=memory,
                memory=after,
            )
        )  # fmt: skip
        memory = rng.choice([after, after, Memory(profile=text())])
    return found


@pytest.mark.parametrize("seed", range(40))
def test_any_steps_are_read_back_as_they_were_written(seed: int) -> None:
    writes = reads = Before(start_check("x"))
    prompts: dict[str, str] = {}
    for step in steps_of(seed):
        line, writes = write_line(step, writes, lambda text: prompts.setdefault(text, text))
        read, reads = read_line(line, reads, prompts)
        assert read == step and type(read.memory) is type(step.memory)
        assert (reads.check, reads.texts) == (writes.check, writes.texts)


def test_every_field_of_a_call_is_recorded() -> None:
    call = Call(
        kind="rank", messages=({"role": "user", "content": "Rank."},), completion="A", reasoning="so", latency=0.5,
        finish_reason="stop", usage=Usage(cached_tokens=1), token_ids=(1,), prompt_token_ids=(2,), logprobs=(-1.0,),
        stepped_down=("seed",), report=ParseReport(empty=True),
    )  # fmt: skip
    assert {*call.model_dump(exclude_defaults=True)} == {*Call.model_fields}
    step = steps_of(0)[0].model_copy(update={"calls": (call,)})
    line, _ = write_line(step, Before(0), str)
    assert read_line(line, Before(0), {})[0].calls == (call,)


def test_a_step_takes_less_than_half_of_its_bytes_written_out(tmp_path: Path) -> None:
    data = prepare(load_dataset("ml-latest-small"))
    agent = UserAgent.factory(ScriptedChat(scripted_user()), answer_format="compact")
    run_population(data, agent, out=tmp_path, users=20, turns=5, progress=False)
    plain = len(record(tmp_path))
    assert sum(path.stat().st_size for path in tmp_path.glob("*s.jsonl")) < 0.45 * plain


def test_a_memory_class_of_ones_own_is_recorded_and_gone_on_with(tmp_path: Path) -> None:
    seen: list[Memory | None] = []

    class Moody(UserAgent):
        async def arank(self, query):  # type: ignore[no-untyped-def]
            seen.append(self.memory)
            return await super().arank(query)

        async def alearn(self, feedback):  # type: ignore[no-untyped-def]
            memory = await super().alearn(feedback)
            mood = f"after {len(memory.history)}"
            self.memory = Mood(profile=memory.profile, history=memory.history, mood=mood)
            return self.memory

    def make() -> Moody:
        return Moody(ScriptedChat(scripted_user()), answer_format="compact")

    simulate(tmp_path, agent=make, users=[7])
    lines = (tmp_path / "steps.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "steps.jsonl").write_bytes(b"".join(lines[:2]))
    seen.clear()
    simulate(tmp_path, agent=make, users=[7], resume=True)
    assert [getattr(memory, "mood", None) for memory in seen[-1:]] == ["after 2"]
    assert [step.memory.mood for step in read_steps(tmp_path)] == ["after 1", "after 2", "after 3"]  # type: ignore[attr-defined]


Damage = Callable[[list[dict[str, Any]]], None]
DAMAGES: dict[str, Damage] = {
    "a field is gone": lambda lines: lines[3].pop("reward"),
    "the last field is gone": lambda lines: lines[3].pop("check"),
    "target out of range": lambda lines: lines[3].update(target=99),
    "a user that isn't in the run": lambda lines: lines[3].update(user_id=999),
    "another user's": lambda lines: lines[3].update(user_id=lines[0]["user_id"]),
    "a huge turn": lambda lines: lines[3].update(turn=2**70),
    "one turn more": lambda lines: lines.append({**lines[-1], "turn": lines[-1]["turn"] + 1}),
    "a stub": lambda lines: lines.__setitem__(3, {"user_id": 3, "turn": 1, "memory": {}}),
    "no object": lambda lines: lines.__setitem__(3, []),  # type: ignore[call-overload]
    "words changed": lambda lines: lines[3]["ranking"].update(text="B A"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_that_still_is_json_is_set_aside_and_done_again(damage: str, tmp_path: Path) -> None:
    simulate(tmp_path / "run", concurrency=1)
    whole = record(tmp_path / "run")
    path = tmp_path / "run" / "steps.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    DAMAGES[damage](lines)
    path.write_text("".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines))
    with pytest.raises(RunError, match="resume the run to set it aside"):
        list(read_steps(tmp_path / "run"))
    with pytest.warns(StarecWarning, match="moved to steps.damaged"):
        simulate(tmp_path / "run", resume=True)
    assert record(tmp_path / "run") == whole


def test_a_line_of_another_run_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    simulate(tmp_path / "one", concurrency=1)
    simulate(tmp_path / "other", concurrency=1, seed=1)
    whole = record(tmp_path / "one")
    shutil.copy(tmp_path / "other" / "steps.jsonl", tmp_path / "one" / "steps.jsonl")
    with pytest.warns(StarecWarning, match="steps.damaged"):
        simulate(tmp_path / "one", resume=True)
    assert record(tmp_path / "one") == whole


def test_lost_system_prompts_are_said_when_read_and_their_steps_done_again_on_resuming(tmp_path: Path) -> None:
    simulate(tmp_path)
    whole = record(tmp_path)
    (tmp_path / "prompts.jsonl").write_bytes(b'{"key": "torn')
    assert all("prompts.jsonl lacks" in step.calls[0].messages[0]["content"] for step in read_steps(tmp_path))
    with pytest.warns(StarecWarning, match="steps.damaged"):
        simulate(tmp_path, resume=True)
    assert record(tmp_path) == whole


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_readers_refuse_is_refused_at_the_door(bad: float, tmp_path: Path) -> None:
    class Odd(ScriptedChat):
        async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
            answer = await super().complete(messages, **sampling)
            return answer.model_copy(update={"logprobs": (-0.5, bad)})

    llm = Odd(scripted_user())
    run = simulate(tmp_path, llm)
    assert run.metrics["failures"] == 6 and run.metrics["missing_steps"] == N_STEPS and not list(read_steps(tmp_path))
    assert "finite number" in read_failures(tmp_path)[0].message
    bad = -0.25
    assert simulate(tmp_path, llm, resume=True).metrics["steps"] == N_STEPS


def test_a_count_that_no_file_could_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="less than"):
        Usage(prompt_tokens=2**63)


def test_half_a_surrogate_pair_in_an_answer_leaves_the_record_readable(tmp_path: Path) -> None:
    answer = ScriptedChat(lambda messages, sampling: "A B C \ud800\nUpdated User description: odd \udfff.")
    assert simulate(tmp_path, answer).metrics["steps"] == len(list(read_steps(tmp_path))) == N_STEPS
    assert next(read_steps(tmp_path)).calls[0].completion.startswith("A B C ?\n")


def test_a_run_imports_nothing_slow_that_it_does_not_need(tmp_path: Path) -> None:
    code = (
        "import sys; from starec_agents import ScriptedChat, UserAgent, run_population, scripted_user\n"
        "from starec_env import load_dataset, prepare\n"
        "run_population(prepare(load_dataset('ml-latest-small')), UserAgent.factory(ScriptedChat(scripted_user())),"
        " users=2, turns=1, out=sys.argv[1], progress=False)\n"
        "print({'pandas', 'scipy', 'torch', 'openai', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_texts_that_differ_by_half_a_surrogate_pair_alone_do_not_shift_those_after(tmp_path: Path) -> None:
    kept: dict[tuple[object, int], Step] = {}
    answer = ScriptedChat("Updated User description: this reader likes odd books \udfff and long words.\nA B C \ud800")
    simulate(tmp_path, answer, users=2, on_step=lambda step: kept.update({(step.user_id, step.turn): step}))
    for step in read_steps(tmp_path):
        was = kept[step.user_id, step.turn]
        assert step.calls[0].messages == was.calls[0].messages
        assert (
            step.ranking.text == step.calls[0].completion == was.calls[0].completion.encode(errors="replace").decode()
        )
        assert step.memory.profile == was.memory.profile


def test_a_failure_keeps_its_type_where_it_came_from_and_what_it_cost(tmp_path: Path) -> None:
    class Broken(UserAgent):
        async def alearn(self, feedback):  # type: ignore[no-untyped-def]
            raise ZeroDivisionError("my own bug " + 9_000 * "x")

    simulate(tmp_path, agent=lambda: Broken(ScriptedChat(scripted_user())))
    failure = read_failures(tmp_path)[0]
    assert failure.type == "ZeroDivisionError" and "in alearn" in failure.traceback
    assert failure.calls == 1 and failure.prompt_tokens > 0 and failure.completion_tokens > 0
    assert len(failure.message) <= 2_000 and len(failure.traceback) <= 4_000


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "a\u2029b", "\x1c"])
def test_user_ids_with_odd_line_ends_break_nothing(odd: str, tmp_path: Path) -> None:
    ids = np.array([f"{odd}{number}" for number in range(DATA.n_users)])
    data = Dataset(**{**{name: getattr(DATA, name) for name in DATA.__dataclass_fields__}, "user_ids": ids})
    agent = UserAgent.factory(ScriptedChat(lambda messages, sampling: 1 / 0))  # type: ignore[arg-type,return-value]
    run = run_population(data, agent, out=tmp_path / "a", users=3, turns=1, progress=False)
    assert {failure.user_id for failure in read_failures(run.out)} <= {*ids.tolist()} and run.metrics["failures"] == 3
    agent = UserAgent.factory(ScriptedChat(scripted_user()))
    run = run_population(data, agent, out=tmp_path / "b", users=3, turns=2, progress=False)
    assert len(list(read_steps(run.out))) == run.metrics["steps"] > 3


@pytest.mark.parametrize("report_every_s", [0, 9999])
def test_a_run_whose_folder_was_moved_touches_nothing_of_the_run_in_its_place(
    report_every_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starec_agents.runs.rollout._REPORT_EVERY_S", report_every_s)
    out = tmp_path / "run"
    done = 0

    def swap(step: Step) -> None:
        nonlocal done
        done += 1
        if done == 5:
            out.rename(tmp_path / "moved")
            with ThreadPoolExecutor() as pool:  # as another process would
                pool.submit(simulate, out).result()

    with pytest.raises(RunError, match="moved, removed or replaced"):
        simulate(out, on_step=swap)
    assert done == N_STEPS if report_every_s else done < N_STEPS  # noticed when progress is reported, and at the end
    assert len(read_run(out)["sessions"]) == 1 and "wall_s" in read_run(out)["sessions"][0]
    assert len(list(read_steps(out))) == json.loads((out / "metrics.json").read_text())["steps"] == N_STEPS
    assert simulate(tmp_path / "moved", resume=True).metrics["steps"] == N_STEPS


def test_a_run_that_ends_without_all_its_turns_says_which_lack(tmp_path: Path) -> None:
    def lose(step: Step) -> None:
        os.truncate(tmp_path / "steps.jsonl", 0)

    with pytest.raises(RunError, match=r"is not whole: .* planned turns of \d users are not recorded \(user \d+ lacks"):
        simulate(tmp_path, on_step=lose)
    assert not (tmp_path / "metrics.json").exists()
    assert simulate(tmp_path, resume=True).metrics["steps"] == N_STEPS


def test_a_folder_is_refused_to_other_users_and_still_finishes_with_its_own(tmp_path: Path) -> None:
    half = UserAgent.factory(ScriptedChat(scripted_user()), answer_format="compact")
    simulate(tmp_path, users=[7, 3], agent=half)
    lines = (tmp_path / "steps.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "steps.jsonl").write_bytes(b"".join(lines[:-2]))
    with pytest.raises(RunError, match="users_hash differ"):
        simulate(tmp_path, users=[4, 5], agent=half, resume=True)
    assert simulate(tmp_path, users=[7, 3], agent=half, resume=True).metrics["steps"] == len(lines)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "learn_last": ({"learn_last": False}, "learn_last was True, is False"),
    "memories": ({"memories": {3: Memory(profile="likes noir")}}, "memories_hash was None, is '"),
    "stream": ({"stream": Stream(DATA, turns=3, seed=9)}, "candidates_hash was '"),
    "min_history": ({"min_history": 4}, "min_history was 5, is 4"),
    "agent": ({"agent": UserAgent.factory(ScriptedChat(scripted_user()), max_history=3)}, "max_history was 40, is 3"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_changes_answers_is_compared_on_resuming(other: str, tmp_path: Path) -> None:
    options, said = OTHERS[other]
    simulate(tmp_path)
    whole = record(tmp_path)
    with pytest.raises(RunError, match="holds another run: its .* differ") as error:
        simulate(tmp_path, resume=True, **options)
    assert said in str(error.value)
    assert record(tmp_path) == whole and simulate(tmp_path, resume=True, concurrency=2).metrics["steps"] == N_STEPS


SERVER: dict[str, Any] = {
    "base_url": "http://user:secret-word@127.0.0.1:9/v1?key=secret-word", "model": "m", "max_retries": 0,
    "headers": {"X-Team": "secret-word"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 1.5}, "temperature was 0.0, is 1.5"),
        ({"max_tokens": 7}, "max_tokens was 2048, is 7"),
        ({"top_p": 0.5}, "top_p was 1.0, is 0.5"),
        ({"extra_body": {"top_k": 3}}, "top_k was None, is 3"),
        ({"headers": {}}, "headers was ['X-Team'], is []"),
        ({"base_url": "http://127.0.0.1:8/v1"}, "is 'http://127.0.0.1:8/v1'"),
    ],
)
def test_endpoints_are_recorded_without_secrets_and_compared(change: Any, said: str, tmp_path: Path) -> None:
    def run(**changes: Any) -> None:
        simulate(tmp_path, OpenAIChat(Endpoint(**{**SERVER, **changes})), resume=True)

    run()
    text = (tmp_path / "run.json").read_text()
    assert "secret-word" not in text and json.loads(text)["endpoints"]["llm"][0]["headers"] == ["X-Team"]
    with pytest.raises(RunError, match=r"its endpoints differ \(endpoints\.llm") as error:
        run(**change)
    assert said in str(error.value)
    run(timeout_s=3, concurrency=2)


def test_a_run_that_is_whole_may_be_opened_with_another_server(tmp_path: Path) -> None:
    class Answers(ScriptedChat):
        def __init__(self, url: str, answer: Any) -> None:
            super().__init__(answer)
            self.endpoint = Endpoint(base_url=url, model="m")

    simulate(tmp_path, Answers("http://one/v1", scripted_user()))
    assert simulate(tmp_path, Answers("http://two/v1", refuse), resume=True).metrics["steps"] == N_STEPS


def test_steps_without_a_run_are_not_mixed_into_a_new_one(tmp_path: Path) -> None:
    simulate(tmp_path)
    (tmp_path / "run.json").unlink()
    for resume in (False, True):
        with pytest.raises(RunError, match=r"holds steps \(steps.jsonl\) but no run.json"):
            simulate(tmp_path, resume=resume)


def test_lost_candidates_are_written_again_on_resuming(tmp_path: Path) -> None:
    simulate(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("candidates.parquet", "items.parquet")}
    (tmp_path / "items.parquet").unlink()
    (tmp_path / "candidates.parquet").write_bytes(b"cut")
    simulate(tmp_path, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_files_of_workers_stay_and_a_later_session_of_one_process_goes_on_after_them(tmp_path: Path) -> None:
    simulate(tmp_path / "whole")
    simulate(tmp_path / "run", workers=2)
    path = tmp_path / "run" / "steps-00001.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2])[:-50])
    simulate(tmp_path / "run", resume=True)
    assert sorted(file.name for file in (tmp_path / "run").glob("steps*")) == [
        "steps-00000.jsonl", "steps-00001.jsonl", "steps-00002.jsonl", "steps.jsonl",
    ]  # fmt: skip
    assert record(tmp_path / "run") == record(tmp_path / "whole")


def test_a_record_of_the_first_format_is_read_and_not_gone_on_with(tmp_path: Path) -> None:
    simulate(tmp_path)
    whole = record(tmp_path)
    run = read_run(tmp_path)
    del run["format"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "steps.jsonl").write_text(whole)  # whole steps, one a line
    assert record(tmp_path) == whole
    with pytest.raises(RunError, match="starec .* in format 1, and this version writes format 3: it can be read"):
        simulate(tmp_path, resume=True)


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    RunStore(tmp_path, {"model": "m"}).close()
    assert "can't be locked (Function not implemented)" in caplog.text


def test_run_population_has_the_options_of_its_async_twin() -> None:
    assert [*inspect.signature(run_population).parameters] == [*inspect.signature(arun_population).parameters]
    with pytest.raises(TypeError, match="temprature"):
        run_population(DATA, refuse, out="x", temprature=3)  # type: ignore[call-arg,arg-type]


def test_an_option_of_the_wrong_choice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption):
        simulate(tmp_path, targets="likd")
