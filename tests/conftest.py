"""What all tests share: the devices present, one seed, one thread, so that tests run side by side do not wait, and fast
paths."""

import pytest
import torch

from dropoutlib.kernels import cpu

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)  # a test passes or fails the same each time, in whatever order they run


@pytest.fixture(autouse=True)
def the_fast_path_begins_early(monkeypatch):
    """The large inputs of tests take it whatever p is; where it pays is for the benchmark to say."""
    monkeypatch.setattr(cpu, "_SMALLEST_IN_TWO_PARTS", cpu._SMALLEST)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param
