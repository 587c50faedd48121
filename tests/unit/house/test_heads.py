"""Every file says what it is, fits one sitting, and holds no unfinished work."""

from __future__ import annotations

import ast

from tests.support.repository import Module, other_modules, shipped_modules

#: Past this a file is two files. Most have 100 to 300 lines.
MAX_LINES = 450


def needs_no_head(module: Module) -> bool:
    """A test file's name and its tests say what it is; so does an empty `__init__.py` of theirs."""
    return module.relative.startswith("tests/") and (
        module.path.name.startswith("test_") or not module.text.strip()
    )


def test_every_module_opens_with_a_docstring() -> None:
    silent = [
        module.relative
        for module in (*shipped_modules(), *other_modules())
        if ast.get_docstring(module.tree()) is None and not needs_no_head(module)
    ]
    assert not silent, f"no docstring at the head: {silent}"


def test_every_file_can_be_read_in_one_sitting() -> None:
    long = {
        module.relative: lines
        for module in (*shipped_modules(), *other_modules())
        if (lines := module.text.count("\n")) > MAX_LINES
    }
    assert not long, f"past {MAX_LINES} lines; what is each really two of? {long}"


def test_annotations_are_lazy_everywhere() -> None:
    """`from __future__ import annotations` keeps typing out of start-up time and import cycles."""
    eager = [
        module.relative
        for module in shipped_modules()
        if any(isinstance(node, ast.AnnAssign | ast.arg) for node in ast.walk(module.tree()))
        and "from __future__ import annotations" not in module.text
    ]
    assert not eager, eager


def test_no_module_level_mutable_state() -> None:
    """Lists, dicts and sets at module level are Final tables, never places to put things."""
    mutable = [
        f"{module.relative}:{node.lineno}"
        for module in shipped_modules()
        for node in module.tree().body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp)
        and not all(isinstance(t, ast.Name) and t.id.startswith("__") for t in node.targets)
    ]
    assert not mutable, f"annotate as Final and never change: {mutable}"
    globals_used = [
        f"{module.relative}:{node.lineno}"
        for module in shipped_modules()
        for node in ast.walk(module.tree())
        if isinstance(node, ast.Global)
    ]
    assert not globals_used, globals_used
