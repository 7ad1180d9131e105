"""Modules at their names of the first edition: `import starec_env.stream` finds `starec_env.replay.stream`.

Kept for one release, with a DeprecationWarning; then this file goes.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MOVED = {
    "starec_agents.balance": "starec_agents.llm.client",
    "starec_agents.cache": "starec_agents.llm.cache",
    "starec_agents.config": "starec_agents.runs.config",
    "starec_agents.limiter": "starec_agents.llm.pool",
    "starec_agents.lines": "starec_agents.runs.lines",
    "starec_agents.openai_chat": "starec_agents.llm.client",
    "starec_agents.parsing": "starec_agents.tasks",
    "starec_agents.plan": "starec_agents.runs.plan",
    "starec_agents.population": "starec_agents.runs.population",
    "starec_agents.progress": "starec_agents.runs.progress",
    "starec_agents.prompts": "starec_agents.tasks",
    "starec_agents.records": "starec_agents.runs.records",
    "starec_agents.rollout": "starec_agents.runs.rollout",
    "starec_agents.scripted": "starec_agents.llm.scripted",
    "starec_agents.serve": "starec_agents.serving.serve",
    "starec_agents.store": "starec_agents.runs.store",
    "starec_agents.story": "starec_agents.runs.show",
    "starec_agents.titles": "starec_agents.tasks.titles",
    "starec_agents.variants": "starec_agents.graphs",
    "starec_agents.weights": "starec_agents.serving.weights",
    "starec_agents.wire": "starec_agents.llm.wire",
    "starec_agents.workers": "starec_agents.runs.workers",
    "starec_env.datasets": "starec_env.data",
    "starec_env.env": "starec_env.replay.env",
    "starec_env.scoring": "starec_env.replay.rewards",
    "starec_env.spaces": "starec_env.replay.spaces",
    "starec_env.stream": "starec_env.replay.stream",
    "starec_env.vector_env": "starec_env.replay.vector_env",
    "starec_eval.analysis": "starec_eval.report.analysis",
    "starec_eval.cases": "starec_env.cases",
    "starec_eval.figures": "starec_eval.report.figures",
    "starec_eval.memories": "starec_eval.report.memory",
    "starec_eval.baselines": "starec_eval.rankers",
    "starec_eval.llm_rankers": "starec_eval.rankers",
    "starec_eval.methods": "starec_eval.rankers",
    "starec_eval.metrics": "starec_env.metrics",
    "starec_eval.rankers.pairs": "starec_env.pairs",
    "starec_eval.section5": "starec_eval.paper",
    "starec_eval.stories": "starec_eval.report.timelines",
    "starec_eval.told": "starec_eval.report.data",
    "starec_training.blind": "starec_training.rule_teacher",
    "starec_training.evidence": "starec_training.features",
    "starec_training.health": "starec_training.callbacks",
    "starec_training.policy": "starec_training.generation",
    "starec_training.rows": "starec_training.dataset",
    "starec_training.server": "starec_training.vllm_server",
    "starec_training.stage": "starec_training.checkpoints",
}


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if _new_name(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = _new_name(spec.name)
        assert new
        warnings.warn(f"{spec.name} is {new} now", DeprecationWarning, stacklevel=2)
        return import_module(new)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the module was executed under its new name."""


def _new_name(fullname: str) -> str | None:
    for old, new in _MOVED.items():
        if fullname == old or fullname.startswith(f"{old}."):
            return new + fullname.removeprefix(old)
    return None


sys.meta_path.append(_Finder())
