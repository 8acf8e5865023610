"""No test waits for ever: what a test waits for comes by a deadline, or the test fails."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from common.files import REPOSITORY

FILES = sorted((REPOSITORY / "tests").rglob("*.py"))
STARTS = {"run", "call", "check_call", "check_output"}
"""Functions of subprocess that wait for the end."""

WAITS = {"wait", "communicate", "join", "get", "recv"}
"""Methods of processes, threads, events, queues and connections that take a deadline."""


def endless(tree: ast.AST) -> Iterator[str]:
    """Calls that may wait for ever."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            problem = what_is_missing(node, node.func)
            if problem:
                yield f"line {node.lineno}: {ast.unparse(node.func)}; {problem}"


def what_is_missing(call: ast.Call, function: ast.Attribute) -> str:
    options = {option.arg: option.value for option in call.keywords}
    owner = function.value
    is_process = isinstance(owner, ast.Name) and owner.id == "subprocess"
    if is_process and function.attr == "Popen":
        return "use started() of conftest, which ends it"
    deadline = options.get("timeout")
    is_none = isinstance(deadline, ast.Constant) and deadline.value is None
    is_started = is_process and function.attr in STARTS and deadline is None
    waits = function.attr in WAITS and not call.args and not options
    return "write timeout=DEADLINE" if is_none or is_started or waits else ""


def test_no_test_waits_for_ever():
    found = {path.name: list(endless(ast.parse(path.read_text()))) for path in FILES}
    # started() itself
    assert len(found.pop("conftest.py")) == 1
    assert not {name: places for name, places in found.items() if places}


def test_what_may_wait_for_ever_is_found():
    text = (
        "subprocess.run(words)\n"
        "subprocess.Popen(words)\n"
        "thread.join()\n"
        "queue.get(timeout=None)\n"
        "subprocess.run(words, timeout=3); ', '.join(words); event.wait(3); kept.get('a')\n"
    )
    found = list(endless(ast.parse(text)))
    assert [line.split(":")[0] for line in found] == ["line 1", "line 2", "line 3", "line 4"]
