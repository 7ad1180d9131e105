"""The environment."""

import gymnasium

from starec_env import _moved as _moved
from starec_env.data import from_frame, load_dataset, prepare
from starec_env.data.spec import DataSpec
from starec_env.types import Dataset

__all__ = ["DataSpec", "Dataset", "from_frame", "load_dataset", "prepare"]

gymnasium.register(
    "starec/UserFeedback-v0",
    entry_point="starec_env.replay.env:UserFeedbackEnv",
    vector_entry_point="starec_env.replay.vector_env:UserFeedbackVectorEnv",
)
gymnasium.register(
    "starec/Recommend-v0",
    entry_point="starec_env.recommend.env:RecommendEnv",
    vector_entry_point="starec_env.recommend.vector_env:RecommendVectorEnv",
)
