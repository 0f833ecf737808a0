"""Telecom tickets: the benchmark's own tools and assertions, splits by content, no way around the work."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys

import pytest

from internalize.environments.leakage import TaskView, find_overlap
from internalize.environments.tau2 import tasks as tau2_tasks
from internalize.environments.validate import replay
from internalize.errors import InfrastructureError, TaskError
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Task, ToolCall
from tests.steps import act

pytest.importorskip("inspect_evals", reason="the extra tau2 is not installed")

from internalize.environments.tau2.env import SHORT_POLICY, Tau2
from internalize.environments.tau2.telecom import DONE, TRANSFER, task_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def env() -> Tau2:
    return Tau2("two_faults")


def call(name: str, **arguments: object) -> ToolCall:
    return act(name, json.dumps(arguments))


def with_faults(env: Tau2, *faults: str) -> Task:
    tasks = itertools.chain.from_iterable(env.tasks(split) for split in env.splits())
    return next(task for task in tasks if task.state["faults"] == list(faults))


def test_listing_tasks_imports_nothing_of_the_benchmark() -> None:
    code = (
        "import sys; from internalize.environments.tau2.env import Tau2;"
        "print(len(Tau2().tasks('test')), 'inspect_ai' in sys.modules, 'inspect_evals' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["40", "False", "False"]


@pytest.mark.parametrize("split_by", ["official", "content", "pairs", "count", "family"])
def test_every_task_stands_in_exactly_one_split(split_by: tau2_tasks.SplitBy) -> None:
    whole = Tau2("all", split_by)
    homes = [task.state["tau2_id"] for split in whole.splits() for task in whole.tasks(split)]
    assert sorted(map(str, homes)) == sorted(task_records())
    assert len({task.question for split in whole.splits() for task in whole.tasks(split)}) == 2285


def test_official_splits_are_the_benchmark_s_own() -> None:
    whole = Tau2()
    assert [len(whole.tasks(split)) for split in ("train", "dev", "test")] == [63, 11, 40]


def test_what_is_out_of_distribution_never_stands_in_training() -> None:
    def faults(split_by: tau2_tasks.SplitBy, split: str) -> list[set[str]]:
        return [set(map(str, t.state["faults"])) for t in Tau2("all", split_by).tasks(split)]  # type: ignore[union-attr]

    pairs = tau2_tasks.HELD_OUT_PAIRS
    assert not any(pair <= own for own in faults("pairs", "train") for pair in pairs)
    assert all(any(pair <= own for pair in pairs) for own in faults("pairs", "ood"))
    single = set().union(*pairs)
    assert single <= set().union(*faults("pairs", "train"))  # each fault of a held-out pair is known by itself
    assert max(map(len, faults("count", "train"))) == tau2_tasks.FEW < min(map(len, faults("count", "ood")))
    assert {t.family for t in Tau2("all", "family").tasks("ood")} == {tau2_tasks.HELD_OUT_FAMILY}


def test_small_subsets_are_parts_of_the_whole_with_the_same_places() -> None:
    one, two, whole = (Tau2(subset, "content") for subset in ("one_fault", "two_faults", "all"))
    for split in one.splits():
        ids = [{t.state["tau2_id"] for t in e.tasks(split)} for e in (one, two, whole)]
        assert ids[0] < ids[1] < ids[2]
    assert [len(one.tasks(split)) for split in one.splits()] == [12, 4, 4]


def test_no_tool_sets_up_or_asserts_anything() -> None:
    names = {tool.name for tool in Tau2().tools}
    assert len(names) == 44
    settings = {"set_apn_settings", "set_network_mode_preference"}  # what any user of a phone can do
    hidden = ("break_", "assert_", "turn_", "lock_", "unseat", "simulate", "remove_", "set_", "suspend_line_for")
    assert {name for name in names if name.startswith(hidden)} == settings
    assert {"suspend_line", "resume_line"} <= names


def test_the_references_of_a_sample_score_one(env: Tau2) -> None:
    whole = Tau2()
    tasks = random.Random(0).sample(whole.tasks("rest"), 20)
    assert [replay(whole, task, whole.solve(task)) for task in tasks] == [1.0] * 20
    assert all(replay(env, task, env.solve(task)) == 1.0 for task in env.tasks("dev"))


def test_doing_nothing_wins_no_ticket_not_even_one_to_be_handed_over() -> None:
    whole = Tau2()
    for task in whole.tasks("test"):
        assert replay(whole, task, [call(DONE)]) == 0.0
    assert any(whole.solve(task)[-1].name == TRANSFER for task in whole.tasks("test"))


def test_handing_over_what_can_be_repaired_is_no_success(env: Tau2) -> None:
    task = with_faults(env, "airplane_mode_on")
    assert replay(env, task, [call(TRANSFER, summary="I cannot fix it.")]) == 0.0


def test_the_reward_is_for_the_state_not_for_the_reference_s_wording(env: Tau2) -> None:
    task = with_faults(env, "break_app_both_permissions")
    grants = [call("grant_app_permission", app_name="messaging", permission=p) for p in ("storage", "sms")]
    assert replay(env, task, [call("can_send_mms"), *grants, call("toggle_wifi"), call(DONE)]) == 1.0
    assert replay(env, task, [grants[0], call(DONE)]) == 0.0


def test_what_the_phone_says_changes_with_what_is_done(env: Tau2) -> None:
    episode = env.episode(with_faults(env, "airplane_mode_on"))
    assert "Airplane Mode: ON" in (episode.step(call("check_network_status")) or "")
    assert "Airplane Mode is now OFF" in (episode.step(act("toggle_airplane_mode", "")) or "")
    assert "Airplane Mode: OFF" in (episode.step(call("check_network_status")) or "")
    assert episode.score() == 1.0
    assert episode.step(call(DONE)) is None
    with pytest.raises(InfrastructureError, match="single-use"):
        episode.step(call(DONE))


def test_a_wrong_call_is_answered_and_changes_nothing(env: Tau2) -> None:
    episode = env.episode(with_faults(env, "airplane_mode_on"))
    for action in (
        None,
        call("break_vpn"),
        call("assert_can_send_mms", expected_status=True),
        call("toggle_data", on=True),
        call("enable_roaming", customer_id="C1001"),
        call("enable_roaming", customer_id="nobody", line_id="L1002"),
        call("refuel_data", customer_id="C1001", line_id="L1002", gb_amount="plenty"),
        call("refuel_data", customer_id="C1001", line_id="L1002", gb_amount=10**400),
        call("get_bills_for_customer", customer_id="C1001", limit=float("inf")),
        act("enable_roaming", "C1001, L1002"),
        call("get_details_by_id", id=""),
    ):
        assert (episode.step(action) or "").startswith("Error: ")
    assert "Mobile Data Enabled: Yes" in (episode.step(call("check_network_status")) or "")


def test_arguments_of_one_value_may_come_bare(env: Tau2) -> None:
    wanted = {"app_name": "messaging"}
    turn = TOOL_FORMATS["bracket"].parse("check_app_permissions[messaging]", env.tools)
    assert [call.values for call in turn.tool_calls] == [wanted]


def test_the_same_actions_give_the_same_observations() -> None:
    whole = Tau2(longest=0)
    task = next(t for t in whole.tasks("train") if "data_usage_exceeded" in str(t.state["faults"]))
    actions = [
        *whole.solve(task)[:-1],
        call("get_bills_for_customer", customer_id="C1002"),
        call("get_bills_for_customer", customer_id="C1001"),
    ]
    first, second = ([episode.step(a) for a in actions] for episode in (whole.episode(task), whole.episode(task)))
    assert first == second


def test_observations_are_cut_and_say_so(env: Tau2) -> None:
    short = Tau2("two_faults", longest=100)
    said = short.episode(short.tasks("dev")[0]).step(call("get_customer_by_phone", phone_number="555-123-2002")) or ""
    assert said.endswith("... (cut)")
    assert len(said) == 100 + len("... (cut)")


def test_tickets_of_equal_words_are_told_apart_by_what_can_be_looked_at(env: Tau2) -> None:
    listed = [task for split in env.splits() for task in env.tasks(split)]
    shown = [TaskView(task, env.episode(task).prompt()[1].content, env.solve(task)) for task in listed]
    assert len({one.prompt for one in shown}) < len(shown)
    assert find_overlap(env, shown) == ([], 0)


def test_policies(env: Tau2) -> None:
    task = env.tasks("dev")[0]
    texts = {p: Tau2(policy=p).episode(task).prompt()[0].content for p in ("workflow", "main", "short")}  # type: ignore[arg-type]
    assert texts["workflow"].startswith(texts["main"])
    assert texts["short"] == SHORT_POLICY
    assert "Case" not in env.episode(task).prompt()[1].content  # the number of the hidden start is not shown


@pytest.mark.parametrize(
    "options",
    [{"subset": "few"}, {"split_by": "chance"}, {"policy": "none"}, {"subset": "one_fault", "split_by": "official"}],
)
def test_options_that_make_no_sense_are_refused_by_name(options: dict[str, str]) -> None:
    with pytest.raises(TaskError, match=next(iter(options))):
        Tau2(**options)  # type: ignore[arg-type]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(TaskError, match="no split 'ood'"):
        Tau2().tasks("ood")
