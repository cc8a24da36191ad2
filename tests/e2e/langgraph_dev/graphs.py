"""Graphs for `langgraph dev` and aegra that need no model: each shows one thing on the wire."""

import asyncio
import operator
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send, interrupt


def replies() -> Iterator[AIMessage]:
    while True:  # a new object each time: the graph gives it its id
        yield AIMessage(content="Hello from a fake model")


model = GenericFakeChatModel(messages=replies())


class AgentState(MessagesState):
    steps: Annotated[list[str], operator.add]


async def prepare(state: AgentState) -> dict[str, Any]:
    write = get_stream_writer()
    write({"progress": 0, "note": "préparation — ✓"})
    write({"progress": 100})
    return {"steps": ["prepare"]}


async def answer(state: AgentState) -> dict[str, Any]:
    return {"messages": [await model.ainvoke(state["messages"])], "steps": ["model"]}


agent = (
    StateGraph(AgentState)
    .add_sequence([("prepare", prepare), ("model", answer)])
    .add_edge(START, "prepare")
    .compile()
)


class HitlState(TypedDict, total=False):
    topic: str
    parallel: bool
    answers: Annotated[list[Any], operator.add]


def ask(state: HitlState) -> dict[str, Any]:
    return {"answers": [interrupt({"question": f"Approve {state.get('topic')}?"})]}


def ask_one(state: dict[str, str]) -> dict[str, Any]:
    return {"answers": [{state["about"]: interrupt({"question": state["about"]})}]}


def route(state: HitlState) -> str | list[Send]:
    if state.get("parallel"):
        return [Send("ask_one", {"about": about}) for about in ("first?", "second?")]
    return "ask"


hitl = (
    StateGraph(HitlState)
    .add_node("ask", ask)
    .add_node("ask_one", ask_one)
    .add_conditional_edges(START, route, ["ask", "ask_one"])
    .compile()
)


class Counted(TypedDict, total=False):
    n: int
    interval: float
    ticks: int


def good(state: Counted) -> dict[str, Any]:
    return {"ticks": 1}


def bad(state: Counted) -> dict[str, Any]:
    raise ValueError("boom: this node always fails")


fail = (
    StateGraph(Counted)
    .add_sequence([("good", good), ("bad", bad)])
    .add_edge(START, "good")
    .compile()
)


async def tick(state: Counted) -> dict[str, Any]:
    ticks = state.get("ticks", 0) + 1
    get_stream_writer()({"tick": ticks})
    await asyncio.sleep(state.get("interval", 0.5))
    return {"ticks": ticks}


def again(state: Counted) -> str:
    return "tick" if state["ticks"] < state.get("n", 5) else END


slow = (
    StateGraph(Counted)
    .add_node("tick", tick)
    .add_edge(START, "tick")
    .add_conditional_edges("tick", again, ["tick", END])
    .compile()
)


class EchoState(TypedDict, total=False):
    text: Any
    echoed: Any


def repeat(state: EchoState) -> dict[str, Any]:
    return {"echoed": state.get("text")}


echo = StateGraph(EchoState).add_node("repeat", repeat).add_edge(START, "repeat").compile()


class Trail(TypedDict, total=False):
    trail: Annotated[list[str], operator.add]


def step(state: Trail) -> dict[str, Any]:
    return {"trail": ["child"]}


child = StateGraph(Trail).add_node("step", step).add_edge(START, "step").compile()
nested = StateGraph(Trail).add_node("child", child).add_edge(START, "child").compile()
