"""Facts about the public names of installed Python packages, found by importing and inspecting them.

Runs as `python -m internalize.environments.docs.python_api PACKAGE...` in a process of its own, because importing
hundreds of modules has side effects that no training run should have; prints one JSON object for each name. Modules
that open windows, print, or exist only on some platforms are skipped, and so are private names.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

STDLIB = "stdlib"
_SKIPPED = """
antigravity this idlelib lib2to3 turtle turtledemo tkinter test ensurepip distutils venv pip asynchat asyncore smtpd imp
curses nt ntpath msilib winreg winsound msvcrt pty tty readline rlcompleter nis ossaudiodev spwd crypt aifc audioop cgi
cgitb chunk imghdr mailcap nntplib pipes sndhdr sunau telnetlib uu xdrlib dbm
"""
_SKIP = frozenset(_SKIPPED.split())
_NOISY = ("test", "tests", "testing", "conftest", "__main__", "f2py", "distutils", "idle_test")
_SIMPLE = (bool, int, float, str, type(None), tuple, list, dict)
_LONGEST_DEFAULT = 16
# From Python 3.14 on annotations are evaluated when read, and some in the standard library name things that only type
# checkers import. As text they can always be read, and nothing here uses them.
_AS_TEXT: dict[str, Any] = (
    {} if sys.version_info < (3, 14) else {"annotation_format": importlib.import_module("annotationlib").Format.STRING}
)
_STARS: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def modules_of(packages: list[str]) -> Iterator[types.ModuleType]:
    """Every importable public module of the packages, in sorted order; `stdlib` means the standard library."""
    for package in packages:
        roots = sorted(n for n in sys.stdlib_module_names if n[0] != "_") if package == STDLIB else [package]
        for root in roots:
            if package != STDLIB:
                importlib.import_module(root)  # the package itself is needed: its error goes to the caller
            if root not in _SKIP:
                yield from _walk(root)


def _walk(name: str) -> Iterator[types.ModuleType]:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit):  # noqa: BLE001 - a module that cannot be imported here has no pages
        return
    yield module
    for info in sorted(pkgutil.iter_modules(getattr(module, "__path__", [])), key=lambda i: i.name):
        if info.name[0] != "_" and info.name not in _NOISY:
            yield from _walk(f"{name}.{info.name}")


def parameters(obj: Any) -> list[list[str | None]] | None:
    """[name, default or None] for each parameter, without self; None when there is no signature."""
    try:
        signature = inspect.signature(obj, **_AS_TEXT)
    except (ValueError, TypeError, AttributeError):  # AttributeError: a built-in names a default that does not exist
        return None
    found: list[list[str | None]] = []
    for parameter in signature.parameters.values():
        if parameter.name in {"self", "cls"} or parameter.name[0] == "_":
            continue
        star = _STARS.get(parameter.kind, "")
        default = None if parameter.default is parameter.empty else _default(parameter.default)
        found.append([star + parameter.name, default])
    return found


def _default(value: Any) -> str:
    text = repr(value) if isinstance(value, _SIMPLE) else "..."
    plain = len(text) <= _LONGEST_DEFAULT and text.isprintable() and not set(text) & set("<>,[]\n")
    return text if plain or text == "[]" else "..."


def _summary(obj: Any) -> str:
    lines = (inspect.getdoc(obj) or "").strip().splitlines()
    return lines[0].strip() if lines else ""


def facts(packages: list[str]) -> Iterator[dict[str, Any]]:
    """One dict a public name: name, kind (function, class, method, alias), params, bases, methods, target, about."""
    for module in modules_of(packages):
        public = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
        for name in sorted({n for n in public if isinstance(n, str)}):
            obj = inspect.getattr_static(module, name, None)
            if inspect.isclass(obj) or inspect.isroutine(obj):
                yield from _name_facts(module.__name__, name, obj)


def _home(obj: Any) -> str:
    return f"{getattr(obj, '__module__', '')}.{getattr(obj, '__qualname__', '')}"


def _name_facts(module: str, name: str, obj: Any) -> Iterator[dict[str, Any]]:
    full, home = f"{module}.{name}", _home(obj)
    base = {"name": full, "module": module, "about": _summary(obj)}
    if home != full and not home.startswith(("_", "None", "builtins")) and "<" not in home and "._" not in home:
        yield {**base, "kind": "alias", "target": home}
    elif inspect.isclass(obj):
        yield from _class_facts(base, obj)
    elif (params := parameters(obj)) is not None:
        yield {**base, "kind": "function", "params": params}


def _class_facts(base: dict[str, Any], cls: type) -> Iterator[dict[str, Any]]:
    own = {n: m for n, m in sorted(vars(cls).items()) if n[0] != "_" and _callable(m)}
    bases = [_home(b) for b in cls.__bases__ if b is not object]
    init = parameters(cls) if "__init__" in vars(cls) else None
    yield {**base, "kind": "class", "params": init or [], "bases": bases, "methods": list(own)}
    for name, member in own.items():
        plain = getattr(member, "__func__", member)
        if (params := parameters(plain)) is not None:
            full = f"{base['name']}.{name}"
            yield {"name": full, "module": base["module"], "about": _summary(plain), "kind": "method", "params": params}


def _callable(member: Any) -> bool:
    return inspect.isroutine(getattr(member, "__func__", member))


def main() -> None:
    """Print the facts of the packages named on the command line, one JSON object a line."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        rows = [json.dumps(row) for row in facts(sys.argv[1:])]
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
