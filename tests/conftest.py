"""What all tests share: the devices present, one seed, and one thread, so that tests run side by side do not wait."""

import pytest
import torch

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


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param
