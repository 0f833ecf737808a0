"""Environment `tau2`: support tickets of tau2-bench's telecom domain, solved alone (extra `tau2`).

The agent has the ticket, the user's phone and the operator's systems, finds the faults, repairs them and calls `done`,
or hands over to a human. The reward is the benchmark's own: 1.0 if the task's assertions hold (and, for the tickets
that cannot be repaired, if they were handed over). There is no dialogue with a simulated user, so scores are not
comparable with the benchmark's leaderboard. Splits are in tasks.py, the benchmark itself is in telecom.py.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from internalize.environments.base import SingleUseEpisode, SplitTasks, checked
from internalize.errors import TaskError
from internalize.records import Task, ToolCall, ToolSpec

from .tasks import SplitBy, Subset, tasks_by_split
from .telecom import DONE, TRANSFER, World, policy_text, task_records, tool_specs

Policy = Literal["workflow", "main", "short"]
LONGEST = 1200  # characters of an observation; 0 = no limit
SHORT_LONGEST = 640
SHORT_POLICY = (
    "You are a telecom support agent. You have the user's phone and the operator's systems at hand. Look for what is "
    "wrong, repair it, look again, then call done. Make one call at a time. Hand over to a human only what you cannot "
    "repair: a locked SIM, or a line suspended because its contract ended."
)
_SHORT_TOOLS = (
    "check_network_status", "check_sim_status", "check_apn_settings", "check_data_restriction_status",
    "check_network_mode_preference", "check_vpn_status", "check_wifi_calling_status", "check_app_permissions",
    "run_speed_test", "can_send_mms", "get_customer_by_phone", "get_details_by_id", "get_data_usage",
    "toggle_airplane_mode", "toggle_data", "toggle_roaming", "toggle_data_saver_mode", "toggle_wifi_calling",
    "reseat_sim_card", "reset_apn_settings", "set_network_mode_preference", "disconnect_vpn", "grant_app_permission",
    "reboot_device", "enable_roaming", "refuel_data", "send_payment_request", "make_payment", "resume_line",
    TRANSFER, DONE,
)  # fmt: skip
_EVIDENCE = (
    *(name for name in _SHORT_TOOLS if name.startswith(("check_", "get_", "run_", "can_"))),
    "check_status_bar", "check_wifi_status", "check_installed_apps", "check_app_status", "check_payment_request",
    "get_customer_by_id", "get_customer_by_name", "get_bills_for_customer",
)  # fmt: skip
_LOOKS = (  # the customer is the same in every ticket; a missing SIM hides the phone's other faults
    *((n, {}) for n in _EVIDENCE if n.startswith(("check_", "run_", "can_")) and not n.startswith("check_app_")),
    ("check_app_permissions", {"app_name": "messaging"}),
    ("get_details_by_id", {"id": "L1002"}),
    ("get_data_usage", {"customer_id": "C1001", "line_id": "L1002"}),
    ("get_bills_for_customer", {"customer_id": "C1001"}),
    *((n, {}) for n in ("reseat_sim_card", "check_sim_status", "check_apn_settings")),
)


class Tau2Episode(SingleUseEpisode):
    """One ticket. Ends with `done` or with the hand-over."""

    def __init__(self, task: Task, env: Tau2) -> None:
        self._record = task_records()[str(task.state["tau2_id"])]
        system = SHORT_POLICY if env.policy == "short" else policy_text(env.policy)
        super().__init__("tau2", system, self._record["ticket"])
        self._longest = env.longest
        self._tools = {tool.name: tool for tool in env.tools}
        self._world = World(self._record)

    def observe(self, call: ToolCall | None) -> str | None:
        """What the tool answers, cut to the environment's longest; None after `done` or the hand-over."""
        if call is None or call.name not in self._tools:
            return "Error: no such call."
        if problem := argument_problem(call, self._tools[call.name]):
            return problem
        if call.name == DONE:
            return None
        observation = self._world.call(call.name, call.values)
        if call.name == TRANSFER:
            return None
        cut = self._longest and len(observation) > self._longest
        return f"{observation[: self._longest]}... (cut)" if cut else observation

    def score(self) -> float:
        """1.0 if the benchmark's assertions hold now."""
        return float(self._world.repaired())


class Tau2(SplitTasks):
    """The environment.

    `subset`: all, two_faults (at most two) or one_fault. `split_by`: see tasks.py ("" = official for all, else
    content). `policy`: workflow (the benchmark's rules and its guide to repairs), main (the rules alone: the guide is
    left to experience) or short (a few sentences of ours). `longest`: characters of an observation, 0 = all. The small
    subsets default to the short policy and shorter observations, and offer 31 of 44 tools, without descriptions.
    """

    name = "tau2"
    evidence_actions = frozenset(_EVIDENCE)
    final_actions = frozenset({DONE, TRANSFER})

    @checked
    def __init__(
        self,
        subset: Subset = "all",
        split_by: SplitBy | Literal[""] = "",
        policy: Policy | Literal[""] = "",
        longest: Annotated[int, Field(ge=0)] | None = None,
    ) -> None:
        small = subset != "all"
        self.subset: Subset = subset
        self.split_by: SplitBy = split_by or ("content" if small else "official")
        self.policy: Policy = policy or ("short" if small else "workflow")
        self.longest = longest if longest is not None else SHORT_LONGEST if small else LONGEST
        if small and self.split_by != "content":
            raise TaskError(
                f"tau2: subset = {subset!r} is too small for split_by = {split_by!r}; it has 'content' alone"
            )

    @cached_property
    def tools(self) -> tuple[ToolSpec, ...]:
        """The tools; a property, because importing the benchmark takes seconds."""
        if self.subset == "all":
            return tool_specs()
        return tuple(tool.model_copy(update={"description": ""}) for tool in tool_specs() if tool.name in _SHORT_TOOLS)

    @cached_property
    def _tasks(self) -> dict[str, tuple[Task, ...]]:  # type: ignore[override] # made when they are first asked for
        return tasks_by_split(self.subset, self.split_by)

    def episode(self, task: Task) -> Tau2Episode:
        """A fresh phone and operator."""
        return Tau2Episode(task, self)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The benchmark's own repairs, without any diagnosis, then `done` unless they end with the hand-over."""
        repairs = task_records()[str(task.state["tau2_id"])]["evaluation_criteria"]["actions"] or []
        calls = [ToolCall.of(repair["name"], **repair["arguments"]) for repair in repairs]
        return tuple(calls if calls and calls[-1].name == TRANSFER else [*calls, ToolCall.of(DONE)])

    def looks(self, task: Task) -> tuple[ToolCall, ...]:
        """Calls that distinguish tickets: everything that can be inspected, then the repairs."""
        names = {tool.name for tool in self.tools}
        looks = [ToolCall.of(name, **arguments) for name, arguments in _LOOKS if name in names]
        return (*looks, *self.solve(task))


def argument_problem(call: ToolCall, tool: ToolSpec) -> str:
    """What is wrong with the arguments of a call, or ""."""
    schema: dict[str, Any] = tool.parameters or {}
    names, arguments = schema.get("properties") or {}, call.values
    missing = [f"missing {name}" for name in schema.get("required") or [] if name not in arguments]
    unknown = [f"unknown {name}" for name in arguments if name not in names]
    if not missing and not unknown:
        return ""
    return f"Error: {call.name} takes {', '.join(names) or 'no arguments'} ({(missing + unknown)[0]})."
