"""Tools keep the shape in which their row wrote them, and become a JSON schema inside."""

import json
from typing import Any

import pytest
from test_data_schema import OPENAI_TOOL, SPEC

from data.tool_calls import read_tool, read_tools
from data.tool_schema import as_shape, write_tool

SHAPES = [
    OPENAI_TOOL,
    {
        **OPENAI_TOOL,
        "cache": True,
        "function": {**SPEC, "strict": True, "returns": {"type": "number"}},
    },
    SPEC,
    {
        "name": "f",
        "parameters": {
            "a": "string",
            "b": "integer?",
            "c": ["x", "y"],
            "d": {"type": "array", "items": {}},
        },
    },
    {
        "name": "f",
        "parameters": {"c": [1, 2], "e": {"enum": [2], "optional": True}, "type": "null"},
    },
    {
        "name": "f",
        "parameters": {"a": {"type": "string", "default": "x", "description": "words"}},
        "strict": False,
    },
]


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_tools_are_written_back_as_they_came(shape: dict[str, Any]) -> None:
    tool = read_tool(shape)
    assert write_tool(tool) == shape
    assert json.dumps(write_tool(tool)) == json.dumps(shape)
    assert tool.parameters["type"] == "object"


def test_compact_parameters_become_a_schema() -> None:
    tool = read_tool(SHAPES[3])
    assert tool.shape == "compact" and tool.required == ("a", "c", "d")
    assert tool.parameters["properties"]["c"] == {"type": "string", "enum": ["x", "y"]}
    with pytest.raises(
        ValueError, match="f: parameter 'a': expected one of string, .*got \"'text'\""
    ):
        read_tool({"name": "f", "parameters": {"a": "text"}})


def test_types_are_renamed_only_where_they_are_keywords() -> None:
    schema = {
        "type": "dict",
        "properties": {
            "type": {"type": "float"},
            "items": {"type": "tuple", "items": {"type": "dict"}},
        },
    }
    properties = read_tool({"name": "f", "parameters": schema}).parameters["properties"]
    assert properties["type"] == {"type": "number"}
    assert properties["items"] == {"type": "array", "items": {"type": "object"}}


def test_a_tool_changes_its_shape() -> None:
    described = {
        **SPEC,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "d"}},
        },
    }
    assert write_tool(as_shape(read_tool(described), "compact"))["parameters"] == {
        "city": "string?"
    }
    assert write_tool(as_shape(read_tool(SHAPES[3]), "openai"))["function"]["parameters"][
        "required"
    ] == ["a", "c", "d"]


def test_tools_one_after_the_other_are_a_list() -> None:
    assert len(read_tools(json.dumps(SPEC) + "\n" + json.dumps({**SPEC, "name": "g"}))) == 2
    assert read_tools(None) == read_tools("") == read_tools("[]") == ()


def test_tools_of_mixed_shapes_take_the_shape_of_the_first() -> None:
    tools = read_tools([SPEC, {**OPENAI_TOOL, "function": {**SPEC, "name": "g"}}])
    assert [tool.shape for tool in tools] == ["function", "function"]
