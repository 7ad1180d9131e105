"""What docs/agents.md shows of the prompts; run this file to write it anew after a change of wording."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from starec_agents.llm import Message
from starec_agents.memory import Event, Memory
from starec_agents.tasks import (
    Visit,
    rank_messages,
    ranking_format,
    reflect_messages,
    respond_messages,
    visit_messages,
)
from starec_env.replay.stream import judge
from starec_env.types import Candidates, Dataset, History, Item, Query, Shown, SlateFeedback, Turn, User

PAGE = Path(__file__).parents[1] / "docs" / "agents.md"
FILMS = [
    ("Bean (1997)", "Comedy"),
    ("Heat (1995)", "Action/Crime/Thriller"),
    ("Seven (Se7en) (1995)", "Crime/Thriller"),
    ("Fargo (1996)", "Crime/Drama/Thriller"),
    ("Babe (1995)", "Children's/Comedy/Drama"),
    ("Matrix, The (1999)", "Action/Sci-Fi/Thriller"),
]
ALBUMS = [
    ("Kind of Blue", "Miles Davis", "Jazz"),
    ("Nevermind", "Nirvana", "Alternative Rock"),
    ("A Love Supreme", "John Coltrane", "Jazz"),
    ("Blue Train", "John Coltrane", "Jazz"),
    ("Thriller", "Michael Jackson", "Pop"),
    ("Mingus Ah Um", "Charles Mingus", "Jazz"),
]
MEMORIES = {
    "movie": Memory(
        profile="Likes tense crime films; light comedies leave this user cold.",
        history=(Event(item_id=1, title="Heat (1995)", liked=True, rank=2, of=20, reason="tense crime, like Seven"),),
    ),
    "music": Memory(
        profile="Likes modal jazz of the fifties and sixties.",
        history=(Event(item_id=1, title="Nevermind", liked=False, rank=3, of=20, reason="a change of mood"),),
    ),
}


def turn(domain: str, items: list[Item], demographics: dict[str, str], ratings: list[float]) -> Turn:
    """A turn whose history is the first three items, and whose candidates are the others; the first is the target."""
    dataset = Dataset(
        name=domain, domain=domain, items=items, user_ids=np.array([1]), indptr=np.array([0, 3]),
        item_indices=np.arange(3, dtype=np.int32), ratings=np.array(ratings, np.float32), timestamps=np.arange(3),
    )  # fmt: skip
    shown = Candidates(items, np.arange(3, len(items), dtype=np.int32))
    return Turn(Query(User(1, demographics), History(dataset, 0, 0, 3), shown, domain), 0, True, 3)


TURNS = {
    "MovieLens-1M": turn(
        "movie",
        [Item(i, title, {"genres": genres}) for i, (title, genres) in enumerate(FILMS)],
        {"gender": "F", "age": "25-34", "occupation": "artist"},
        [2, 5, 4],
    ),
    "Amazon CDs": turn(
        "music",
        [Item(i, title, {"artist": artist, "categories": kind}) for i, (title, artist, kind) in enumerate(ALBUMS)],
        {},
        [5, 2, 5],
    ),
}


def visit_prompts(query: Query, memory: Memory) -> dict[str, list[Message]]:
    """The prompts of a visit to a recommender, whose third page is shown, and of the reflection after it."""
    visit = Visit(levels=(1, 2, 3, 4, 5), counts=(3, 5, 12, 20, 10), page=3, passed=5)
    first, second, third = query.candidates
    shown = Shown(item=first, taken=True, liked=True, rating=4.0), Shown(item=second), Shown(item=third)
    return {
        "response": respond_messages(query, memory, visit),
        "memory update after a visit": visit_messages(query, memory, SlateFeedback(shown=shown, left=True)),
    }


def prompts_page() -> str:
    """The section's text."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "Made-up turns of three interactions and three candidates (forty and twenty by default), format `paper`."
    for name, each in TURNS.items():
        memory = MEMORIES[each.query.domain]
        candidates = each.query.candidates
        said = ranking_format("paper").render(candidates, [2, 0, 1], {0: "dark, but slow"}, "Hm.")
        ranking = ranking_format("paper").parse(said, candidates)
        asked = {
            "ranking": rank_messages(each.query, memory),
            "memory update": reflect_messages(each.query, memory, ranking, judge(each, ranking)[0]),
        }
        if name == "MovieLens-1M":
            asked |= visit_prompts(each.query, memory)
        for task, messages in asked.items():
            yield f"\n**{name}, {task}**\n"
            for message in messages:
                yield f"```text\n[{message['role']}]\n{message['content']}\n```"


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split("<!-- prompts: begin -->\n")
    after = rest.split("<!-- prompts: end -->")[1]
    text = f"{before}<!-- prompts: begin -->\n{prompts_page()}<!-- prompts: end -->{after}"
    PAGE.write_text(text, encoding="utf-8")
