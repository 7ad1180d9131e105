"""The protocol: who is tested on what, and who is trained on."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import make_dataset, shared_data

from starec_env.data import load_dataset, prepare
from starec_env.errors import DataError, InvalidOption, UnknownName
from starec_env.replay.stream import Stream
from starec_eval.protocol import READINGS, Protocol, Reading, sequences

ROOMY = Reading(min_interactions=2, max_length=12)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(n_users=60, n_items=80, length=20)


@pytest.fixture(scope="module")
def protocol(dataset):
    return Protocol(dataset, ROOMY, users=30)


def items_of(protocol, user, rows=slice(None)):
    dataset = protocol.dataset
    return set(dataset.item_indices[dataset.indptr[user] : dataset.indptr[user + 1]][rows].tolist())


def test_a_user_has_three_lists_of_one_positive_and_nineteen_negatives(protocol):
    cases = protocol.cases
    assert len(cases) == 90 and cases.candidates.shape[1] == 20
    assert np.bincount(cases.users)[cases.users].tolist() == [3] * 90
    assert all(len(set(row)) == 20 for row in cases.candidates.tolist())
    assert (cases.target_items == protocol.dataset.item_indices[cases.stop]).all()


def test_repetitions_have_their_own_negatives_and_orders(protocol):
    of_one = protocol.cases.candidates[protocol.cases.users == protocol.cases.users[0]]
    assert len({frozenset(row) for row in of_one.tolist()}) == 3
    assert len(np.unique(protocol.cases.targets)) > 10


def test_the_first_repetition_shows_what_the_environment_shows_at_the_held_out_turn(dataset):
    protocol = Protocol(dataset, ROOMY, users=30, seed=5)
    stream = Stream(prepare(dataset, min_interactions=2, max_length=12), seed=5)
    for case in np.flatnonzero(protocol.cases.repetition == 0).tolist():
        turn, query = stream.turns(int(protocol.cases.users[case]))[-1], protocol.cases.query(case)
        assert query.candidates.indices.tolist() == turn.query.candidates.indices.tolist()
        assert query.history.item_indices.tolist() == turn.query.history.item_indices.tolist()
        assert query.user == turn.query.user and protocol.cases.targets[case] == turn.target


def test_the_same_seed_gives_the_same_candidates_and_another_seed_others(dataset, protocol):
    assert Protocol(dataset, ROOMY, users=30).cases.hash == protocol.cases.hash
    assert Protocol(dataset, ROOMY, users=30, seed=1).cases.hash != protocol.cases.hash


@pytest.mark.parametrize("negatives", ["history", "truncated", "target"])
def test_negatives_exclude_exactly_what_the_reading_says(dataset, negatives):
    protocol = Protocol(dataset, replace(ROOMY, negatives=negatives), users=30, repetitions=20)
    cases, met_earlier, in_window = protocol.cases, 0, 0
    for user, target, shown in zip(cases.users, cases.target_items, cases.candidates, strict=True):
        others = set(shown.tolist()) - {target}
        met_earlier += len(others & items_of(protocol, user, slice(-12)))
        in_window += len(others & items_of(protocol, user, slice(-12, None)))
    assert (met_earlier > 0) == (negatives != "history")
    assert (in_window > 0) == (negatives == "target")


def test_liked_sequences_hold_likes_only_and_dislikes_still_exclude(dataset):
    protocol = Protocol(dataset, replace(ROOMY, sequences="liked"), users=20)
    for case in range(len(protocol.cases)):
        query, user = protocol.cases.query(case), protocol.cases.users[case]
        assert all(interaction.liked for interaction in query.history)
        others = set(query.candidates.indices.tolist()) - {protocol.cases.target_items[case]}
        assert not others & items_of(protocol, user)


def test_the_catalogue_universe_draws_items_that_the_filter_drops(dataset):
    rare = replace(dataset, items=(*dataset.items, *(replace(dataset.items[0], id=9000 + i) for i in range(80))))
    drawn = Protocol(rare, replace(ROOMY, universe="catalogue"), users=30).cases
    assert (drawn.candidates >= 80).any() and (drawn.target_items < 80).all()
    assert (Protocol(rare, ROOMY, users=30).cases.candidates < 80).all()


def test_shuffled_time_ties_move_only_rows_of_equal_time(dataset):
    tied = replace(dataset, timestamps=dataset.timestamps // 4)
    shuffled, _ = sequences(tied, replace(ROOMY, time_ties="shuffled"), seed=1)
    assert (shuffled.timestamps == tied.timestamps).all()
    assert (shuffled.item_indices != tied.item_indices).any()
    assert (sequences(tied, ROOMY)[0].item_indices == tied.item_indices).all()


@pytest.mark.parametrize("on", ["sample", "full"])
@pytest.mark.parametrize("transductive", [False, True])
def test_training_never_holds_a_test_users_target_or_anything_later(dataset, on, transductive):
    protocol = Protocol(dataset, replace(ROOMY, transductive=transductive), users=30, n_train=10)
    train = protocol.training(on)
    for user, stop in zip(protocol.cases.users.tolist(), protocol.cases.stop.tolist(), strict=True):
        held_out = protocol.dataset.item_indices[stop : protocol.dataset.indptr[user + 1]]
        row = np.flatnonzero(train.user_ids == protocol.dataset.user_ids[user])
        assert bool(len(row)) == (transductive or on == "full")
        for r in row:
            assert not set(train.item_indices[train.indptr[r] : train.indptr[r + 1]].tolist()) & set(held_out.tolist())
    assert train.n_users == {"sample": 10 + 30 * transductive, "full": 60}[on]


def test_full_training_takes_whole_histories_or_truncated_ones(dataset):
    whole = Protocol(dataset, ROOMY, users=30)
    cut = Protocol(dataset, replace(ROOMY, full="truncated"), users=30)
    left_out = int((whole.dataset.indptr[1:] - whole.stops).sum())
    assert whole.training("full").n_interactions == 60 * 20 - left_out
    assert cut.training("full").n_interactions == 60 * 12 - left_out
    assert whole.training("sample").n_interactions == cut.training("sample").n_interactions == 30 * 12
    liked = Protocol(dataset, replace(ROOMY, sequences="liked"), users=30).training("full")
    assert (liked.ratings > 3).all() and liked.longest > 12


def test_training_users_are_not_tested_and_can_be_given_by_a_file(dataset, tmp_path):
    assert not set(Protocol(dataset, ROOMY).train_users) & set(Protocol(dataset, ROOMY).cases.users)
    (tmp_path / "users").write_text("3\n5\n")
    protocol = Protocol(dataset, ROOMY, users=[1, 2], train_users=tmp_path / "users")
    assert protocol.training("sample").user_ids.tolist() == [3, 5]
    (tmp_path / "users").write_text("3\n999\n")
    with pytest.raises(UnknownName, match="999"):
        Protocol(dataset, ROOMY, users=[1, 2], train_users=tmp_path / "users")


def test_a_user_named_for_training_and_for_testing_is_refused_unless_asked_for(dataset):
    with pytest.raises(InvalidOption, match="2 of the training users are also test users, the first 2.*transductive"):
        Protocol(dataset, ROOMY, users=[1, 2, 3], train_users=[2, 3, 4])
    both = Protocol(dataset, replace(ROOMY, transductive=True), users=[1, 2, 3], train_users=[2, 3, 4])
    assert both.describe()["notes"] == ["2 of the training users are also test users, learned from up to the target"]
    lengths = dict(zip(both.training("sample").user_ids.tolist(), np.diff(both.training("sample").indptr), strict=True))
    assert lengths[2] < lengths[4] == 12
    sampled = Protocol(dataset, ROOMY, users=20, train_users=list(range(1, 41)))
    assert sorted(sampled.dataset.user_ids[np.unique(sampled.cases.users)].tolist()) == list(range(41, 61))
    with pytest.raises(InvalidOption, match="nobody is left to test"):
        Protocol(dataset, ROOMY, train_users=list(range(1, 61)))
    with pytest.raises(InvalidOption, match="users=21: 20 users of tiny can be tested"):
        Protocol(dataset, ROOMY, users=21, train_users=list(range(1, 41)))


def test_training_on_the_past_holds_nothing_as_late_as_the_earliest_target(dataset):
    rng = np.random.default_rng(0)
    began = np.repeat(rng.integers(0, 60, 60), 20)
    dataset = replace(dataset, timestamps=dataset.timestamps + began)
    past = Protocol(dataset, replace(ROOMY, training="past"))
    when = dataset.timestamps[past.cases.stop]
    stream = Stream(prepare(dataset, min_interactions=2, max_length=12), turns=1)
    assert when.min() >= np.median(dataset.timestamps[stream.rows[stream.begin[stream.users]]])
    for on in ("sample", "full"):
        assert past.training(on).timestamps.max() < when.min()
        assert past.training(on).n_interactions > 0
    ids = past.dataset.user_ids[np.unique(past.cases.users)].tolist()
    whole = Protocol(dataset, ROOMY, users=ids)
    assert whole.cases.hash == past.cases.hash
    assert whole.training("full").timestamps.max() >= when.min()


def test_a_user_who_met_nearly_all_stops_no_test_of_others(dataset):
    n = dataset.n_items
    rows = np.append(dataset.item_indices, np.random.default_rng(0).permutation(n)).astype(np.int32)
    dense = replace(
        dataset,
        user_ids=np.arange(1, 62),
        indptr=np.append(dataset.indptr, len(rows)),
        item_indices=rows,
        ratings=np.append(dataset.ratings, np.full(n, 5)).astype(np.float32),
        timestamps=np.append(dataset.timestamps, np.arange(n)),
        demographics=None,
    )
    protocol = Protocol(dense, ROOMY)
    (note,) = protocol.describe()["notes"]
    assert "1 of 59 users are left out" in note and note.endswith("negatives (user 61: 0)")
    assert 60 not in protocol.cases.users
    assert len(Protocol(dense, ROOMY, users=[2, 3]).cases) == 6
    with pytest.raises(InvalidOption, match="user 61 leaves only 0 of the 80 items"):
        Protocol(dense, ROOMY, users=[2, 61])
    assert len(Protocol(dense, replace(ROOMY, negatives="target"), users=[61]).cases) == 3


def test_rows_of_equal_time_stand_as_loaded_as_in_the_file_or_shuffled(dataset):
    rng = np.random.default_rng(0)
    in_file = np.concatenate([rng.permutation(20) for _ in range(60)]).astype(np.int32)
    tied = replace(dataset, timestamps=dataset.timestamps // 10, file_order=in_file)
    loaded, _ = sequences(tied, ROOMY)
    assert (loaded.item_indices == tied.item_indices).all()
    file, _ = sequences(tied, replace(ROOMY, time_ties="file"))
    assert (file.timestamps == tied.timestamps).all() and (file.item_indices != tied.item_indices).any()
    for first in range(0, 1200, 10):
        order = tied.item_indices[first : first + 10][np.argsort(in_file[first : first + 10])]
        assert file.item_indices[first : first + 10].tolist() == order.tolist()
    finer = replace(tied, nanoseconds=np.tile(np.arange(10, dtype=np.int32), 120))
    for ties in ("file", "shuffled"):
        kept, _ = sequences(finer, replace(ROOMY, time_ties=ties), seed=1)
        assert (kept.item_indices == tied.item_indices).all()


def test_cases_know_whether_the_target_was_liked(dataset, tmp_path):
    protocol = Protocol(dataset, replace(ROOMY, targets="all"), users=40)
    cases = protocol.cases
    assert (cases.liked == (protocol.dataset.ratings[cases.stop] > 3)).all() and not cases.liked.all()
    cases.write(tmp_path / "c.parquet")
    assert (Protocol(dataset, ROOMY, candidates=tmp_path / "c.parquet").cases.liked == cases.liked).all()
    assert (cases.select(cases.liked).liked).all()


def test_a_target_that_the_data_set_does_not_know_counts_as_liked(protocol, dataset, tmp_path):
    row = protocol.cases.table.slice(0, 1).to_pylist()[0]
    unmet = next(item for item in row["candidates"] if item != row["target"])
    pq.write_table(pa.Table.from_pylist([{**row, "target": unmet}]), tmp_path / "c.parquet")
    assert Protocol(dataset, ROOMY, candidates=tmp_path / "c.parquet").cases.liked.tolist() == [True]
    past = Protocol(dataset, replace(ROOMY, training="past"), candidates=tmp_path / "c.parquet", train_users=[])
    with pytest.raises(InvalidOption, match="needs the time of every target"):
        past.training("full")


def test_the_candidates_of_the_readings_never_change_between_versions():
    movies = load_dataset("ml-1m", shared_data("ml-1m"))
    assert Protocol(movies).cases.hash == "c9a25b6c02d1943b"
    assert Protocol(movies, "paper").cases.hash == "f194ddc1f2641e9a"


def test_candidates_survive_the_file_and_so_does_their_hash(protocol, dataset, tmp_path):
    protocol.cases.write(tmp_path / "c.parquet")
    again = Protocol(dataset, ROOMY, candidates=tmp_path / "c.parquet")
    assert again.cases.hash == protocol.cases.hash
    for case in (0, 40, 89):
        ours, theirs = protocol.cases.query(case), again.cases.query(case)
        assert list(ours.history) == list(theirs.history) and list(ours.candidates) == list(theirs.candidates)
    assert again.training("full").n_interactions == protocol.training("full").n_interactions


def test_ids_may_be_text_in_a_file_and_numbers_in_the_data_set(protocol, dataset, tmp_path):
    text = {
        name: pa.array([[str(i) for i in v] if isinstance(v, list) else str(v) for v in column.to_pylist()])
        for name, column in zip(protocol.cases.table.column_names, protocol.cases.table.columns, strict=True)
        if name not in ("repetition", "turn")
    }
    pq.write_table(pa.table({**text, "repetition": protocol.cases.table["repetition"]}), tmp_path / "c.parquet")
    cases = Protocol(dataset, ROOMY, candidates=tmp_path / "c.parquet").cases
    assert (cases.target_items == protocol.cases.target_items).all()


def spoil(column, change):
    def spoiled(rows):
        rows[4][column] = change(rows[4])
        return rows

    return spoiled


@pytest.mark.parametrize(
    ("spoiled", "cause"),
    [
        (spoil("user_id", lambda row: 77777), "user 77777 is not in tiny"),
        (spoil("target", lambda row: 31337), "target 31337 is not in tiny"),
        (spoil("history", lambda row: [*row["history"], 31337]), "item 31337 of its history is not in tiny"),
        (spoil("candidates", lambda row: [31337, *row["candidates"][1:]]), "item 31337 of its candidates"),
        (spoil("candidates", lambda row: row["candidates"][:19]), "19 candidates, wanted 20"),
        (spoil("candidates", lambda row: [*row["candidates"], 100]), "21 candidates where the first row has 20"),
        (spoil("candidates", lambda row: [row["candidates"][1], *row["candidates"][1:]]), "is repeated"),
        (spoil("target", lambda row: row["history"][0]), "is not among the candidates"),
        (lambda rows: [*rows[:4], rows[0]], "repetition 0, turn .* is there twice"),
    ],
)
def test_a_wrong_candidates_file_gets_an_error_that_names_row_user_and_cause(
    protocol, dataset, tmp_path, spoiled, cause
):
    rows = spoiled(protocol.cases.table.slice(0, 6).to_pylist())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=f"c.parquet, row 5: user {rows[4]['user_id']}: .*{cause}"):
        Protocol(dataset, ROOMY, candidates=tmp_path / "c.parquet")


def test_a_file_without_the_columns_or_that_is_no_parquet_is_refused(dataset, tmp_path):
    pq.write_table(pa.table({"user_id": [1]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="lacks the columns repetition, history"):
        Protocol(dataset, ROOMY, candidates=tmp_path / "c.parquet")
    (tmp_path / "c.csv").write_text("user_id\n1\n")
    with pytest.raises(DataError, match="Parquet"):
        Protocol(dataset, ROOMY, candidates=tmp_path / "c.csv")


def test_a_history_item_that_the_user_never_rated_counts_as_liked(protocol, dataset, tmp_path):
    row = protocol.cases.table.slice(0, 1).to_pylist()[0]
    unmet = next(item.id for item in dataset.items if item.id not in row["candidates"] + row["history"])
    pq.write_table(pa.Table.from_pylist([{**row, "history": [unmet, *row["history"]]}]), tmp_path / "c.parquet")
    history = list(Protocol(dataset, ROOMY, candidates=tmp_path / "c.parquet").cases.query(0).history)
    assert history[0].item_id == unmet and history[0].liked
    assert history[1:] == list(protocol.cases.query(0).history)


def test_a_test_user_without_a_positive_is_named(dataset):
    ratings = dataset.ratings.copy()
    ratings[:20] = 1
    sour = replace(dataset, ratings=ratings)
    with pytest.raises(InvalidOption, match="user 1 has no turn"):
        Protocol(sour, ROOMY, users=[2, 1])
    assert (
        0
        not in Protocol(
            sour, ROOMY, users=len(Stream(prepare(sour, min_interactions=2, max_length=12)).users)
        ).cases.users
    )


def test_impossible_settings_say_what_would_do(dataset):
    with pytest.raises(DataError, match="lower min_interactions"):
        Protocol(dataset, Reading(min_interactions=500))
    with pytest.raises(InvalidOption, match="users=99"):
        Protocol(dataset, ROOMY, users=99)
    with pytest.raises(InvalidOption, match="did you mean 'history'"):
        Reading(negatives="histroy")
    with pytest.raises(InvalidOption, match="paper"):
        Protocol(dataset, "papers")
    with pytest.raises(InvalidOption, match="no user is left to train on"):
        Protocol(dataset, ROOMY, users=30, train_users=[]).training("sample")


def test_every_reading_is_described_with_its_table(protocol):
    about = protocol.describe()
    assert set(about["reading"]) == set(vars(READINGS["paper"]))
    loaded, prepared, sample = about["counts"]
    assert (loaded["users"], loaded["interactions"], prepared["interactions"]) == (60, 1200, 720)
    assert prepared["sparsity"] == 1 - 720 / (60 * prepared["items"]) and sample["users"] == 30


def test_test_users_are_a_number_or_a_list_and_none_beside_candidates(dataset, protocol, tmp_path):
    assert len(Protocol(dataset, ROOMY, users=np.int64(5)).cases) == 15
    for users in ([], "abc", {1}):
        with pytest.raises(InvalidOption, match="give a list of ids"):
            Protocol(dataset, ROOMY, users=users)
    protocol.cases.write(tmp_path / "c.parquet")
    with pytest.raises(InvalidOption, match="no effect with candidates"):
        Protocol(dataset, ROOMY, users=5, candidates=tmp_path / "c.parquet")


def test_of_table_3_every_user_has_forty_interactions_the_last_or_the_first() -> None:
    data = load_dataset("ml-latest-small")
    found = {}
    for keep in ("last", "first"):
        protocol = Protocol(data, Reading(min_length=40, keep=keep), users=50, n_train=100)
        train = protocol.training("sample")
        assert train.n_users == 100 and train.n_interactions == 4000
        found[keep] = train
    assert found["first"].timestamps.mean() < found["last"].timestamps.mean()
    cut, _ = sequences(data, Reading(keep="first", max_length=10))
    for user in range(0, cut.n_users, 50):
        own = cut.timestamps[cut.starts[user] : cut.indptr[user + 1]]
        assert len(own) == 10 and own.max() <= cut.timestamps[cut.indptr[user] : cut.starts[user]].min(initial=2**62)
    with pytest.raises(InvalidOption, match="min_length=50"):
        Reading(min_length=50)


def test_repetitions_ask_new_lists_or_the_same_again() -> None:
    data = make_dataset(n_users=24, n_items=80, length=20)
    for lists, same in (("new", False), ("same", True)):
        cases = Protocol(data, Reading(min_interactions=2, lists=lists), users=6, repetitions=2).cases
        assert (cases.candidates[:6] == cases.candidates[6:]).all() == same
