from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Generator, Mapping

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from .both import Aiohttp, Async, Blocking, Flavour

# make fuzz: the same properties, a hundred times as long.
settings.register_profile(
    "long",
    max_examples=100 * settings().max_examples,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The sync client runs in a thread of its own: the loop beside it makes no difference."""
    items[:] = [item for item in items if not {"uvloop", "sync"} <= set(_parameters_of(item))]


def _parameters_of(item: pytest.Item) -> list[str]:
    return item.name.partition("[")[2].rstrip("]").split("-")


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


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
ON_EVERY_LOOP = {
    "test_aiohttp",
    "test_chunks",
    "test_closing",
    "test_faults",
    "test_http2",
    "test_limits",
    "test_load",
    "test_transports",
}
"""The modules whose tests run on each loop: what they ask of it is how it closes."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    del config
    module = item.module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]  # a function's
    return LOOPS if module in ON_EVERY_LOOP else {"asyncio": LOOPS["asyncio"]}


@pytest.fixture(params=[Async, Aiohttp, Blocking], ids=["async", "aiohttp", "sync"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    made: Flavour = request.param()
    return made
