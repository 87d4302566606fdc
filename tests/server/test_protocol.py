"""docs/protocol.md against the code: a client must be able to look every code up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CODE_AT = {"ApiError": 1, "bad_request": 0, "forbidden": 0, "invalid": 0, "unavailable": 0, "_bad": 1}
"""Which argument of whatever makes an error is its code."""


def codes_of(text: str) -> set[str]:
    """The codes of the errors that a module can raise."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            at = CODE_AT.get(node.func.id)
            code = node.args[at] if at is not None and at < len(node.args) else None
            if isinstance(code, ast.Constant):
                found.add(str(code.value))
    return found


def test_every_error_code_is_on_the_protocol_s_page(repository: Path) -> None:
    page = set(re.findall(r"`([a-z_]+)`", (repository / "docs" / "protocol.md").read_text("utf-8")))
    raised = set[str]()
    for module in sorted((repository / "server").glob("*.py")):
        raised |= codes_of(module.read_text("utf-8"))
    assert len(raised) > 40, "the search finds the codes no more"
    assert sorted(raised - page) == []


def test_a_code_that_is_missing_would_be_found() -> None:
    assert codes_of('raise invalid("odd", "it is odd")') == {"odd"}
