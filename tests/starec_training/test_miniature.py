"""A two-minute cut of the miniature: from nothing to a model that ranks, and a step of reinforcement from there."""

import json
import signal
import subprocess
import sys
import time
from copy import deepcopy
from typing import get_args

import numpy as np
import pytest

from starec_agents.tasks import parse_profile, parse_ranking, rank_messages, start_memory
from starec_agents.tasks.titles import item_title
from starec_env import load_dataset, prepare
from starec_env.errors import TrainingError
from starec_env.metrics import ndcg
from starec_env.replay.rewards import position_reward
from starec_training.features import Evidence

torch = pytest.importorskip("torch")

from starec_training.generation import generate  # noqa: E402
from starec_training.miniature import model as model_module  # noqa: E402
from starec_training.miniature.data import Descriptions, Encoder, Example, Prompts, render, split_able_users, tokens_for  # noqa: E402
from starec_training.miniature.decode import decode  # noqa: E402
from starec_training.miniature.experiment import (  # noqa: E402
    ARMS,
    ASKED_OF_BOTH,
    OTHER_SIZES,
    Ground,
    Job,
    by_user,
    run,
    table,
)
from starec_training.miniature.heldout import Keeps, asked, cases, remembering  # noqa: E402
from starec_training.miniature.model import (  # noqa: E402
    Answered,
    answer,
    load,
    new_model,
    packed,
    save,
    states,
    text_logits,
)
from starec_training.miniature.train import (  # noqa: E402
    Settings,
    expected_rewards,
    judged,
    ranks_of,
    rewarded,
    train,
    written,
)

RANDOM_NDCG = 22.7
"""NDCG@10 of 20 candidates in random order, in percent."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ground():
    windows = prepare(load_dataset("ml-latest-small"))
    split = split_able_users(windows)
    return Ground(windows, windows, split, Evidence(windows, split.train, fit_turns=1000))


@pytest.fixture(scope="module")
def prompts(ground):
    return Prompts(ground.streams, ground.evidence, ground.split.train, seed=0)


@pytest.fixture(scope="module")
def encoder(ground, prompts):
    return Encoder(tokens_for(prompts), ground.streams)


@pytest.fixture(scope="module")
def heldout(ground, encoder):
    found = cases(ground.windows, ground.split.validation, repetitions=2)
    return found, encoder.encode([asked(case.turn) for case in found])


@pytest.fixture(scope="module")
def taught(ground, prompts, encoder, heldout):
    model = new_model(ground.evidence, encoder, heldout[1][0])
    return train(model, encoder, prompts, Settings(steps=220, batch=8, learning_rate=1.5e-3, popular_first=1.5))


def test_no_user_is_in_two_parts_of_the_split_and_it_is_always_the_same(ground):
    parts = [set(ground.split.train), set(ground.split.validation), set(ground.split.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 670
    assert [len(part) for part in parts] == [460, 60, 150]
    assert split_able_users(ground.windows) == ground.split


def test_training_prompts_are_of_training_users_alone(ground):
    other = Prompts(ground.streams, ground.evidence, ground.split.train[:3], seed=1)
    users = {int(other.owner[row]) for row in other.rows}
    assert users == {ground.streams.user_index(user) for user in ground.split.train[:3]}


def test_titles_and_scores_are_single_tokens_and_the_template_is_what_render_writes(encoder, heldout):
    case = heldout[0][0]
    messages = rank_messages(case.turn.query, start_memory(case.turn.query), "scores", 12)
    tokenizer = encoder.tokenizer
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == render(messages)
    assert tokenizer.decode(heldout[1][0].ids) == render(messages) + tokenizer.decode(encoder.skeleton.tolist())
    assert len(heldout[1][0].ids) < 200
    shown = np.array(heldout[1][0].ids)[encoder.titles_at(heldout[1][0])]
    assert shown.tolist() == encoder.title_ids[case.turn.query.candidates.indices].tolist()


def test_memory_texts_say_what_is_true(ground, prompts):
    kinds = set(ground.evidence.kind_names)
    for example in prompts.draw(40, reflecting=1.0):
        shown, profile = example.messages[1]["content"], parse_profile(example.answer)
        liked, predicted = "Actual feedback: liked." in shown, "so predicted liked" in shown
        assert profile.rsplit(". ", 1)[-1].startswith("As predicted") == (liked == predicted)
        assert ("was liked" in profile) == liked
        if profile.startswith("Likes "):
            said = profile.removeprefix("Likes ").split(", above all")[0].split(". ")[0].split(", ")
            assert len(set(said)) == len(said) and set(said) <= kinds | {"all kinds"}


def test_supervised_training_beats_random_by_a_wide_margin(taught, encoder, heldout):
    found, examples = heldout
    ranks = judged(taught, encoder, examples)
    assert by_user(ranks, [case.user for case in found]).mean() == pytest.approx(100 * ndcg(ranks, 10).mean())
    assert 100 * ndcg(ranks, 10).mean() > RANDOM_NDCG + 12


def test_free_answers_are_valid_and_rank_as_one_pass_says(taught, encoder, heldout):
    found, examples = heldout
    texts = generate(taught, encoder.tokenizer, [example.messages for example in examples[:48]], max_tokens=100)
    read = [parse_ranking(text.text, case.turn.query.candidates, "compact") for text, case in zip(texts, found)]  # noqa: B905
    assert np.mean([ranking.valid for ranking in read]) > 0.9
    decoded = np.array([ranking.rank_of(case.turn.target) or 21 for ranking, case in zip(read, found)])  # noqa: B905
    assert abs(ndcg(decoded, 10).mean() - ndcg(judged(taught, encoder, examples[:48]), 10).mean()) < 0.08


@pytest.mark.parametrize(("method", "texts"), [("grpo", 0), ("grpo", 4), ("reinforce++", 0)])
def test_reinforcement_starts_at_the_anchor_moves_away_and_leaves_it_alone(taught, prompts, encoder, method, texts):
    assert sum(weight.numel() for weight in taught.parameters() if weight.requires_grad) > 2e6
    before = deepcopy(taught.state_dict())
    settings = Settings(method, steps=6, batch=4, learning_rate=1e-3, reflecting=0.5 * bool(texts), texts=texts)
    policy = train(deepcopy(taught), encoder, prompts, settings, anchor=taught)
    for name in ("log kl", "log texts kl")[: 1 + bool(texts)]:
        kl = [step[name] for step in settings.log]
        assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-5
    assert settings.log[-1]["log kl"] > 1e-4
    assert all(torch.equal(before[name], weight) for name, weight in taught.state_dict().items())
    assert any(not torch.equal(before[name], weight) for name, weight in policy.state_dict().items())


def test_a_memory_update_is_followed_by_the_same_users_next_liked_turn(ground, prompts):
    for each in prompts.followed(20):
        first = ground.streams.items[each.update.candidates[each.update.target]]
        items = list(each.query.history.items)
        if first in items:  # else so many dislikes came between that the window left it behind
            assert (each.query.history.ratings[items.index(first) + 1 :] <= 3).all()
        assert each.query.candidates[each.target] not in items
        assert each.memory.history[-1].title == item_title(first)
        shown = each.then("Updated User description: Likes Western.").messages[1]["content"]
        assert "User description: Likes Western." in shown and str(each.memory.history[-1]) in shown


def test_texts_of_a_group_are_paid_by_what_they_say_alone(taught, prompts, encoder):
    one, other = prompts.followed(2)
    texts = ["Likes Western.", "Likes Western.", "Likes Horror, above all of the 1930s."]
    follow = [each.then(f"Updated User description: {text}") for each in (one, other) for text in texts]
    settings = Settings(texts=3, reward=lambda rank: 1.0 / (rank or 99))
    rewards = expected_rewards(taught, encoder, follow, settings).reshape(2, 3)
    assert torch.allclose(rewards[:, 0], rewards[:, 1], atol=2e-3)
    assert ((rewards > 0) & (rewards <= 1)).all()


def test_texts_behind_one_prompt_are_as_likely_as_each_alone(taught, prompts, encoder):
    examples = encoder.encode(list(prompts.draw(3, reflecting=1.0)))
    asked_for = [example.ids[: example.begin] for example in examples]
    said = packed(asked_for, [[example.ids[example.begin :], [5, 6, encoder.end]] for example in examples])
    with torch.no_grad():
        logs = text_logits(taught, said).gather(-1, said.told[:, None])[:, 0]
        for row, example in enumerate(examples):
            ids = torch.tensor([example.ids])
            alone = torch.log_softmax(states(taught, ids, torch.ones_like(ids))[0] @ taught.lm_head.weight.T, -1)
            wanted = alone[example.begin - 1 : -1].gather(-1, ids[0, example.begin :, None])[:, 0]
            assert torch.allclose(logs[said.text == 2 * row], wanted, atol=0.1)


def test_quick_decoding_takes_what_transformers_finds_likeliest_and_can_be_held_to_a_form(
    taught, prompts, encoder, heldout
):
    examples = heldout[1][:8]
    asked_for = [example.ids[: example.begin] for example in examples]
    updates = [example.ids[: example.begin] for example in encoder.encode(list(prompts.draw(4, reflecting=1.0)))]
    for asking, (said,) in zip(
        asked_for + updates, decode(taught, asked_for + updates, encoder.end, batch=5), strict=True
    ):
        with torch.no_grad():
            logits = taught(input_ids=torch.tensor([[*asking, *said]])).logits[0, len(asking) - 1 : -1]
        behind = logits.amax(-1) - logits[range(len(said)), said]
        assert behind.max() < 0.25  # of nats; bfloat16 beside float32 tips near ties alone
    groups = decode(taught, asked_for, encoder.end, group=3, most=8, sample=True)
    assert all(len(group) == 3 for group in groups) and len({tuple(ids) for group in groups for ids in group}) > 8
    held = decode(taught, asked_for, encoder.end, most=5, allowed=lambda at: encoder.skeleton[at : at + 1])
    assert held == [[encoder.skeleton[:5].tolist()]] * 8


@pytest.mark.parametrize("quicker", [True, False])
def test_products_are_in_bfloat16_only_where_it_is_the_quicker(monkeypatch: pytest.MonkeyPatch, quicker: bool):
    monkeypatch.setattr(model_module, "_bfloat16_is_quicker", lambda device: quicker)
    with model_module.quick_arithmetic():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if quicker else torch.float32)


def test_memories_keep_what_they_are_told_to_keep(ground, taught, encoder, heldout):
    found = heldout[0][:4]
    teacher = Descriptions(ground.evidence)
    kept = {keeps: remembering(taught, encoder, found, keeps, teacher) for keeps in get_args(Keeps)}
    assert all(len(memory.history) == 3 for memories in kept.values() for memory in memories)
    assert all(memory.profile.startswith("Recently") for memory in kept["events"])
    assert all("the last was" in memory.profile for memory in kept["the teacher's text"])
    assert kept["text"] != kept["events"]


def test_what_cannot_train_is_refused_before_time_is_wasted(taught, prompts, encoder):
    frozen = deepcopy(taught).requires_grad_(False)
    with pytest.raises(TrainingError, match="no trainable weight"):
        train(frozen, encoder, prompts, Settings(steps=1))
    with pytest.raises(TrainingError, match="needs the anchor"):
        train(taught, encoder, prompts, Settings("grpo", steps=1))


def test_a_saved_model_says_the_same(taught, encoder, heldout, tmp_path):
    save(taught, encoder.tokenizer, tmp_path)
    model, tokenizer = load(tmp_path)
    assert tokenizer.chat_template == encoder.tokenizer.chat_template
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 8e6
    with torch.no_grad():
        one, other = (answer(each, encoder, heldout[1][:2], np.random.default_rng(0)) for each in (taught, model))
    assert torch.allclose(one.expected, other.expected, atol=1.0)


def test_ties_rank_in_the_order_shown():
    scores = torch.tensor([[5, 7, 7, 9]])
    assert [int(ranks_of(scores, torch.tensor([target]))) for target in range(4)] == [4, 2, 3, 1]


def test_the_loss_of_a_memory_text_is_on_its_own_tokens(taught, encoder, prompts):
    example = encoder.encode(list(prompts.draw(1, reflecting=1.0)))[0]
    longer = Example(example.messages, example.answer, ids=example.ids + example.ids[:1], begin=example.begin)
    with torch.no_grad():
        assert float(written(taught, encoder, [example])) != float(written(taught, encoder, [longer]))


def test_finished_jobs_are_kept_and_another_runs_folder_is_refused(tmp_path):
    ranks = {"SFT": [3, 2, 1], "more SFT": [3, 2, 2], "GRPO": [1, 2, 1], "GRPO without SFT": [9, 9, 9]}
    jobs = [Job(0, "medium", arm) for arm in ("SFT", *ARMS)]
    jobs += [Job(0, size, arm) for size in OTHER_SIZES for arm in ("SFT", "GRPO")]
    jobs += [Job(0, "medium", arm, "collaborative") for arm in ("SFT", *ASKED_OF_BOTH)]
    for job in jobs:
        rows = {job.name: ranks.get(job.name, [4, 5, 6])}
        told = {"name": job.name, "users": ["1", "2", "3"]}
        told |= {"weights": 10, "seconds": 1.0, "steps": 2, "log": {"kl": 0.5}}
        job.file(tmp_path).write_text(json.dumps(job._asdict() | told | {"rows": rows}))
    text = run(tmp_path, seeds=1, minutes=60)
    assert (tmp_path / "table.md").read_text() == text and "test users" in text
    with pytest.raises(TrainingError, match="give another --out"):
        run(tmp_path, seeds=2, minutes=60)


def test_the_table_tells_errors_over_users_and_paired_intervals():
    told = {"weights": 10, "seconds": 60.0, "steps": 5, "log": {"kl": 0.5}, "users": ["1", "2", "3"]}
    rows = {"SFT": [2, 2, 2], "more SFT": [2, 2, 1], "GRPO": [1, 1, 1], "GRPO, small": [3, 3, 3]}
    rows |= {"SFT, small": [3, 3, 3], "true item": [2, 2, 2]}
    both = [("content", name, ranks) for name, ranks in rows.items()] + [("collaborative", "SFT", [1, 1, 1])]
    given = [told | {"teacher": teacher, "name": name, "rows": {name: ranks}} for teacher, name, ranks in both]
    text = table(given, 60.0, "test")
    content, collaborative = text.split("**The collaborative teacher**")
    assert "| more SFT | 1 | 33.3 ± 33.3 | 75.4 ± 12.3 | +12.3 (+0.0 to +36.9) |  | +12.3 (+0.0 to +36.9) |" in content
    assert "| GRPO | 1 | 100.0 ± 0.0 | 100.0 ± 0.0 | +36.9 (+36.9 to +36.9) | +24.6 (+0.0 to +36.9) |" in content
    assert "| GRPO, small | 1 | 0.0 ± 0.0 | 50.0 ± 0.0 | +0.0 (+0.0 to +0.0) |  |  |" in content
    assert "| SFT | 1 | 100.0 ± 0.0 | 100.0 ± 0.0 |  |  |  |" in collaborative


def test_a_groups_answers_are_drawn_as_the_policy_says_and_paid_by_the_true_items_rank(prompts, encoder):
    ranking = list(prompts.draw(2))
    logits = torch.randn(2, 20, 100, generator=torch.Generator().manual_seed(0)).mul(3).requires_grad_()
    scores = torch.log_softmax(logits, -1)
    said = Answered(scores, scores, scores, torch.zeros(2, 1), torch.ones(2, 1))
    drawn, taken, rewards = rewarded(Settings("grpo", group=20_000), ranking, said)
    assert drawn.shape == taken.shape == (2, 20_000, 20) and rewards.shape == (2, 20_000)
    often = torch.nn.functional.one_hot(drawn, 100).float().mean(1)
    assert torch.allclose(often, scores.exp(), atol=0.02)
    assert torch.equal(taken[1, 5, 3], scores[1, 3, drawn[1, 5, 3]]) and taken.requires_grad
    for each in range(10):
        place = int(ranks_of(drawn[0, each], torch.tensor(ranking[0].target)))
        assert float(rewards[0, each]) == position_reward(place)


def test_stopped_by_ctrl_c_it_says_how_to_go_on_and_leaves_no_process_behind(tmp_path):
    command = [sys.executable, "-m", "starec_env.cli", "train", "miniature", "--minutes", "1", "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        try:
            first = running.stderr.readline()
            time.sleep(3)
        finally:
            running.send_signal(signal.SIGINT)
        told = running.stderr.read()  # ends when the last process that holds it is gone
    assert first.startswith("40 of 40 jobs to do: some 1 minutes")
    assert running.returncode == 130
    assert f"finished jobs are kept in {tmp_path}: the same command goes on" in told
