"""Fixtures shared by both packages' tests, and the rule for tests that need a GPU."""

import os

import pytest
import torch

pytest_plugins = ["tests.checkpoints", "tests.clips", "tests.quickdecode.web"]

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        if os.environ.get("QUICKVIDEO_REQUIRE_GPU") == "1":
            pytest.fail("QUICKVIDEO_REQUIRE_GPU=1, but torch sees no CUDA device")
        pytest.skip("needs a CUDA device")
