"""A two-minute cut of the miniature: from nothing to a model that ranks, and a step of reinforcement from there."""

from copy import deepcopy

import numpy as np
import pytest

from starec_agents.parsing import parse_profile, parse_ranking
from starec_agents.prompts import rank_messages, start_memory
from starec_env import load_dataset, prepare
from starec_env.errors import TrainingError
from starec_training.evidence import Evidence

torch = pytest.importorskip("torch")

from starec_training.miniature.data import Encoder, Example, Prompts, render, split_users, tokens_for  # noqa: E402
from starec_training.miniature.experiment import Ground, table  # noqa: E402
from starec_training.miniature.heldout import asked, by_user, cases  # noqa: E402
from starec_training.miniature.model import answer, load, new_model, save  # noqa: E402
from starec_training.miniature.train import Settings, judged, mean_ndcg, ranks_of, train, written  # noqa: E402
from starec_training.policy import generate  # noqa: E402

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
    split = split_users(windows)
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
    return found, encoder.encode([asked(case) for case in found])


@pytest.fixture(scope="module")
def taught(ground, prompts, encoder, heldout):
    model = new_model(ground.evidence, encoder, heldout[1][0])
    return train(model, encoder, prompts, Settings(steps=110, batch=8, learning_rate=1.5e-3, popular_first=1.5))


def test_no_user_is_in_two_parts_of_the_split_and_it_is_always_the_same(ground):
    parts = [set(ground.split.train), set(ground.split.validation), set(ground.split.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 670
    assert [len(part) for part in parts] == [460, 60, 150]
    assert split_users(ground.windows) == ground.split


def test_training_prompts_are_of_training_users_alone(ground):
    other = Prompts(ground.streams, ground.evidence, ground.split.train[:3], seed=1)
    users = {int(other.owner[row]) for row in other.rows}
    assert users == {ground.streams.user_index(user) for user in ground.split.train[:3]}


def test_titles_and_scores_are_single_tokens_and_the_template_is_what_render_writes(encoder, heldout):
    case = heldout[0][0]
    messages = rank_messages(case.turn.query, start_memory(case.turn.query), "compact", True, 12)
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
    assert by_user(ranks, found).mean() == pytest.approx(mean_ndcg(ranks))
    assert mean_ndcg(ranks) > RANDOM_NDCG + 12


def test_free_answers_are_valid_and_rank_as_one_pass_says(taught, encoder, heldout):
    found, examples = heldout
    texts = generate(taught, encoder.tokenizer, [example.messages for example in examples[:12]], max_tokens=100)
    read = [parse_ranking(text.text, case.turn.query.candidates, "compact") for text, case in zip(texts, found)]  # noqa: B905
    assert np.mean([ranking.valid for ranking in read]) > 0.9
    decoded = np.array([ranking.rank_of(case.turn.target) or 21 for ranking, case in zip(read, found)])  # noqa: B905
    assert abs(mean_ndcg(decoded) - mean_ndcg(judged(taught, encoder, examples[:12]))) < 8


@pytest.mark.parametrize("method", ["grpo", "reinforce++"])
def test_reinforcement_starts_at_the_anchor_moves_away_and_leaves_it_alone(taught, prompts, encoder, method):
    before = deepcopy(taught.state_dict())
    settings = Settings(method, steps=6, batch=4, learning_rate=1e-3, reflecting=0.0)
    policy = train(deepcopy(taught), encoder, prompts, settings, anchor=taught)
    kl = [step["log kl"] for step in settings.log]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-4
    assert all(torch.equal(before[name], weight) for name, weight in taught.state_dict().items())
    assert any(not torch.equal(before[name], weight) for name, weight in policy.state_dict().items())


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


def test_the_table_tells_errors_over_users_and_paired_intervals():
    rows = {"SFT": [50.0, 60.0, 70.0], "more SFT": [52.0, 61.0, 75.0], "GRPO": [55.0, 65.0, 75.0]}
    text = table([{"seed": 0, "size": "medium", "weights": 10, "rows": rows, "valid answers, free": 1.0}], 60.0, "test")
    assert "| GRPO | 1 | 65.0 ± 5.8 | +5.0 (+5.0 to +5.0) | +2.3 (+0.0 to +4.0) |" in text
