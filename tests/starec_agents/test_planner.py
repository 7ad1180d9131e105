import re

import pytest
from support import make_dataset

from starec_agents import ScriptedChat, UserAgent, scripted_user
from starec_agents.planner import item_facts, planner
from starec_agents.tasks.titles import candidate_titles
from starec_env.replay.stream import Stream, judge

TURNS = Stream(make_dataset()).turns(0)
TITLES = candidate_titles(TURNS[0].query.candidates)


class Says(ScriptedChat):
    """Says the same to all, and keeps the prompts."""

    def __init__(self, text):
        self.prompts = []
        super().__init__(lambda messages, sampling: self.prompts.append(messages) or text)


def agent_of(plan="It turns on genre.", critique="accept", llm=None, **options):
    models = {"planner": Says(plan), "critic": Says(critique)}
    return UserAgent(llm or ScriptedChat(scripted_user()), planner, models=models, **options)


def kinds(agent):
    return [call.kind for call in agent.calls]


@pytest.mark.parametrize(
    "options", [{}, {"answer_format": "compact"}, {"answer_format": "compact", "structured": True}]
)
def test_an_accepted_ranking_is_the_turns(options):
    agent = agent_of(**options)
    for turn in TURNS[:2]:
        ranking = agent.rank(turn.query)
        assert ranking.valid
        assert kinds(agent) == ["planner", "rank", "critic"]
        agent.learn(judge(turn, ranking)[0])
        assert kinds(agent) == ["planner", "rank", "critic", "reflect"]
    assert len(agent.memory.history) == 2


def test_an_objection_leads_to_one_more_draft():
    agent = agent_of(critique="<think>hm</think>The first is no drama.")
    agent.rank(TURNS[0].query)
    assert kinds(agent) == ["planner", "rank", "critic", "rank"]
    first, second = (call.messages[1]["content"] for call in agent.calls if call.kind == "rank")
    assert "Objection" not in first
    assert "Objection:\nThe first is no drama.\n\nRank all 20 movies." in second


def test_what_the_plan_names_is_looked_up_for_the_ranker():
    plan = f"It turns on genre.\n1. {TITLES[3]}\n- {TITLES[5]} - why not\nNo Such Film\n{TITLES[3]}"
    agent = agent_of(plan=plan)
    agent.rank(TURNS[0].query)
    facts = agent.calls[1].messages[1]["content"].split("Facts:\n")[1].split("\n\n")[0].splitlines()
    assert facts == [item_facts(TURNS[0].query, 3), item_facts(TURNS[0].query, 5)]


def test_facts_count_the_likes_of_what_is_shared():
    query = TURNS[0].query
    item = query.candidates[3]
    for name, value in item.attributes.items():
        for part in value.split(", "):
            same = [
                liked
                for past, liked in zip(query.history.items, query.history.liked.tolist(), strict=True)
                if part in ", ".join(past.attributes.values()).split(", ")
            ]
            if same:
                assert f"{part}: liked {sum(same)} of {len(same)}" in item_facts(query, 3), name
    assert item_facts(query, 3).startswith(TITLES[3])


def test_the_plan_is_shown_to_the_next_turns_planner():
    agent = agent_of(plan="It turns on genre.")
    for turn in TURNS[:2]:
        agent.learn(judge(turn, agent.rank(turn.query))[0])
    first, second = (prompt[1]["content"] for prompt in agent.models["planner"].prompts)
    assert "Plan for the last choice" not in first
    assert second.endswith("Plan for the last choice: It turns on genre.")


def test_without_models_of_their_own_all_nodes_ask_the_one():
    llm = ScriptedChat(scripted_user())
    agent = UserAgent(llm, planner)
    agent.rank(TURNS[0].query)
    assert llm.requests == len(agent.calls) == 4  # a scripted critic never accepts
    assert not re.search("Facts", agent.calls[0].messages[1]["content"])
    assert agent.settings["models"] == {}
    assert agent.executor == "direct"
