"""What the plan says of decoding, beside the peak of a process that does it."""

import pytest

from esolm.model.config import ModelConfig
from esolm.pipeline.plan.decoding import decoding_bytes
from tests.processes import run_python

SCRIPT = r"""
import re, sys, torch
from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig
from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM
length, given, steps, alpha_0 = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
network = EsoLMForMaskedLM(EsoLMConfig(
    vocab_size=4096, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=512, mask_token_id=4095, bos_token_id=0)).eval()
prompt = torch.randint(1, 4000, (1, given)) if given else None
network.generate(prompt, length=length, num_steps=steps, alpha_0=float(alpha_0), seed=0)
# The peak that getrusage tells begins with that of the process which started this one.
print(1024 * int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]))
"""
MODEL = ModelConfig(
    vocab_size=4096, mask_id=4095, hidden_size=128, num_layers=2, num_heads=2, ffn_hidden_size=512
)


@pytest.mark.parametrize(
    ("length", "given", "steps", "alpha_0"),
    [
        pytest.param(8192, 8000, 64, 0.5, marks=pytest.mark.check),
        pytest.param(32768, 0, 64, 1.0, marks=pytest.mark.slow),
        pytest.param(32768, 32000, 64, 0.5, marks=pytest.mark.slow),
        pytest.param(32768, 0, 16, 1.0, marks=pytest.mark.slow),
    ],
)
def test_a_long_text_takes_no_more(length: int, given: int, steps: int, alpha_0: float) -> None:
    """Masks of all its pairs would take 4 GB of 32,768 tokens."""
    done = run_python("-c", SCRIPT, *map(str, (length, given, steps, alpha_0)), timeout=900)
    assert done.returncode == 0, done.stderr
    planned = decoding_bytes(MODEL, length, steps)
    print(f"seen {int(done.stdout) / 1e6:.0f} MB, planned {planned.total / 1e6:.0f} MB")
    assert int(done.stdout) < planned.total
    assert planned.total < 1.5e9
