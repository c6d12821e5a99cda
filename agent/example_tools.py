"""Three tools to try; write your own file like it.

    python infer.py --adapter runs/NAME --tools agent/example_tools.py

Every public function becomes a tool: its type hints make the schema, its docstring the description.
"""

from datetime import date
from typing import Literal


def multiply_numbers(first: float, second: float) -> dict[str, float]:
    """multiply two numbers"""
    return {"product": first * second}


def convert_temperature(degrees: float, unit: Literal["celsius", "fahrenheit"]) -> dict[str, float]:
    """convert a temperature to a unit"""
    converted = (degrees - 32) * 5 / 9 if unit == "celsius" else degrees * 9 / 5 + 32
    return {unit: round(converted, 1)}


def count_days(start: str, end: str) -> dict[str, int]:
    """count the days between two dates"""
    return {"days": (date.fromisoformat(end) - date.fromisoformat(start)).days}
