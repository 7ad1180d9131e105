"""Training the agent: teachers, rows, SFT on a teacher's answers, and GRPO against simulated feedback."""

import starec_env as starec_env  # modules that moved below are found at their old names
