"""A ReAct graph of LangGraph with the same tools, over chat completions, with streaming.

python examples/agents/lang_graph.py "What is ...?"     (with OPENAI_BASE_URL and OPENAI_API_KEY)
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

MOST_TURNS = 20


def solve(base_url: str, api_key: str, question: str, library: Any, model: str = "policy") -> str:
    """The answer."""

    @tool
    def search(words: str) -> str:
        """Find pages by name."""
        return str(library.search(words))

    @tool
    def visit(page: str) -> str:
        """Read one page."""
        return str(library.visit(page))

    @tool
    def answer(value: str) -> str:
        """Give the answer; ends the episode."""
        return value

    tools = [search, visit, answer]
    llm = ChatOpenAI(model=model, base_url=base_url, api_key=api_key, streaming=True, max_retries=0).bind_tools(tools)

    def think(state: MessagesState) -> dict[str, Any]:
        turn = llm.invoke(state["messages"])
        return {"messages": [turn] if turn.tool_calls else [turn, HumanMessage("Unknown action.")]}

    def after_thinking(state: MessagesState) -> str:
        calls = getattr(state["messages"][-1], "tool_calls", None)
        return "think" if not calls else END if calls[-1]["name"] == "answer" else "act"

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("act", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", after_thinking, ["think", "act", END])
    graph.add_edge("act", "think")
    start = [SystemMessage("You answer questions from documentation."), HumanMessage(question)]
    end = graph.compile().invoke({"messages": start}, {"recursion_limit": 2 * MOST_TURNS})
    return str(next(iter(end["messages"][-1].tool_calls[-1]["args"].values())))


def play(task: dict[str, Any], base_url: str, api_key: str) -> str:
    """One task, as `env.options.call` wants it."""
    from library import library  # noqa: PLC0415 - beside this file

    return solve(base_url, api_key, task["question"], library(task["split"]))


if __name__ == "__main__":
    given = {"question": " ".join(sys.argv[1:]), "split": "dev"} if sys.argv[1:] else json.load(sys.stdin)
    play(given, os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"])
