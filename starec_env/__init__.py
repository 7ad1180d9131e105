"""The environment."""

import gymnasium

from starec_env.datasets import from_frame, load_dataset, prepare
from starec_env.types import Dataset

__all__ = ["Dataset", "from_frame", "load_dataset", "prepare"]

gymnasium.register(
    "starec/UserFeedback-v0",
    entry_point="starec_env.env:UserFeedbackEnv",
    vector_entry_point="starec_env.vector_env:UserFeedbackVectorEnv",
)
