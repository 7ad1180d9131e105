"""The closed loop: recommenders act, simulated users answer, recommenders learn from it."""
