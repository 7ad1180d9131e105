"""TRL under FSDP2: SFT and GRPO by two processes on a CPU, stopped, resumed and saved whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support_training import environment, logged

from starec_training.checkpoints import load_policy
from starec_training.dataset import Rows, write_rows
from starec_training.sft import lora, paper_sft, train_sft

pytestmark = pytest.mark.reproduce

FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}  # fmt: skip
"""What `accelerate launch` makes of starec/recipes/fsdp.yaml, in float32."""

SETTINGS = {
    "max_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "save_steps": 1, "logging_steps": 1,
    "bf16": False, "report_to": "none", "disable_tqdm": True,
}  # fmt: skip

SHARDED = f"""
import sys
from pathlib import Path

import accelerate.state
from accelerate.utils import DistributedType

made = accelerate.state.AcceleratorState.__init__

def on_a_cpu_too(self, *args, **options):
    # accelerate keeps FSDP to GPUs by a list of kinds of processes, and runs whole copies elsewhere, without a word.
    made(self, *args, **options)
    plugin = options.get("fsdp_plugin") or self.__dict__.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin

accelerate.state.AcceleratorState.__init__ = on_a_cpu_too

import torch
from starec_training import checkpoints, grpo, sft
from starec_training.dataset import Rows, read_rows

save = checkpoints.save_final

def seen(trainer, *rest):
    assert any(type(weight).__name__ == "DTensor" for weight in trainer.model.parameters())
    return save(trainer, *rest)

sft.save_final = grpo.save_final = seen
out, tiny = map(Path, sys.argv[1:])
rows = Rows(read_rows(out / "rows.jsonl"))
for name, adapter in (("whole", None), ("adapter", sft.lora(4))):
    config = sft.paper_sft(output_dir=str(out / name), per_device_train_batch_size=2, **{SETTINGS})
    assert sft.train_sft(tiny, rows, config, adapter=adapter, minutes=0) is None
    assert sft.train_sft(tiny, rows, config, adapter=adapter) == out / name / "final"
config = grpo.paper_grpo(
    output_dir=str(out / "grpo"), num_generations=4, per_device_train_batch_size=4, gradient_accumulation_steps=1,
    max_completion_length=8, beta=0.01, **{SETTINGS},
)
ranked = Rows([row for row in rows if row.task == "rank"])

def paid(completions, **trl):
    return [float(len(completion[-1]["content"])) for completion in completions]

options = {{"reward": "none", "reward_funcs": [paid], "refill": 1}}
assert grpo.train_grpo(out / "whole" / "final", ranked, config, **options) == out / "grpo" / "final"
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def sharded(tiny: Path, taught: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes trained: a whole model, an adapter, and the whole model by GRPO."""
    out = tmp_path_factory.mktemp("sharded")
    write_rows(out / "rows.jsonl", taught)
    (out / "sharded.py").write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(out / "sharded.py"), str(out), str(tiny)]
    done = subprocess.run(command, env=environment() | FSDP, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in load_policy(folder)[0].named_parameters()}


@pytest.mark.parametrize("name", ["whole", "adapter"])
def test_a_sharded_sft_that_was_stopped_ends_at_the_weights_of_an_unsharded_one(
    sharded: Path, tiny: Path, taught: Rows, tmp_path: Path, name: str
) -> None:
    config = paper_sft(output_dir=str(tmp_path), per_device_train_batch_size=4, **SETTINGS)
    final = train_sft(tiny, taught, config, adapter=lora(4) if name == "adapter" else None)
    assert final is not None
    wanted, found = weights(final), weights(sharded / name / "final")
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[key], wanted[key], atol=1e-4) for key in wanted)
    if name == "whole":
        before = weights(tiny)
        assert all(not torch.allclose(found[key], before[key], atol=1e-3) for key in wanted)


def test_a_sharded_grpo_steps_from_its_anchor_and_saves_a_model_that_loads(sharded: Path) -> None:
    kl = logged(sharded / "grpo", "kl")
    assert kl[0] == 0.0 < kl[1]
    start, found = weights(sharded / "whole" / "final"), weights(sharded / "grpo" / "final")
    assert found.keys() == start.keys()
    assert any(not torch.equal(found[key], start[key]) for key in start)
