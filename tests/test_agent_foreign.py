"""An adapter that brings a chat template of other prompts is refused; one that agrees is taken."""

import dataclasses
import json
from pathlib import Path

import pytest
from test_data_tokenizer import small_tokenizer

from agent.foreign import check_template
from data.conversation import DEFAULT_PROMPT
from data.wire import FORMATS

# Gemma's own, from google/gemma-2-2b-it
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
# The course's notebook
COURSE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + "
    "message['content'] | trim + '<end_of_turn><eos>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


@pytest.mark.parametrize("format", FORMATS)
def test_our_own_is_taken_an_older_spelling_too(format: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer(format)
    check_template(tmp_path, tokenizer)  # none at all, as PEFT writes adapters
    tokenizer.save(tmp_path)
    check_template(tmp_path, tokenizer)
    path = tmp_path / "chat_template.jinja"
    path.write_text("{# as it was #}" + path.read_text())
    check_template(tmp_path, tokenizer)


def test_gemmas_own_is_taken(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(GEMMA)
    check_template(tmp_path, small_tokenizer("hermes"))


def test_the_courses_is_refused_in_either_place(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": COURSE}))
    with pytest.raises(ValueError, match="tokenizer_config.json: this adapter was trained with"):
        check_template(tmp_path, small_tokenizer("hermes"))
    (tmp_path / "chat_template.jinja").write_text(COURSE)
    with pytest.raises(ValueError, match="writes '<eos>.*where this program writes"):
        check_template(tmp_path, small_tokenizer("hermes"))


@pytest.mark.parametrize("template", ["{% broken", "{{ raise_exception('no') }}", "{{ 1 / 'a' }}"])
def test_one_that_does_not_render_is_refused(template: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="an error"):
        check_template(tmp_path, small_tokenizer("hermes"))


def test_other_words_around_the_tools_are_refused(tmp_path: Path) -> None:
    tokenizer = small_tokenizer("hermes")
    tokenizer.save(tmp_path, dataclasses.replace(DEFAULT_PROMPT, before="Use these: "))
    with pytest.raises(ValueError, match="Use these"):
        check_template(tmp_path, tokenizer)
