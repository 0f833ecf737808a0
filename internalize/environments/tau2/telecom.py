"""The telecom world of tau2-bench as the package inspect-evals ships it: tasks, policies, tools, states, assertions.

The agent has the ticket and both sets of tools, the phone's and the operator's (the benchmark's solo mode); methods
that set up or assert states are not tools. Importing this module and listing tasks does not import that package, which
takes seconds.
"""

from __future__ import annotations

import copy
import gzip
import inspect
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from internalize.errors import DataError, UserError, first_line
from internalize.records import ToolSpec

DONE = "done"
TRANSFER = "transfer_to_human_agents"
_DOMAIN = Path("tau2", "data", "domains", "telecom")
_TIMED_ID = re.compile(r"B[0-9a-f]{8}")  # bills made during an episode get a random id
_USED = {
    "ChatMessageAssistant": "inspect_ai.model",
    "ToolCall": "inspect_ai.tool",
    "ToolDef": "inspect_ai.tool",
    "ToolError": "inspect_ai.tool",
    "Store": "inspect_ai.util",
    "find_unused_actions": "inspect_evals.tau2.common.scorer",
    "Task": "inspect_evals.tau2.data_model.tasks",
    "TelecomDB": "inspect_evals.tau2.telecom.data_model",
    "Environment": "inspect_evals.tau2.telecom.environment",
    "TelecomAgentTools": "inspect_evals.tau2.telecom.TelecomAgentTools",
    "TelecomUserTools": "inspect_evals.tau2.telecom.TelecomUserTools",
    "all_telecom_agent_tools": "inspect_evals.tau2.telecom.tools",
    "TelecomUserDB": "inspect_evals.tau2.telecom.user_data_model",
    "all_telecom_user_tools": "inspect_evals.tau2.telecom.user_tools",
    "safe_json_dumps": "inspect_evals.tau2.telecom.utils",
}
Json = dict[str, Any]


def data_file(name: str) -> Path:
    """A file of the domain. Raises UserError without the package, DataError for a version without the file."""
    found = find_spec("inspect_evals")
    if found is None or not found.submodule_search_locations:
        raise UserError("the environment 'tau2' needs an extra: pip install 'internalize[tau2]'")
    path = Path(found.submodule_search_locations[0]) / _DOMAIN / name
    if not path.is_file():
        raise DataError(f"{path}: this version of inspect-evals has no such file; install inspect-evals 0.26")
    return path


@cache
def task_records() -> Mapping[str, Json]:
    """Every task as the benchmark wrote it, by its id, in its order."""
    with gzip.open(data_file("tasks.json.gz"), "rt", encoding="utf-8") as file:
        return {record["id"]: record for record in json.load(file)}


@cache
def official_splits() -> Mapping[str, tuple[str, ...]]:
    """Ids of the benchmark's own sets: `train`, `test`, `base` (both), `small` (one fault), `full`."""
    return {name: tuple(ids) for name, ids in json.loads(data_file("split_tasks.json").read_text("utf-8")).items()}


@cache
def policy_text(kind: Literal["workflow", "main"]) -> str:
    """The benchmark's instructions for a solo agent: the company's rules and, for `workflow`, the guide to repairs."""
    main = data_file("main_policy_solo.txt").read_text("utf-8").strip()
    if kind == "main":
        return main
    return f"{main}\n\n{data_file('tech_support_workflow_solo.txt').read_text('utf-8').strip()}"


@cache
def _package() -> SimpleNamespace:
    """The package's names in `_USED`; importing them takes seconds."""
    return SimpleNamespace(**{name: getattr(import_module(module), name) for name, module in _USED.items()})


@cache
def _databases() -> tuple[Any, Any]:
    """The operator's and the phone's data before any fault. They are mutable: copy them before use."""
    package = _package()
    return (
        package.TelecomDB.load(str(data_file("db.toml"))),
        package.TelecomUserDB.load(str(data_file("user_db.toml"))),
    )


@cache
def tool_specs() -> tuple[ToolSpec, ...]:
    """The benchmark's tools for operator and phone, and `done`, by which a solo agent says that it has finished."""
    package = _package()
    specs = []
    for make in (*package.all_telecom_agent_tools, *package.all_telecom_user_tools):
        tool = package.ToolDef(make())
        schema = tool.parameters.model_dump(mode="json", exclude_none=True)
        description = " ".join(str(tool.description).split())
        specs.append(ToolSpec(name=tool.name, argument="", description=description, parameters=schema))
    none: Json = {"type": "object", "properties": {}, "required": []}
    done = "Call this when the ticket is resolved."
    return (*specs, ToolSpec(name=DONE, argument="", description=done, parameters=none))


class World:
    """One phone and its operator, in the state that a task starts from."""

    def __init__(self, record: Json) -> None:
        package = _package()
        operator, phone = (copy.deepcopy(data) for data in _databases())
        store = package.Store()
        self._operator = package.TelecomAgentTools(store=store, db=operator, initialized=True)
        self._phone = package.TelecomUserTools(store=store, db=phone, initialized=True)
        self._both = package.Environment(self._phone, self._operator)
        self._task = package.Task.model_validate(record)
        self._calls: list[Any] = []
        self._bills = 0
        start = self._task.initial_state
        for action in (start.initialization_actions or []) if start else []:
            getattr(self._side(action.env_type), action.func_name)(**action.arguments)
            self._both.sync_tools()

    def _side(self, env_type: str) -> Any:
        return self._phone if env_type == "user" else self._operator

    def call(self, name: str, arguments: Json) -> str:
        """The answer of a tool; for a refused call, a text that starts with "Error:"."""
        package = _package()
        self._calls.append(package.ToolCall(id=str(len(self._calls)), function=name, arguments=arguments))
        if name == TRANSFER:
            return "Transfer successful"
        method = getattr(self._phone if name in _phone_tools() else self._operator, name)
        try:
            answer = method(**_converted(method, arguments))
            self._both.sync_tools()
        except (package.ToolError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            return f"Error: {first_line(error)}"
        self._name_new_bills()
        return answer if isinstance(answer, str) else str(package.safe_json_dumps(answer))

    def repaired(self) -> bool:
        """Whether the task's assertions hold and, if they count, its actions were made."""
        criteria = self._task.evaluation_criteria
        assertions = [
            getattr(self._side(a.env_type), a.func_name)(**a.arguments) == a.assert_value
            for a in criteria.env_assertions or []
        ]
        if not all(assertions) or "ACTION" not in criteria.reward_basis:
            return all(assertions)
        package = _package()  # the agent called the operator's and the phone's tools alike: one log serves for both
        calls = [package.ChatMessageAssistant(content="", tool_calls=list(self._calls))]
        log = SimpleNamespace(messages=calls)
        return not package.find_unused_actions(log, log, self._task)

    def _name_new_bills(self) -> None:
        """Number the bills made since the start, so that the same calls give the same observations."""
        for bill in self._operator.db.bills:
            if _TIMED_ID.fullmatch(bill.bill_id):
                self._bills += 1
                old, bill.bill_id = bill.bill_id, f"BNEW{self._bills}"
                for customer in self._operator.db.customers:
                    customer.bill_ids = [bill.bill_id if i == old else i for i in customer.bill_ids]


@cache
def _phone_tools() -> frozenset[str]:
    package = _package()
    return frozenset(package.ToolDef(make()).name for make in package.all_telecom_user_tools)


def _converted(method: Any, arguments: Json) -> Json:
    """The arguments, with text converted where the tool takes a number. Raises ValueError for text that is none."""
    types = inspect.signature(method).parameters
    kinds = {"float": float, "int": int, float: float, int: int}
    return {
        name: kinds[types[name].annotation](value) if name in types and types[name].annotation in kinds else value
        for name, value in arguments.items()
    }
