"""A scripted support agent for `tau2` that looks before it repairs: what the warm-up imitates.

The benchmark's own reference repairs blindly (it knows the faults), so it teaches nothing about when to do what. This
one sees only what the tools say. It follows the benchmark's repair guide, in an order that needs few calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator

from pydantic import JsonValue

from internalize.records import ToolCall

Talk = Generator[ToolCall, str, None]  # gives actions, is sent observations
TODAY = "2025-02-25"
APP = "messaging"


def call(name: str, **arguments: JsonValue) -> ToolCall:
    return ToolCall.of(name, **arguments)


def expert(ticket: str) -> Talk:
    """Repair what the ticket is about. Ends after `done` or the hand-over."""
    abroad = "abroad" in ticket
    if "MMS" in ticket:
        yield from _mms(ticket, abroad=abroad)
    elif "speed test" in ticket:
        yield from _data(ticket, abroad=abroad)
    else:
        yield from _service(ticket)


def _service(ticket: str) -> Talk:
    seen = yield from _radio()
    if "locked" in seen:
        yield call("transfer_to_human_agents", summary="The SIM card is locked.")
        return
    if "no_service" in seen:
        if "broken" in (yield call("check_apn_settings")):
            yield call("reset_apn_settings")
            yield call("reboot_device")
            seen = yield call("check_network_status")
        if "no_service" in seen:
            ended = yield from _suspension(ticket)
            if ended:
                yield call("transfer_to_human_agents", summary="The contract of the line has ended.")
                return
    yield call("done")


def _radio() -> Generator[ToolCall, str, str]:
    """Airplane mode and SIM; the last network status."""
    seen = yield call("check_network_status")
    repaired = False
    if "Airplane Mode: ON" in seen:
        yield call("toggle_airplane_mode")
        repaired = True
    if "SIM Card Status: missing" in seen:
        yield call("reseat_sim_card")
        repaired = True
    return (yield call("check_network_status")) if repaired else seen


def _suspension(ticket: str) -> Generator[ToolCall, str, bool]:
    """Whether the line is suspended for good; pays and resumes it if not."""
    customer, line = yield from _line(ticket)
    if line.get("status") != "Suspended":
        return False
    if str(line.get("contract_end_date") or "9") < TODAY:
        return True
    for bill in reversed(_texts(customer["bill_ids"])):
        if '"status": "Overdue"' in (yield call("get_details_by_id", id=bill)):
            yield call("send_payment_request", customer_id=customer["customer_id"], bill_id=bill)
            yield call("make_payment")
            break
    yield call("resume_line", customer_id=customer["customer_id"], line_id=line["line_id"])
    yield call("reboot_device")
    return False


def _line(ticket: str) -> Generator[ToolCall, str, tuple[dict[str, JsonValue], dict[str, JsonValue]]]:
    """The customer and the line of the ticket's phone number."""
    number = re.findall(r"\d{3}-\d{3}-\d{4}", ticket)[0]
    customer = _object((yield call("get_customer_by_phone", phone_number=number)))
    likely = sorted(_texts(customer["line_ids"]), key=lambda line: line[-1] != number[-1])
    for name in likely:
        line = _object((yield call("get_details_by_id", id=name)))
        if line.get("phone_number") == number:
            return customer, line
    return customer, {}


def _connection(ticket: str, *, abroad: bool) -> Talk:
    """Until mobile data works at all."""
    seen = yield from _radio()
    if "Mobile Data Enabled: No" in seen:
        yield call("toggle_data")
    if abroad and "Data Roaming Enabled: No" in seen:
        yield call("toggle_roaming")
    if "No Connection" in (yield call("run_speed_test")):
        customer, line = yield from _line(ticket)
        own = {"customer_id": customer["customer_id"], "line_id": line["line_id"]}
        if abroad and not line["roaming_enabled"]:
            yield call("enable_roaming", **own)
        usage = _object((yield call("get_data_usage", **own)))
        if _gigabytes(usage, "data_used_gb") > _gigabytes(usage, "data_limit_gb", "data_refueling_gb"):
            yield call("refuel_data", **own, gb_amount=2.0)


def _data(ticket: str, *, abroad: bool) -> Talk:
    yield from _connection(ticket, abroad=abroad)
    for look, fault, repair in (
        ("check_data_restriction_status", "is ON", call("toggle_data_saver_mode")),
        ("check_network_mode_preference", "2g_only", call("set_network_mode_preference", mode="4g_5g_preferred")),
        ("check_vpn_status", "VPN is ON", call("disconnect_vpn")),
    ):
        if fault in (yield call(look)):
            yield repair
    yield call("done")


def _mms(ticket: str, *, abroad: bool) -> Talk:
    yield from _connection(ticket, abroad=abroad)
    if "2g_only" in (yield call("check_network_mode_preference")):
        yield call("set_network_mode_preference", mode="4g_5g_preferred")
    if "turned ON" in (yield call("check_wifi_calling_status")):
        yield call("toggle_wifi_calling")
    allowed = yield call("check_app_permissions", app_name=APP)
    for permission in ("sms", "storage"):
        if permission not in allowed:
            yield call("grant_app_permission", app_name=APP, permission=permission)
    if "Not Set" in (yield call("check_apn_settings")):
        yield call("reset_apn_settings")
        yield call("reboot_device")
    yield call("done")


def play(ticket: str, step: Callable[[ToolCall], str | None]) -> Iterator[tuple[ToolCall, str | None]]:
    """Let the expert work with `step`; each action with what came of it."""
    talk = expert(ticket)
    action = next(talk, None)
    while action is not None:
        seen = step(action)
        yield action, seen
        try:
            action = None if seen is None else talk.send(seen)
        except StopIteration:
            action = None


def _object(text: str) -> dict[str, JsonValue]:
    return dict(json.loads(text))


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _gigabytes(usage: dict[str, JsonValue], *names: str) -> float:
    return sum(float(str(usage[name])) for name in names)
