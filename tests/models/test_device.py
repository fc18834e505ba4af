"""What float32 means while a probe runs, and that nothing of it stays. No GPU is needed."""

from __future__ import annotations

import pytest
import torch

from pytest_watermark_guard.models.device import computing_in

if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    pytest.skip("this torch has one kind of switch only", allow_module_level=True)

CUDNN = torch.backends.cudnn


def old():
    """The switches that raise where the new ones say what they cannot."""
    found = []
    for read in (torch.get_float32_matmul_precision, lambda: CUDNN.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found


def new():
    parts = torch.backends.cuda.matmul, CUDNN.conv, CUDNN.rnn
    parts += torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
    return [part.fp32_precision for part in parts]


@pytest.fixture(autouse=True)
def as_before():
    before, benchmark = new(), CUDNN.benchmark
    yield
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32, CUDNN.benchmark = True, benchmark
    parts = torch.backends.cuda.matmul, CUDNN.conv, CUDNN.rnn
    parts += torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
    for part, value in zip(parts, before, strict=True):
        part.fp32_precision = value


SETTINGS = {
    "default": lambda: None,
    "old": lambda: torch.set_float32_matmul_precision("medium"),
    "old cudnn": lambda: setattr(CUDNN, "allow_tf32", False),
    "new": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "mixed": lambda: setattr(CUDNN.conv, "fp32_precision", "ieee"),
    "timed": lambda: setattr(CUDNN, "benchmark", True),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_float32_is_exact_and_leaves_no_trace(setting, device):
    SETTINGS[setting]()
    before = old(), new(), CUDNN.benchmark
    with computing_in("float32", torch.device(device)):
        exact = slice(0, 3) if device == "cuda" else slice(3, 5)
        assert set(new()[exact]) == {"ieee"}
        assert not (device == "cuda" and CUDNN.benchmark)
    assert (old(), new(), CUDNN.benchmark) == before


def test_a_model_may_read_the_old_switches():
    torch.set_float32_matmul_precision("high")
    with computing_in("float32", torch.device("cuda")):
        assert old() == ["highest", False]
        with CUDNN.flags(enabled=True):
            pass
