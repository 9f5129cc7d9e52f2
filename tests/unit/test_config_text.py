"""What a config file and an override may hold, and how a mistake in them is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_gossip.config import Config, dump, load, parse
from ray_gossip.config.text import MOST_BYTES, TextError, read_yaml, write_yaml
from ray_gossip.errors import ConfigError

# seventeen lines that stand for 131,072 values
BOMB = "a: &a [1, 1]\n" + "\n".join(f"{chr(n + 1)}: &{chr(n + 1)} [*{chr(n)}, *{chr(n)}]" for n in range(97, 113))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o17", 15),
        ("-0x1f", -31),
        ("1_000", 1000),
        ("1e-3", 0.001),
        ("5.0e-4", 0.0005),
        ("1:30:00", "1:30:00"),
        ("2026-11-26", "2026-11-26"),
        ("yes", True),
        ("'yes'", "yes"),
        ("=", "="),
        ("${x}", "${x}"),
        ("a: &a [1]\nb: *a", {"a": [1], "b": [1]}),
        ("", None),
    ],
)
def test_a_word_is_read_as_a_person_means_it(text: str, value: Any) -> None:
    read = read_yaml(text)
    assert (read, type(read)) == (value, type(value))
    assert read_yaml(write_yaml(read)) == value


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("a: 1\nb: 2\na: 3", "the key a is there twice, first in line 1", 3),
        ("g:\n  a: 1\nh: {b: 1,\n b: 2}", "the key b is there twice, first in line 3", 4),
        ("a: {b: 1\nc: 2\n", "did not find expected ',' or '}', while parsing a flow mapping that begins in line 1", 2),
        ("a:\n\tb: 1", "found character that cannot start any token", 2),
        ("a: !!binary aGk=", "the tag tag:yaml.org,2002:binary has no meaning here", 1),
        ("a: " + "[" * 200, "nested more than 32 deep", 1),
        ("a: " + "9" * 5000, "a number has 5000 digits", 1),
        ("a: " + "9" * 30, "is beyond 64 bits", 1),
        ("a: &x [*x]", "its aliases stand for more than can be read", None),
        (BOMB, "its aliases stand for", None),
        ("1: a", "the key 1 is no text", None),
        ("a: \x00", "the character U+0000 does not belong in a text", 1),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_line(text: str, problem: str, line: int | None) -> None:
    with pytest.raises(TextError) as error:
        read_yaml(text)
    assert problem in error.value.problem
    assert error.value.line == line


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"gossip: {steps: 3\n", "{file}, line 2 is not readable as YAML: did not find expected ',' or '}}'"),
        (b"seed: 1\nseed: 2\n", "{file}, line 2 is not readable as YAML: the key seed is there twice, first in line 1"),
        (b"3", "{file} holds 3, but must hold sections such as 'gossip:'"),
        (b"seed: 1\n\xff\n", "{file}, line 2: this is no UTF-8; save it as UTF-8"),
        (b"seed: 1\n" * MOST_BYTES, "{file} has more than 100,000 bytes, which no config has; name another file"),
        (b"gossip.steps: 3\n", "unknown key gossip.steps at the top; in a file it is written gossip: {{steps: ...}}"),
        (b"gossip: [1]\n", "gossip=[1]: gossip is a section; set a key in it, such as gossip.group_size"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_the_file_or_the_key(
    content: bytes, line: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load(file, ["seed=3"])
    assert str(error.value).startswith(line.format(file=file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gossip.steps"], "cannot read the override 'gossip.steps': write key=value, such as gossip.group_size=2"),
        (["=3"], "cannot read the override '=3': write key=value"),
        (["a..b=3"], "cannot read the override 'a..b=3': write key=value"),
        (["[=3"], "unknown key [; "),
        (["gossip.steps=[3"], "gossip.steps: cannot read '[3' as YAML: did not find expected ',' or ']'"),
        (["gossip.steps=" + "9" * 5000], "gossip.steps: cannot read '999"),
        (["data.args=" + "[" * 100], "data.args: cannot read '[[["),
        (["gossip=3", "gossip.steps=3"], "gossip=3 holds no keys, so gossip.steps cannot be set in it"),
        (["data.root=\udc80"], "data.root: cannot read '\\udc80' as YAML: the character U+DC80 does not belong"),
        (["data.root=~nobody-of-this-name/x"], "data.root: there is no home folder ~nobody-of-this-name here"),
        (["data.root=" + "a" * 300], "data.root: 'aaa"),
        (["model.factory=a:b", "model.args={x: .nan}"], "model.args: x=nan is no plain value"),
        (["gossip.gro\nup=3"], "unknown key gossip.gro\\nup; did you mean gossip.group_size?"),
    ],
)
def test_a_mistake_in_an_override_is_one_line_that_names_the_key(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, words)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2100


def test_an_override_below_what_is_no_section_is_told(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("gossip: [1]\n")
    with pytest.raises(ConfigError, match=r"^gossip=\[1\] holds no keys, so gossip\.steps cannot be set in it$"):
        load(file, ["gossip.steps=3"])


def test_sixty_numbers_are_an_override_like_any_other() -> None:
    sizes = ",".join(["1.25"] * 60)
    assert load(None, ["data.shards=by_size", f"data.shard_sizes=[{sizes}]"]).data.shard_sizes == (1.25,) * 60


@pytest.mark.parametrize("text", ["${x}", "\\${x}", "010", "1:30", "~", "yes", "a: b", "\x85", "é😀", " ", "#", "\x00"])
def test_arguments_are_read_as_they_were_written(text: str) -> None:
    config = parse({"model": {"factory": "a:b", "args": {text: text, "deep": [{"er": (1, 2.5, None, True)}]}}})
    assert read_config(dump(config)) == config


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", {1: 2}, 2**70, "\udc80", object()])
def test_an_argument_that_cannot_be_written_down_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^data\.args: x.* is no plain value: a finite number, a text,"):
        parse({"data": {"factory": "a:b", "args": {"x": value}}})


def read_config(text: str) -> Config:
    return parse(read_yaml(text))
