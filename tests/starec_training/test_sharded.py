"""A sharded model is saved whole: two processes on a CPU, sharded by torch where accelerate would on GPUs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support_training import environment

from starec_training.checkpoints import FINAL, load_policy

SHARDED = """
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from starec_env.data.splits import Split
from starec_agents.serving.card import ModelCard
from starec_training.checkpoints import load_policy, save_final

for number, folder in enumerate(sys.argv[2:]):
    model, tokenizer = load_policy(folder)
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.FSDP  # which accelerate sets up on GPUs alone
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    mesh = init_device_mesh("cpu", (2,))
    for part in model.modules():
        if type(part).__name__.endswith("DecoderLayer"):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert any(type(each).__name__ == "DTensor" for each in model.parameters())
    known = [each for each in model.parameters() if each.requires_grad]
    tokens = torch.arange(4, 20)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.optim.SGD(known, lr=0.1).step()
    trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=1, max_steps=1), accelerator=accelerator, model=model, model_wrapped=model,
        is_world_process_zero=lambda: accelerator.is_main_process,
    )
    card = ModelCard(stage="sft", base_model=folder, split=Split(train=(1,), test=()), settings={})
    assert save_final(trainer, tokenizer, Path(sys.argv[1]) / str(number), card)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on the tiny policy, whose second matrices aren't zero."""
    from peft import get_peft_model

    from starec_training.sft import lora

    folder = tmp_path_factory.mktemp("adapter")
    policy, tokenizer = load_policy(tiny)
    made = get_peft_model(policy, lora(4))
    torch.manual_seed(0)
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stepped(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = load_policy(folder)
    tokens = torch.arange(4, 20)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1).step()
    return {name: weight.detach() for name, weight in model.named_parameters()}


def test_a_model_and_an_adapter_sharded_over_two_processes_are_saved_whole(
    tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "sharded.py").write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(tmp_path / "sharded.py"), str(tmp_path), str(tiny), str(adapter)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    for number, folder in enumerate((tiny, adapter)):
        saved, _ = load_policy(tmp_path / str(number) / FINAL)
        wanted, before = stepped(folder), dict(load_policy(folder)[0].named_parameters())
        found = dict(saved.named_parameters())
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)
        assert any(not torch.equal(found[name], before[name]) for name in wanted)
