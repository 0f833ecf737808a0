"""Whether real files and servers of others are read without loss: trajectories, sites of documentation, MCP servers.

    python -m benchmarks.real_files --trajectories FOLDER           .traj files of SWE-agent
    python -m benchmarks.real_files --site FOLDER --site FOLDER     HTML as Sphinx or MkDocs write it
    python -m benchmarks.real_files --mcp 'python -m mcp_server_time' --value time=10:30

Trajectories: every word of a message of the file stands in its trajectory, and every turn is a step. Sites: every word
that BeautifulSoup finds outside of navigation, scripts and heads stands in the page as it is read, and every link to a
file of the site is one of its links. Servers: every tool is offered, a call of it is written and read back in each tool
format, and, with arguments made up from its schema (or given by --value), gets an observation; an error of the tool is
one too.

With --errors what was lost is listed.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import click

from internalize.environments.mcp.env import Mcp
from internalize.environments.site import HTML, Site
from internalize.errors import InfrastructureError
from internalize.formats.reading import Reading, Session
from internalize.formats.survey import Survey
from internalize.inference import tool_schema
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import ToolCall, ToolSpec, Trajectory

_WORD = re.compile(r"\w+")
_INLINE = re.compile(
    "a|abbr|b|bd[io]|big|cite|code|data|del|dfn|em|font|i|ins|kbd|label|mark|q|s|samp|small|span|strike|strong|su[bp]|"
    "time|tt|u|var|wbr"
)
Lost = list[str]


def words(*texts: str) -> Counter[str]:
    return Counter(word for text in texts for word in _WORD.findall(text))


# -- trajectories --------------------------------------------------------------------------------------------------


def trajectories(folder: Path) -> tuple[str, Lost]:
    """Every .traj file below `folder` against what is read of it."""
    counts: Counter[str] = Counter()
    lost: Lost = []
    for file in sorted(folder.rglob("*.traj")):
        history = json.loads(file.read_text(encoding="utf-8"))["history"]
        found = list(Survey(Session(Reading())).trajectories((file,), "auto"))
        counts.update(files=1, trajectories=len(found), turns=sum(m["role"] == "assistant" for m in history))
        counts.update(steps=sum(len(t.steps) for t in found), calls=sum(len(s.calls) for t in found for s in t.steps))
        said = words(*(_content(message) for message in history))
        missing = said - words(*(text for t in found for text in _texts(t)))
        counts.update(words=said.total(), lost=missing.total())
        lost += [f"{file}: {', '.join(missing)}"] if missing else []
    return ", ".join(f"{count} {name}" for name, count in counts.items()), lost


def _content(message: Mapping[str, Any]) -> str:
    content = message["content"]
    parts = content if isinstance(content, list) else [{"text": content}]
    calls = (call["function"]["arguments"] for call in message.get("tool_calls") or ())
    return "\n".join([*(str(part.get("text") or "") for part in parts), *map(str, calls)])


def _texts(trajectory: Trajectory) -> Iterator[str]:
    yield from (message.text for message in trajectory.prompt)
    for step in trajectory.steps:
        yield step.message.text
        yield from (call.arguments for call in step.calls)
        yield from (result.text for result in step.results)


# -- sites ---------------------------------------------------------------------------------------------------------


def site(folder: Path) -> tuple[str, Lost]:
    """Every HTML page of a folder against what BeautifulSoup finds in it."""
    counts: Counter[str] = Counter()
    lost: Lost = []
    found = Site(folder)
    for path, page in found.pages.items():
        if not path.lower().endswith(HTML):
            continue
        said, targets = reference(folder, path)
        missing, unlinked = said - words(page.text), targets - {address for _, address in page.links}
        counts.update(pages=1, equal=int(not missing), words=said.total(), lost=missing.total())
        counts.update(links=len(targets), unlinked=len(unlinked), damaged=page.text.count("\ufffd"))
        lost += [f"{path}: {', '.join([*missing, *unlinked])}"] if missing or unlinked else []
    return ", ".join(f"{count} {name}" for name, count in counts.items()), lost


def reference(folder: Path, path: str) -> tuple[Counter[str], set[str]]:
    """The words of a page, and the files of the folder that it links to."""
    from bs4 import BeautifulSoup  # noqa: PLC0415 - only for sites

    soup = BeautifulSoup((folder / path).read_bytes(), "html.parser")
    links = (urldefrag(urljoin(f"file:///{path}", str(link["href"])))[0] for link in soup.find_all("a", href=True))
    targets = {
        unquote(link.removeprefix("file:///").partition("?")[0]) for link in links if link.startswith("file:///")
    }
    for element in soup.select("script, style, svg, head, template, noscript, nav, [role=navigation]"):
        element.decompose()
    for element in soup.find_all(lambda tag: not _INLINE.fullmatch(tag.name)):
        element.insert_before("\n")
        element.insert_after("\n")
    return words(soup.get_text()), set(filter(None, (_page(folder, target) for target in targets))) - {path}


def _page(folder: Path, target: str) -> str:
    """The file that a link names; "" if it is no page of the folder."""
    name = f"{target.rstrip('/')}/index.html".lstrip("/") if (folder / target).is_dir() else target
    return name if name.lower().endswith(HTML) and (folder / name).is_file() else ""


# -- MCP servers ---------------------------------------------------------------------------------------------------


def server(command: str, values: Mapping[str, str]) -> tuple[str, Lost]:
    """Every tool of a server over stdio, called once in a session of its own."""
    counts: Counter[str] = Counter()
    lost: Lost = []
    with tempfile.TemporaryDirectory() as place:
        tasks = Path(place) / "tasks.jsonl"
        tasks.write_text('{"question": "?", "answer": "!", "split": "train"}\n', encoding="utf-8")
        env = Mcp(tasks=str(tasks), command=shlex.split(command), starting=120.0)
        try:
            for tool in env.tools[:-1]:  # the last one is ours
                call = ToolCall(name=tool.name, arguments=json.dumps(example(tool, values)))
                kept = sum(_kept(call, env, name) for name in TOOL_FORMATS)
                said = _observation(env, call)
                counts.update(tools=1, described=int(not tool_schema.defect(tool.parameters or {})), calls=kept)
                counts.update(observations=int(said is not None), errors=int((said or "").startswith("Error: ")))
                if said is None or kept < len(TOOL_FORMATS):
                    lost.append(f"{command}: {tool.name}{call.arguments}")
        finally:
            env.close()
    return ", ".join(f"{count} {name}" for name, count in counts.items()), lost


def example(tool: ToolSpec, values: Mapping[str, str]) -> dict[str, Any]:
    """A value for each argument that a tool requires."""
    return {name: values.get(name, value) for name, value in _object(tool.parameters or {}).items()}


def _object(schema: Mapping[str, Any]) -> dict[str, Any]:
    named = tool_schema.properties(schema)
    return {name: _value(named.get(name, {})) for name in sorted(tool_schema.required(schema))}


def _value(schema: Mapping[str, Any]) -> Any:
    if choices := schema.get("enum"):
        return choices[0]
    kinds = schema.get("type", "string")
    kind = kinds[0] if isinstance(kinds, list) else kinds
    if kind == "array":
        return [_value(schema.get("items", {}))] * max(1, schema.get("minItems", 1))
    if kind == "object":
        return _object(schema)
    if kind in ("integer", "number"):
        return max(1, schema.get("minimum", 1))
    return {"boolean": True, "null": None}.get(kind, "UTC")


def _kept(call: ToolCall, env: Mcp, name: str) -> bool:
    protocol = TOOL_FORMATS[name]
    parsed = protocol.parse(protocol.format(call, env.tools), env.tools).tool_calls
    return len(parsed) == 1 and (parsed[0].name, parsed[0].values) == (call.name, call.values)


def _observation(env: Mcp, call: ToolCall) -> str | None:
    episode = env.episode(env.tasks("train")[0])
    try:
        return episode.step(call)
    except InfrastructureError:
        return None
    finally:
        episode.close()


@click.command(help=__doc__)
@click.option("--trajectories", "logs", type=click.Path(path_type=Path, exists=True), multiple=True)
@click.option("--site", "sites", type=click.Path(path_type=Path, exists=True), multiple=True)
@click.option("--mcp", "commands", multiple=True, help="Command line of a server over stdio.")
@click.option("--value", "values", multiple=True, metavar="NAME=VALUE", help="Value of every argument of this name.")
@click.option("--errors", is_flag=True, help="List what was lost.")
def main(
    logs: tuple[Path, ...], sites: tuple[Path, ...], commands: tuple[str, ...], values: tuple[str, ...], *, errors: bool
) -> None:
    given = dict(value.partition("=")[::2] for value in values)
    for path in logs:
        show(str(path), *trajectories(path), errors=errors)
    for path in sites:
        show(str(path), *site(path), errors=errors)
    for command in commands:
        show(command, *server(command, given), errors=errors)


def show(name: str, counts: str, lost: Lost, *, errors: bool) -> None:
    print(f"{name}\n    {counts}", flush=True)
    for line in lost if errors else ():
        print(f"    lost: {line}")


if __name__ == "__main__":
    main()
