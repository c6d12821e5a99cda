"""The mark of a tool that asks first: one that writes, sends or deletes.

    from agent.confirm import confirm

    @confirm
    def delete_file(name: str) -> str: ...

A file that cannot import this may have a list instead: `confirm = ["delete_file"]`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def confirm(function: Function) -> Function:
    """Marks a tool whose calls are run only after the user has said yes, or with --yes."""
    function.asks_first = True  # type: ignore[attr-defined]
    return function
