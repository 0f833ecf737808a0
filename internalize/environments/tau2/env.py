"""Environment `tau2`: support tickets of tau2-bench's telecom domain, solved alone (extra `tau2`).

The agent has the ticket, the user's phone and the operator's systems, finds the faults, repairs them and says `done`,
or hands over to a human. The reward is the benchmark's own: 1.0 if what the task asserts holds (and, for the tickets
that cannot be repaired, if it was handed over). Splits are in tau2_tasks.py, the benchmark itself in telecom.py. Left
out: the dialogue with a simulated user, so scores are not those of the benchmark's leaderboard.
What must not change: set-up and assertion methods are no tools; an observation is cut and says so.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, get_args

from internalize.errors import InfrastructureError, TaskError
from internalize.records import Message, Task, ToolCall, ToolSpec

from . import tasks as tau2_tasks
from .tasks import SplitBy, Subset
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
_LOOKS = (  # the one customer is the same in every ticket; a SIM that is out hides what else is wrong with the phone
    *((n, {}) for n in _EVIDENCE if n.startswith(("check_", "run_", "can_")) and not n.startswith("check_app_")),
    ("check_app_permissions", {"app_name": "messaging"}),
    ("get_details_by_id", {"id": "L1002"}),
    ("get_data_usage", {"customer_id": "C1001", "line_id": "L1002"}),
    ("get_bills_for_customer", {"customer_id": "C1001"}),
    *((n, {}) for n in ("reseat_sim_card", "check_sim_status", "check_apn_settings")),
)


class Tau2Episode:
    """One ticket. Ends with `done` or with the hand-over."""

    def __init__(self, task: Task, env: Tau2) -> None:
        self._env = env
        self._record = task_records()[str(task.state["tau2_id"])]
        self._known = {tool.name: tool for tool in env.tools}
        self._world = World(self._record)
        self._over = False

    def prompt(self) -> tuple[Message, ...]:
        """The policy and the ticket."""
        system = SHORT_POLICY if self._env.policy == "short" else policy_text(self._env.policy)
        return (Message(role="system", content=system), Message(role="user", content=self._record["ticket"]))

    def step(self, action: ToolCall | None) -> str | None:
        """What the tool says, cut to the environment's longest; None after `done` or the hand-over."""
        if self._over:
            raise InfrastructureError("tau2: the episode is over; episodes are single-use")
        if action is None or action.name not in self._known:
            return "Error: no such call."
        arguments = arguments_of(action, self._known[action.name])
        if isinstance(arguments, str):
            return arguments
        if action.name == DONE:
            self._over = True
            return None
        said = self._world.call(action.name, arguments)
        self._over = action.name == TRANSFER
        return None if self._over else _cut(said, self._env.longest)

    def score(self) -> float:
        """1.0 if what the benchmark asserts holds now."""
        return float(self._world.repaired())


class Tau2:
    """The environment.

    `subset`: all, two_faults (at most two) or one_fault. `split_by`: see tau2_tasks.py ("" = official for all, else
    content). `policy`: workflow (the benchmark's rules and its guide to repairs), main (the rules alone: the guide is
    left to experience) or short (a few sentences of ours). `longest`: characters of an observation, 0 = all. The small
    subsets take short texts and 31 of 44 tools, without descriptions, unless told otherwise.
    """

    name = "tau2"
    evidence_actions = frozenset(_EVIDENCE)
    final_actions = frozenset({DONE, TRANSFER})

    def __init__(
        self,
        subset: Subset = "all",
        split_by: SplitBy | Literal[""] = "",
        policy: Policy | Literal[""] = "",
        longest: int | None = None,
    ) -> None:
        small = subset != "all"
        self.subset = _one_of("subset", subset, Subset)
        self.split_by = _one_of("split_by", split_by or ("content" if small else "official"), SplitBy)
        self.policy = _one_of("policy", policy or ("short" if small else "workflow"), Policy)
        self.longest = longest if longest is not None else SHORT_LONGEST if small else LONGEST
        if self.longest < 0:
            raise TaskError(f"tau2: longest = {longest}; 0 is no limit")
        if small and self.split_by != "content":
            raise TaskError(
                f"tau2: subset = {subset!r} is too small for split_by = {split_by!r}; it has 'content' alone"
            )

    @cached_property
    def tools(self) -> tuple[ToolSpec, ...]:
        """What can be called; importing the benchmark takes seconds."""
        if self.subset == "all":
            return tool_specs()
        return tuple(tool.model_copy(update={"description": ""}) for tool in tool_specs() if tool.name in _SHORT_TOOLS)

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tau2_tasks.split_names(self.split_by)

    def tasks(self, split: str) -> tuple[Task, ...]:
        """Tasks of `split` in a fixed order. Raises TaskError for an unknown split."""
        if split not in self.splits():
            raise TaskError(f"tau2: no split {split!r} (there are {', '.join(self.splits())})")
        return tau2_tasks.tasks(self.subset, self.split_by, split)

    def episode(self, task: Task) -> Tau2Episode:
        """A fresh phone and operator."""
        return Tau2Episode(task, self)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The benchmark's own repairs, without any diagnosis, then `done` unless they end with the hand-over."""
        gold = task_records()[str(task.state["tau2_id"])]["evaluation_criteria"]["actions"] or []
        actions = [ToolCall.of(a["name"], **a["arguments"]) for a in gold]
        return tuple(actions if actions and actions[-1].name == TRANSFER else [*actions, ToolCall.of(DONE)])

    def looks(self, task: Task) -> tuple[ToolCall, ...]:
        """What tells a ticket from others: everything that can be looked at, then the repairs."""
        known = {tool.name for tool in self.tools}
        looked = [ToolCall.of(name, **given) for name, given in _LOOKS if name in known]
        return (*looked, *self.solve(task))


def arguments_of(action: ToolCall, tool: ToolSpec) -> dict[str, Any] | str:
    """The arguments of a call, or what is wrong with them."""
    schema = tool.parameters or {}
    known, held = schema.get("properties"), action.values
    names = list(known) if isinstance(known, dict) else []
    required = schema.get("required")
    missing = [name for name in (required if isinstance(required, list) else []) if name not in held]
    unknown = [name for name in held if name not in names]
    if missing or unknown:
        what = f"missing {missing[0]}" if missing else f"unknown {unknown[0]}"
        return f"Error: {action.name} takes {', '.join(names) or 'no arguments'} ({what})."
    return held


def _cut(text: str, longest: int) -> str:
    return text if not longest or len(text) <= longest else f"{text[:longest]}... (cut)"


def _one_of(option: str, value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise TaskError(f"tau2: {option} = {value!r}; there are {', '.join(get_args(choices))}")
    return value
