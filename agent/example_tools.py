"""Three tools to try; write your own file like it.

    python infer.py --adapter runs/NAME --tools agent/example_tools.py

Every public function becomes a tool: its type hints make the schema, its docstring the description.
The embedded rows hold tools of these names; those of `embedded/shown/tools.py` are in none of them.
"""

from datetime import date
from typing import Literal


# "float" takes whole numbers too. The descriptions are short and without a full stop, as those of
# the rows that the embedded model is trained on.
def multiply_numbers(first: float, second: float) -> dict[str, float]:
    """multiply two numbers"""
    return {"product": first * second}


# A Literal becomes an enum in the schema: the call is refused with anything else.
def convert_temperature(degrees: float, unit: Literal["celsius", "fahrenheit"]) -> dict[str, float]:
    """convert a temperature to a unit"""
    converted = (degrees - 32) * 5 / 9 if unit == "celsius" else degrees * 9 / 5 + 32
    return {unit: round(converted, 1)}


def count_days(start: str, end: str) -> dict[str, int]:
    """count the days between two dates"""
    # A date is not a type of JSON. What is no date raises here, and the model reads the error.
    return {"days": (date.fromisoformat(end) - date.fromisoformat(start)).days}
