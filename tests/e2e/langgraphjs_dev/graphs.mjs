// The graphs of ../langgraph_dev/graphs.py for `langgraphjs dev`; they need no model either.
import { FakeListChatModel } from "@langchain/core/utils/testing";
import {
  Annotation,
  END,
  MessagesAnnotation,
  Send,
  START,
  StateGraph,
  interrupt,
} from "@langchain/langgraph";

const appended = () =>
  Annotation({ reducer: (before, more) => before.concat(more), default: () => [] });
const model = new FakeListChatModel({ responses: ["Hello from a fake model"] });

const AgentState = Annotation.Root({ ...MessagesAnnotation.spec, steps: appended() });

async function prepare(_state, config) {
  config.writer?.({ progress: 0, note: "préparation — ✓" });
  config.writer?.({ progress: 100 });
  return { steps: ["prepare"] };
}

async function answer(state) {
  return { messages: [await model.invoke(state.messages)], steps: ["model"] };
}

export const agent = new StateGraph(AgentState)
  .addNode("prepare", prepare)
  .addNode("model", answer)
  .addEdge(START, "prepare")
  .addEdge("prepare", "model")
  .addEdge("model", END)
  .compile();

const HitlState = Annotation.Root({
  topic: Annotation(),
  parallel: Annotation(),
  answers: appended(),
});

const ask = (state) => ({ answers: [interrupt({ question: `Approve ${state.topic}?` })] });
const askOne = ({ about }) => ({ answers: [{ [about]: interrupt({ question: about }) }] });
const route = (state) =>
  state.parallel ? ["first?", "second?"].map((about) => new Send("askOne", { about })) : "ask";

export const hitl = new StateGraph(HitlState)
  .addNode("ask", ask)
  .addNode("askOne", askOne)
  .addConditionalEdges(START, route, ["ask", "askOne"])
  .addEdge("ask", END)
  .addEdge("askOne", END)
  .compile();

const Counted = Annotation.Root({
  n: Annotation(),
  interval: Annotation(),
  ticks: Annotation(),
});

function bad() {
  throw new Error("boom: this node always fails");
}

export const fail = new StateGraph(Counted)
  .addNode("good", () => ({ ticks: 1 }))
  .addNode("bad", bad)
  .addEdge(START, "good")
  .addEdge("good", "bad")
  .addEdge("bad", END)
  .compile();

async function tick(state, config) {
  const ticks = (state.ticks ?? 0) + 1;
  config.writer?.({ tick: ticks });
  await new Promise((done) => setTimeout(done, (state.interval ?? 0.5) * 1000));
  return { ticks };
}

export const slow = new StateGraph(Counted)
  .addNode("tick", tick)
  .addEdge(START, "tick")
  .addConditionalEdges("tick", (s) => (s.ticks < (s.n ?? 5) ? "tick" : END), ["tick", END])
  .compile();

export const echo = new StateGraph(Annotation.Root({ text: Annotation(), echoed: Annotation() }))
  .addNode("repeat", (state) => ({ echoed: state.text }))
  .addEdge(START, "repeat")
  .addEdge("repeat", END)
  .compile();
