"""What importing the kernels costs, and that the package's name harms no other library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_fresh(code: str) -> str:
    """Output of ``code`` in a fresh interpreter with only the folders of the repository added to its path."""
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'kernels')]!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", ["zoo_kernels", "zoo.mixers"])
def test_import_needs_only_torch_and_asks_no_device(package):
    """``zoo.mixers`` runs ``zoo/__init__.py`` too, so that the promise holds for ``import zoo``."""
    heavy = ("lightning", "pytorch_lightning", "hydra", "omegaconf", "datasets", "wandb", "transformers", "triton")
    found = run_fresh(f"""
import torch
torch.cuda.is_available = torch.cuda.device_count = torch._C._cuda_getDeviceCount = lambda: 1 / 0
before = set(sys.modules)
import {package}
print(*sorted(set(sys.modules) - before))
print(torch.cuda.is_initialized())
""").splitlines()
    assert not [m for m in found[0].split() if m.split(".")[0] in heavy]
    assert found[1] == "False"


def test_transformers_builds_a_model_beside_our_kernels():
    pytest.importorskip("transformers")
    found = run_fresh("""
import zoo_kernels, torch
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
logits = LlamaForCausalLM(config)(torch.zeros(1, 3, dtype=torch.long)).logits
print(tuple(logits.shape), zoo_kernels.__file__)
""")
    assert found.startswith("(1, 3, 32)")
    assert str(ROOT / "kernels") in found
