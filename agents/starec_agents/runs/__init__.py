"""Populations of user agents: the plan and settings of a run, its execution, its record on disk and its tables."""
