"""The small model's recipe, from a start made by hand to a table, at a size that takes seconds: steps are counted."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import make_dataset
from support_training import ROOT

from starec_agents.serving.card import read_card
from starec_agents.serving.weights import nano_folder
from starec_agents.tasks import parse_profile, parse_ranking
from starec_env.data.spec import DataSpec
from starec_env.types import Candidates

pytest.importorskip("trl", reason="needs the 'train' extra")

import torch  # noqa: E402

from starec_training.checkpoints import load_policy  # noqa: E402
from starec_training.grouped import scores_only  # noqa: E402
from starec_training.rendering import encode  # noqa: E402


@pytest.fixture(scope="module")
def nano():
    """The example's modules; what they change of TRL for the process is put back."""
    import trl.trainer.utils

    before = trl.trainer.utils._use_triton
    sys.path.insert(0, str(ROOT / "examples" / "nano"))
    import loss
    import make
    import miniature
    import rows
    import start

    yield SimpleNamespace(loss=loss, make=make, miniature=miniature, rows=rows, start=start)
    sys.path.remove(str(ROOT / "examples" / "nano"))
    trl.trainer.utils._use_triton = before


@pytest.fixture(scope="module")
def data(nano):
    return nano.miniature.Data(make_dataset(n_users=60, n_items=45, length=20))


@pytest.fixture(scope="module")
def plan(nano):
    return nano.miniature.Plan(sft=4, grpo=2, users=3, size="tiny", sft_batch=4, prompts=4, group=4, together=2)


@pytest.fixture(scope="module")
def done(nano, data, plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seed that is trained and judged, stopped before its first step and gone on."""
    folder = tmp_path_factory.mktemp("miniature")
    assert not nano.miniature.train(folder / "seed-0", 0, plan, data, minutes=0)
    assert nano.miniature.train(folder / "seed-0", 0, plan, data)
    nano.miniature.judge(folder / "seed-0", plan, data)
    return folder


def test_rows_are_of_training_users_and_answers_never_depend_on_the_target(nano, data):
    train = set(data.split.train)
    for n in nano.miniature.LISTS:
        for row in data.prompts(1).draw(8, candidates=n):
            shown = row.snapshot.shown
            found = Candidates(shown.candidates, np.arange(n, dtype=np.int32))
            assert row.snapshot.user_id in train and len(shown.candidates) == n
            assert parse_ranking(row.completion, found, "scores").valid
    ranked = [row.snapshot.shown.rank(row.completion, "scores") for row in data.prompts(2).draw(60, candidates=5)]
    assert set(ranked) == {1, 2, 3, 4, 5}


def test_memory_texts_say_what_the_prompt_tells(data):
    for row in data.prompts(3).draw(20, reflecting=1.0):
        shown, profile = row.prompt[1]["content"], parse_profile(row.completion)
        liked, predicted = "Actual feedback: liked." in shown, "so predicted liked" in shown
        assert profile is not None and ("As predicted" in profile) == (liked == predicted)
        assert ("was liked" in profile) == liked


def test_stages_train_by_trl_and_stop_and_go_on(done, plan):
    seed = done / "seed-0"
    steps = {name: json.loads((last(seed / name) / "trainer_state.json").read_text()) for name in ("sft", "grpo")}
    assert (steps["sft"]["global_step"], steps["grpo"]["global_step"]) == (plan.sft, plan.grpo)
    start, sft, grpo = (load_policy(seed / name)[0].state_dict() for name in ("start", "sft/final", "grpo/final"))
    name = "model.embed_tokens.weight"
    assert not torch.equal(start[name], sft[name]) and torch.equal(sft[name], grpo[name])  # frozen in GRPO
    other = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(sft[other], grpo[other])


def last(folder: Path) -> Path:
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def test_the_table_has_each_stage_with_paired_differences(nano, done):
    ranks = np.load(done / "seed-0" / "ranks-grpo.npy")
    assert len(ranks) == len(np.load(done / "seed-0" / "ranks-more.npy")) > 0
    text = nano.miniature.table(done)
    assert "| SFT, then GRPO |" in text and "| SFT, then more SFT |" in text and "1 seeds, 3 test users" in text


def test_another_plan_in_the_same_folder_is_refused(nano, done, data, plan):
    with pytest.raises(SystemExit, match="give another --out"):
        nano.miniature.train(done / "seed-0", 1, plan, data)


def asking(model, tokenizer, group: int) -> SimpleNamespace:
    """What a rollout uses of TRL's trainer."""
    accelerator = SimpleNamespace(
        unwrap_model=lambda model: model, autocast=lambda: torch.autocast("cpu", enabled=False)
    )
    args = SimpleNamespace(temperature=1.0)
    return SimpleNamespace(
        processing_class=tokenizer, model=model, num_generations=group, args=args, accelerator=accelerator
    )


def test_drawn_scores_make_whole_answers_and_only_they_are_trained(nano, done, data):
    model, tokenizer = load_policy(done / "seed-0" / "sft" / "final")
    prompts = [[dict(message) for message in row.prompt] for row in data.prompts(4).draw(2, candidates=5)]
    drawn = scores_only(nano.rows.answer_of(np.zeros(5)))(
        [each for each in prompts for _ in range(3)], asking(model, tokenizer, 3)
    )
    assert drawn["prompt_ids"] == [encode(tokenizer, each) for each in prompts for _ in range(3)]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in drawn["completion_ids"]]
    assert all(list(json.loads(text)) == list("ABCDE") for text in texts) and len(set(texts)) > 1
    assert all(ids[-1] == tokenizer.eos_token_id for ids in drawn["completion_ids"])
    for ids, marks, text in zip(drawn["completion_ids"], drawn["env_mask"], texts, strict=True):
        trained = [token for token, mark in zip(ids, marks, strict=True) if mark]
        assert tokenizer.convert_ids_to_tokens(trained) == [str(score) for score in json.loads(text).values()]


def test_drawn_scores_follow_the_policys_distribution(nano, done, data):
    model, tokenizer = load_policy(done / "seed-0" / "sft" / "final")
    prompt = [[dict(message) for message in row.prompt] for row in data.prompts(4).draw(1, candidates=5)]
    n = 4000
    drawn = scores_only(nano.rows.answer_of(np.zeros(5)))(prompt * n, asking(model, tokenizer, n))
    known = nano.start.score_ids(tokenizer)
    begun = torch.tensor([drawn["prompt_ids"][0] + tokenizer.encode('{"A":', add_special_tokens=False)])
    with torch.no_grad():
        chances = torch.softmax(model(input_ids=begun).logits[0, -1, known], -1).numpy()
    first = [json.loads(tokenizer.decode(ids, skip_special_tokens=True))["A"] for ids in drawn["completion_ids"]]
    assert np.abs(np.bincount(first, minlength=100) / n - chances).max() < 0.03


def test_a_taught_score_costs_least_and_a_near_one_less_than_a_far_one(nano):
    wanted = torch.tensor([10, 50, 90])
    costs = []
    for shift in (0, 4, 40):
        logits = torch.full((3, 100), -4.0)
        logits[torch.arange(3), (wanted + shift).clamp(max=99)] = 4.0
        costs.append(float(nano.loss.scores_loss(logits, wanted)))
    assert costs == sorted(costs)


def test_what_ships_is_in_both_formats_with_its_users(nano, data, tmp_path):
    pytest.importorskip("gguf")
    folder = nano.make.make(tmp_path, data, 1, [nano.make.Stage(1, 1e-3, 0.5, lists=(20,))], "tiny")
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "starec.json", "starec-nano.gguf"} <= names
    assert (folder / "starec-nano.gguf").read_bytes()[:4] == b"GGUF"
    card = read_card(folder)
    assert card is not None and card.split.data_hash == data.windows.hash
    assert all(set(getattr(card.split, part)) == set(getattr(data.split, part)) for part in ("train", "test"))


def test_a_calibration_is_fitted_on_the_validation_users_last_interactions(nano):
    windows = DataSpec().load()
    some = nano.rows.split_able_users(windows).model_copy(update={"validation": (4, 9, 20, 48, 53)})
    fitted = nano.make.calibrated(nano_folder(), SimpleNamespace(windows=windows, split=some))
    assert fitted.by_ranking.n == 5 * nano.make.CALIBRATED_ON and fitted.n >= 20
    assert fitted.temperature > 0.5 and fitted.made_from["users"] == "validation"
