"""The statistical twin: what it learns, what it may see, and its file."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp
from small_twin import small_log, small_twin

from starec_env import load_dataset, prepare
from starec_env.cases import Cases
from starec_env.errors import DataError, StarecWarning
from starec_env.recommend import calibrate
from starec_env.recommend.twin import BUNDLED, Twin, last_liked, twin_of
from starec_env.recommend.twin_model import TwinModel
from starec_env.types import Dataset


@pytest.fixture(scope="module")
def log() -> Dataset:
    return small_log()


@pytest.fixture(scope="module")
def films() -> Dataset:
    return prepare(load_dataset("ml-latest-small"))


def cases_of(data: Dataset, users, stops, candidates) -> Cases:
    n = len(users)
    zeros = np.zeros(n, np.int64)
    first = data.indptr[:-1][users]
    return Cases(data, zeros, users, zeros, first, stops, zeros, candidates.astype(np.int32), np.ones(n, bool))


def test_it_learns_who_likes_what(log):
    twin = small_twin()
    users = np.arange(log.n_users)
    own, other = (np.array([[item] for item in (users + shift) % 2]) for shift in (0, 1))
    assert (twin.p_like(twin.start, own) > twin.p_like(twin.start, other) + 0.2).mean() > 0.9
    assert (twin.mean_stars(twin.start, own) > twin.mean_stars(twin.start, other) + 0.8).mean() > 0.9


def test_nothing_at_or_after_a_held_out_target_is_seen(log):
    stops = last_liked(log, log.indptr[1:])
    assert all(log.liked[stop] for stop in stops.tolist())
    after = np.arange(log.n_interactions) >= stops[log.owner]
    changed = replace(
        log,
        ratings=np.where(after, 5 - log.ratings, log.ratings).astype(np.float32),
        item_indices=np.where(after, 0, log.item_indices).astype(np.int32),
        timestamps=np.where(after, log.timestamps + 5, log.timestamps),
    )
    one, other = Twin.fit(log, stops=stops, rank=4), Twin.fit(changed, stops=stops, rank=4)
    for part in ("choice", "stars", "calibration"):
        for name, value in vars(getattr(one, part)).items():
            assert np.array_equal(value, getattr(getattr(other, part), name)), (part, name)
    assert (Twin.fit(log, rank=4).stops == stops).all()


def test_it_is_read_as_it_was_written_and_refused_on_other_data(log, tmp_path):
    twin = small_twin()
    twin.save(tmp_path / "twin.npz")
    again = Twin.load(tmp_path / "twin.npz", log)
    shown = np.tile(np.arange(10), (log.n_users, 1))
    assert np.array_equal(twin.log_choice(twin.start, shown), again.log_choice(again.start, shown))
    assert (again.stops == twin.stops).all() and again.calibration.liked_above == log.liked_above
    other = replace(log, ratings=np.minimum(log.ratings, 4))
    with pytest.raises(DataError, match=f"twin of other data, hash {log.hash}.*{other.hash}"):
        Twin.load(tmp_path / "twin.npz", other)


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "shape", "version", "nan"])
def test_a_file_that_is_no_twin_is_refused_in_one_line(damage, log, tmp_path):
    path = tmp_path / "twin.npz"
    small_twin().save(path)
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        path.write_text("nothing")
    elif damage == "pickle":
        np.savez(path, **arrays | {"choice.bias": np.array([object()])})
    elif damage == "shape":
        np.savez(path, **arrays | {"choice.bias": arrays["choice.bias"][1:]})
    elif damage == "version":
        np.savez(path, **arrays | {"version": np.array(99)})
    else:
        np.savez(path, **arrays | {"stars.items": arrays["stars.items"] * np.nan})
    with pytest.raises(DataError, match="no twin that can be read.*fit it again"):
        Twin.load(path, log)


def test_the_bundled_twin_is_that_of_the_bundled_films_and_small(films):
    twin = twin_of(films)
    assert twin.dataset is films and (twin.stops == last_liked(films, films.indptr[1:])).all()
    assert BUNDLED.stat().st_size < 1_000_000
    assert twin.calibration.levels.tolist() == [0.5 * step for step in range(1, 11)]
    assert not twin.calibration.leave_declared


def test_a_twin_is_fitted_once_and_kept_in_the_cache(log, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAREC_CACHE", str(tmp_path))
    first = twin_of(log)
    assert "fitting a twin of Dataset" in capsys.readouterr().err
    again = twin_of(log)
    assert capsys.readouterr().err == "" and np.array_equal(first.choice.items, again.choice.items)
    (kept,) = (tmp_path / "twins").iterdir()
    assert kept.name == f"{log.hash}-1.npz"
    kept.write_bytes(kept.read_bytes()[:999])
    with pytest.warns(StarecWarning, match="no twin that can be read.*fitted anew now"):
        mended = twin_of(log)
    assert np.array_equal(first.choice.items, mended.choice.items) and twin_of(log).data_hash == log.hash


def test_too_little_data_is_refused(log):
    few = log.with_rows(np.arange(log.indptr[10]), indptr=log.indptr[:11], user_ids=log.user_ids[:10])
    with pytest.raises(DataError, match="too small for a twin.*wanted 20"):
        Twin.fit(few)


def test_a_history_that_goes_on_is_that_of_a_user_who_did_so(log):
    twin = small_twin()
    users = np.arange(5)
    there = twin.states_at(log, users, twin.stops[users])
    assert np.allclose(there.sums, twin.start.sums[users]) and (there.recent == twin.start.recent[users]).all()
    visits = twin.open(5)
    visits.begin(users, users, users)
    slates = np.array([np.setdiff1d(np.arange(40), log.item_indices[slice(*log.indptr[u : u + 2])])[:6] for u in users])
    given = visits.respond(users, slates)
    took = np.flatnonzero(given.taken >= 0)
    assert len(took)
    owners = np.concatenate([log.owner[np.isin(log.owner, users)], took])
    kept = np.concatenate([np.arange(log.n_interactions)[np.isin(log.owner, users)] < twin.stops[owners[: -len(took)]]])
    rows = np.flatnonzero(np.isin(log.owner, users))[kept]
    items = np.concatenate([log.item_indices[rows], slates[took, given.taken[took]]]).astype(np.int64)
    stars = np.concatenate([log.ratings[rows], given.stars[took]])
    whose = np.concatenate([log.owner[rows], took])
    order = np.argsort(whose, kind="stable")
    after = twin.states(whose[order], items[order], stars[order], 5)
    assert np.allclose(after.sums, visits._sums, atol=1e-4) and (after.recent == visits._recent).all()


def test_the_cards_model_reads_histories_anew(log):
    twin = small_twin()
    model = TwinModel(twin)
    users = np.arange(6)
    candidates = np.tile(np.arange(20), (6, 1))
    cases = cases_of(log, users, twin.stops[users], candidates)
    found = model.log_choice(cases)
    assert np.allclose(np.exp(found).sum(1), 1, atol=1e-5)
    assert np.allclose(found, twin.log_choice(twin.start[users], candidates), atol=1e-4)
    taken = model.log_choice(cases, "taken")
    assert np.allclose(np.exp(taken).sum(1), 1, atol=1e-5) and not np.allclose(taken, found)
    yes = model.accepts(cases)
    assert ((yes > 0) & (yes < 1)).all()
    assert np.allclose(
        yes[:, [3]],
        twin.p_take(twin.start[users], twin.utilities(twin.start[users], candidates[:, [3]]))[:, None],
        atol=1e-5,
    )


def test_ratings_are_expected_from_what_came_before_alone(log):
    model = TwinModel(small_twin())
    rows = np.flatnonzero(np.arange(log.n_interactions) - log.indptr[log.owner] >= 15)
    mean, like = model.rate(log, rows)
    assert ((mean >= 1) & (mean <= 5)).all() and ((like > 0) & (like < 1)).all()
    assert np.abs(mean - log.ratings[rows]).mean() < np.abs(log.ratings.mean() - log.ratings[rows]).mean() - 0.3
    last = np.flatnonzero(np.diff(np.append(log.owner[rows], -1)))
    changed = log.ratings.copy()
    changed[rows[last]] = 6 - changed[rows[last]]  # what is asked about last is not read
    again, _ = model.rate(replace(log, ratings=changed), rows)
    assert np.array_equal(mean, again)
    drawn = model.draw_stars(log, rows, 1)
    assert set(drawn.tolist()) <= {1, 2, 3, 4, 5} and np.array_equal(drawn, model.draw_stars(log, rows, 1))


def test_sittings_are_as_long_as_the_chances_of_leaving_say(log):
    twin = small_twin()
    leave = np.array([0.5, 0.25, 0.1], np.float32)
    model = TwinModel(replace(twin, calibration=replace(twin.calibration, leave=leave)))
    drawn = model.sitting_lengths(40_000, 0)
    shares = [(drawn == 1).mean(), (drawn == 2).mean(), (drawn == 3).mean(), (drawn == 4).mean()]
    wanted = [0.5, 0.5 * 0.25, 0.5 * 0.75 * 0.1, 0.5 * 0.75 * 0.9 * 0.1]
    assert np.allclose(shares, wanted, atol=0.01) and drawn.min() == 1


def test_a_log_without_ratings_has_a_twin_that_likes_all_it_takes(log):
    alike = replace(log, ratings=np.full_like(log.ratings, 4))
    twin = Twin.fit(alike, rank=4)
    visits = twin.open(log.n_users)
    rows = np.arange(log.n_users)
    visits.begin(rows, rows, rows)
    given = visits.respond(rows, np.tile(np.arange(10), (log.n_users, 1)))
    took = given.taken >= 0
    assert took.any() and (given.stars[took] == 4).all() and (given.liked == took).all()
    assert twin.calibration.levels.tolist() == [4] and np.isfinite(twin.start.raters.level).all()


# Known users are found again: what is drawn from chances is fitted to these chances -----------------------------------


def known_cases(twin: Twin, n: int, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 20) utilities, what the last items add, and logs of chances to be liked, of random items for its users."""
    who = rng.integers(len(twin.stops), size=n)
    states, shown = twin.start[who], rng.permuted(np.tile(np.arange(twin.dataset.n_items), (n, 1)), axis=1)[:, :20]
    return (
        twin.choice.utilities(states.sums, shown),
        twin.followers.near(states.recent, shown),
        twin.log_like(states, shown),
    )


def first_is(place, *columns):
    """The same (n, k) columns with the item at (n,) places in the first place."""
    order = np.argsort(np.arange(columns[0].shape[1]) != place[:, None], axis=1, kind="stable")
    return [np.take_along_axis(column, order, axis=1) for column in columns]


@pytest.mark.parametrize(("temperature", "near"), [(0.7, 0.4), (1.6, 0.1)])
def test_a_known_temperature_and_weight_of_the_last_items_are_found_within_their_errors(temperature, near):
    rng = np.random.default_rng(3)
    raw, follows, log_like = known_cases(small_twin(), 16_000, rng)
    scores = temperature * raw + near * follows + log_like
    chosen = (scores + rng.gumbel(size=scores.shape)).argmax(1)
    found = calibrate.weights(*first_is(chosen, raw, follows, log_like))
    chances = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))[..., None]
    features = np.stack([raw, follows], axis=-1).astype(np.float64)
    apart = features - (chances * features).sum(1, keepdims=True)
    information = np.einsum("nk,nki,nkj->ij", chances[..., 0], apart, apart)  # Fisher's, of a conditional logit
    errors = np.sqrt(np.diag(np.linalg.inv(information)))
    assert (errors < 0.07).all()
    assert (np.abs(np.array(found) - [temperature, near]) < 3.5 * errors).all()


def test_a_known_outside_option_is_found_within_its_error():
    """Where an item is taken as often as exp(utility) says, a slate of k holds it with odds mean(exp z) / E exp z."""
    rng = np.random.default_rng(5)
    n, level, spread = 6000, 0.6, 0.8
    square = rng.exponential(size=n)
    z = level * square[:, None] + spread * rng.standard_normal((n, 21))
    z[:, 0] += spread**2  # of normal z those taken by exp z are as much higher
    found = []
    for part in range(5):
        rows = np.arange(n) % 5 == part
        found.append(calibrate.outside(z[rows].astype(np.float32), square[rows].astype(np.float32), part)[:4])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(5)
    wanted = np.array([spread**2 / 2, 1, 1, level])  # constant, slope, size, level
    assert (error < 0.06).all()
    assert (np.abs(mean - wanted) < np.maximum(4.6 * error, 0.02)).all()  # Student's t of 4 degrees: 1 in 100


def test_a_known_hazard_of_leaving_is_found_within_its_error():
    twin = small_twin()
    leave = np.array([0.4, 0.2, 0.2, 0.1], np.float32)
    lengths = replace(twin.calibration, leave=leave).sitting_lengths(8000, 1)
    begins = np.append(0, lengths.cumsum()[:-1])
    pauses = np.full(lengths.sum(), 60)
    pauses[begins] = calibrate.SITTING + 1
    owners = np.repeat(np.arange(8000) // 20, lengths)
    found, declared = calibrate.leaving(owners, pauses.cumsum())
    assert not declared
    for step, chance in enumerate(leave.tolist()):
        alive = int((lengths > step).sum())
        assert abs(found[step] - chance) < 3.5 * np.sqrt(chance * (1 - chance) / (0.95 * alive))
