"""The environment."""

import gymnasium

gymnasium.register(
    "starec/UserFeedback-v0",
    entry_point="starec_env.env:UserFeedbackEnv",
    vector_entry_point="starec_env.vector_env:UserFeedbackVectorEnv",
)
