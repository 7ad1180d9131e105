"""A turn as a person sees it: text, or a picture of that text."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.errors import MissingExtra, check_choice
from starec_env.types import Dataset, Feedback, Query

RENDER_MODES = ["ansi", "human", "rgb_array"]
_RECENT = 5
_LONGEST_TITLE = 100
_WIDTH, _LINE, _MARGIN, _FONT = 880, 20, 14, 15
_INK, _PAPER, _LIKED, _DISLIKED = (32, 33, 36), (255, 255, 255), (19, 115, 51), (179, 38, 30)


def check_render_mode(render_mode: str | None, modes: Sequence[str] = RENDER_MODES) -> None:
    """Raise InvalidOption for a mode that there isn't, MissingExtra for pictures without Pillow."""
    if render_mode is not None:
        check_choice("render_mode", render_mode, modes)
    if render_mode == "rgb_array" and find_spec("PIL") is None:
        raise MissingExtra('render_mode="rgb_array"', "report")


def describe(dataset: Dataset, user: int, number: int, query: Query | None, last: tuple[Feedback, float] | None) -> str:
    """A turn as text, with the last five interactions of the history.

    Args:
        dataset: Where titles come from.
        user: 0-based index of the user.
        number: Of the turn, from 0.
        query: What is asked; None when the stream has ended.
        last: Feedback and reward of the ranking before, if there was one.
    """
    name = f"User {_line(str(dataset.user(user).id))}"
    lines = [f"{name}, turn {number}" if query else name]
    if last:
        feedback, reward = last
        title = _line(dataset.items[dataset.item_index(feedback.item_id)].title)
        place = f"ranked {feedback.rank}" if feedback.rank else "not ranked"
        lines += [f"Just {_taste(feedback.liked)} {title}, which was {place} (reward {reward:+g})"]
    if not query:
        return "\n".join([*lines, "The stream has ended."])
    history = query.history
    lines += [f"History, the last {min(_RECENT, len(history))} of {len(history)}:"] if history else ["No history."]
    past = zip(history.liked[-_RECENT:].tolist(), history.items[-_RECENT:], strict=True)
    lines += [f"  {_taste(liked):>8}  {_line(item.title)}" for liked, item in past]
    lines += ["Candidates:", *(f"  {place:>8}  {_line(item.title)}" for place, item in enumerate(query.candidates))]
    return "\n".join(lines)


def describe_visit(dataset: Dataset, observation: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """A step of `starec/Recommend-v0` as text: the last interactions, the slate shown, and what was taken.

    Args:
        dataset: Where titles come from.
        observation: As the environment gives it.
        info: Likewise.
    """
    step, taken = int(observation["step"]), int(observation["taken"])
    lines = [f"User {_line(str(info['user_id']))}, {step} slates shown"]
    if "rewards" in info:
        given = ", ".join(f"{name} {value:g}" for name, value in info["rewards"].items())
        lines += [f"{'The user left' if info['left'] else 'The user stays'}: {given}"]
    known = [item for item in observation["history"].tolist() if item >= 0]
    liked = (observation["ratings"] > dataset.liked_above).tolist()
    lines += [f"History, the last {min(_RECENT, len(known))}:"] if known else ["No history."]
    recent = [*zip(liked, known, strict=False)][-_RECENT:]
    lines += [f"  {_taste(like):>8}  {_line(dataset.items[item].title)}" for like, item in recent]
    if step:
        places = [f"{'taken' if place == taken else place}" for place in range(len(observation["slate"]))]
        titles = [_line(dataset.items[item].title) for item in observation["slate"].tolist()]
        lines += ["Slate:", *(f"  {place:>8}  {title}" for place, title in zip(places, titles, strict=True))]
    return "\n".join(lines)


def picture(text: str, n_candidates: int) -> NDArray[np.uint8]:
    """What `describe` wrote, drawn with Pillow: an array of shape (height, width, 3).

    Args:
        text: The turn's lines; what doesn't fit the width is cut off.
        n_candidates: Decides the height, so that all turns of an environment are of one size, as a video needs.
    """
    from PIL import Image, ImageDraw

    height = 2 * _MARGIN + _LINE * (n_candidates + _RECENT + 4)
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(image)
    for at, line in enumerate(text.split("\n")):
        label, title = (line[:10], line[12:]) if line.startswith("  ") else ("", line)
        top, left = _MARGIN + at * _LINE, _MARGIN + (90 if label else 0)
        draw.text((_MARGIN + 76, top), label.strip(), fill=_ink(label), font=_font(), anchor="ra")
        draw.text((left, top), title, fill=_ink(label or line), font=_font())
    return np.array(image)


@lru_cache(maxsize=1)
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(_FONT)


def _ink(text: str) -> tuple[int, int, int]:
    words = text.split()[:2]
    return _LIKED if "liked" in words else _DISLIKED if "disliked" in words else _INK


def _line(title: str) -> str:
    # A title is data: it can't begin a line of its own, nor send a terminal commands.
    text = "".join(character if character.isprintable() else " " for character in title)
    return text if len(text) <= _LONGEST_TITLE else f"{text[: _LONGEST_TITLE - 3]}..."


def _taste(liked: bool) -> str:
    return "liked" if liked else "disliked"
