"""What all tests share: one thread, no network, the folder of shared reference data."""

import os
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", OMP_NUM_THREADS="1")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    if "ANTICUSTOM_SHARED" not in os.environ:
        pytest.skip("ANTICUSTOM_SHARED does not name the folder of reference data")
    return Path(os.environ["ANTICUSTOM_SHARED"]).resolve()


@pytest.fixture(scope="session")
def conf() -> str:
    return str(ROOT / "conf")
