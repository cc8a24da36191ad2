from __future__ import annotations

import gc
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from .both import Aiohttp, Async, Blocking, Flavour

# make fuzz: the same properties, a hundred times as long.
settings.register_profile(
    "long",
    max_examples=100 * settings().max_examples,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def pytest_collection_finish() -> None:
    """What is there before the first test is nobody's garbage, and need not be looked at again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """What a test has left open is told in that test, while its event loop is there."""
    result = yield
    gc.collect()
    return result


@pytest.fixture(params=[Async, Aiohttp, Blocking], ids=["async", "aiohttp", "sync"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    made: Flavour = request.param()
    return made
