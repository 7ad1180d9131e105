"""The agent's two tasks, each a prompt and the formats of its answer: ranking, and updating the memory."""

from starec_agents.tasks.answers import MAX_CHARS as MAX_CHARS
from starec_agents.tasks.answers import split_thought as split_thought
from starec_agents.tasks.answers import thought_of as thought_of
from starec_agents.tasks.prompts import MAX_HISTORY as MAX_HISTORY
from starec_agents.tasks.prompts import MAX_PROFILE as MAX_PROFILE
from starec_agents.tasks.prompts import event_line as event_line
from starec_agents.tasks.prompts import event_of as event_of
from starec_agents.tasks.prompts import nouns_of as nouns_of
from starec_agents.tasks.prompts import start_memory as start_memory
from starec_agents.tasks.prompts import target_position as target_position
from starec_agents.tasks.rank import ANSWER_FORMATS as ANSWER_FORMATS
from starec_agents.tasks.rank import MAX_LINES as MAX_LINES
from starec_agents.tasks.rank import RankingFormat as RankingFormat
from starec_agents.tasks.rank import candidate_lines as candidate_lines
from starec_agents.tasks.rank import labels as labels
from starec_agents.tasks.rank import parse_ranking as parse_ranking
from starec_agents.tasks.rank import rank_messages as rank_messages
from starec_agents.tasks.rank import ranking_format as ranking_format
from starec_agents.tasks.rank import ranking_schema as ranking_schema
from starec_agents.tasks.reflect import Profile as Profile
from starec_agents.tasks.reflect import ProfileFormat as ProfileFormat
from starec_agents.tasks.reflect import parse_profile as parse_profile
from starec_agents.tasks.reflect import profile_format as profile_format
from starec_agents.tasks.reflect import reflect_messages as reflect_messages
from starec_agents.tasks.wording import Prompts as Prompts
