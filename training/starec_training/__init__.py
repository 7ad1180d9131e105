"""Training the agent: teachers, rows, SFT on a teacher's answers, and GRPO against simulated feedback."""
