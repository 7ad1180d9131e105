"""Real users' feedback streams stepped turn by turn: `starec/UserFeedback-v0`."""
