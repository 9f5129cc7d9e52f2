"""Whatever is typed: either it is accepted, or it is one line that names what to mend, exit code 2, soon, and no trace.

What is accepted goes on to a Ray cluster that is not there, which is the line after all others. BAD_INPUT_EXAMPLES=1500
tries so many inputs of each kind instead of a few.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ray_gossip import cli
from ray_gossip.config import dump, load, parse, parse_text
from ray_gossip.config.mistakes import keys
from ray_gossip.errors import ConfigError, one_line
from ray_gossip.tuning.settings import SweepConfig

EXAMPLES = int(os.environ.get("BAD_INPUT_EXAMPLES", "40"))
SOON_S = 4.0  # of CPU time, since others use the machine too; the first input, which loads Ray, does not count
CONFIGS = Path(__file__).parents[2] / "configs"
NOWHERE = "127.0.0.1:1"

some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands are given: it holds an earlier run, and nothing may come into it."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "earlier").mkdir()
    (folder / "earlier" / "events.jsonl").touch()
    (folder / "loop").symlink_to("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RAY_ADDRESS", NOWHERE)
        patch.setattr(sys, "path", list(sys.path))
        answer("train")
        answer("tune", "space.seed.choice=[1, 2]")
        yield folder


def answer(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `ray-gossip`."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            code: Any = cli.main(words)
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), error.getvalue()


def check(folder: Path, *words: str, accepted: str = f"cluster at {NOWHERE}") -> str:
    """The line with which a command is answered; empty when it was accepted."""
    before, started = sorted(folder.rglob("*")), time.process_time()
    code, out, error = answer(*words)
    took_s = time.process_time() - started
    assert sorted(folder.rglob("*")) == before
    if (code, error) == (0, ""):  # help, or data that is ready
        event("done")
        return ""
    (line,) = error.splitlines()
    assert (code, out) == (2, ""), (code, out, error)
    assert line.startswith("ray-gossip"), line
    assert line.isprintable(), line
    assert len(line) < 2200, line
    assert took_s < SOON_S, (took_s, line)
    event("accepted" if accepted in line else "refused")
    return "" if accepted in line else line


BOUNDS = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
SWEEP_KEYS = [key for key in keys(SweepConfig) if key not in ("optimizer.args", "optimizer.factory", "data.download")]
RUN_KEYS = [key for key in SWEEP_KEYS if not key.startswith("tune.")]


def properties(
    schema: dict[str, Any], section: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each dotted key, and what JSON Schema says of it; of those that may be null, what it says of the others."""
    for name, found in section["properties"].items():
        if "$ref" in found:
            yield from properties(schema, schema["$defs"][found["$ref"].rpartition("/")[2]], f"{name}.")
        else:
            yield f"{prefix}{name}", {"default": found.get("default"), **found.get("anyOf", [found])[0]}


SCHEMA = dict(properties(SweepConfig.model_json_schema(), SweepConfig.model_json_schema()))
PLAUSIBLE = {
    key: [
        json.dumps(each).strip('"')
        for each in (*told.get("enum", ()), *(told[word] for word in [*BOUNDS, "default"] if word in told))
    ]
    for key, told in SCHEMA.items()
}


def words_of(text: str, *more: str) -> st.SearchStrategy[str]:
    return st.sampled_from([*text.split(), *more])


extreme = words_of("1e308 -1e308 5e-324 010 1:30:00 0x10 1_000 .inf .nan 2**3 -0 1e", "9" * 400)
numbers = st.integers(-3, 300).map(str) | st.integers().map(str) | st.floats().map(str) | extreme
signs = words_of(
    "[ [1 { {a:1,a:2} {a:{b:1}} [[[1]]] ' \" *a &a @x !x - # ? | > % ` ~ null yes off ${x} ${oc.env:HOME} : :: ..:x"
)
spaced = words_of("", "", " ", "\t", "{a: 1, a: 2}", "!!binary aGk=", "a: b: c", "- a", "# x", "a\nb", "[" * 90)
names = words_of(
    "a:b nowhere:build json:loads os:_exit a.b: grid cifar10 Adam LBFGS hivemind by_size dirichlet none pbt optuna"
)
paths = words_of("/proc loop é😀 ~nobody-of-this-name/x", "\x85", "\udc80", "x" * 400)
odd = signs | spaced | names | paths
lists = st.lists(numbers, max_size=4).map(lambda each: f"[{', '.join(each)}]")
values = numbers | odd | lists | st.text(max_size=8)
known = st.sampled_from(RUN_KEYS)
spots = st.integers(0, 40)
inserted = st.text(max_size=2)
misspelt = st.builds(lambda key, at, by: key[: at % len(key)] + by + key[at % len(key) :], known, spots, inserted)
assigned = known.flatmap(lambda key: st.tuples(st.just(key), st.sampled_from(PLAUSIBLE[key]) | values))
overrides = (assigned | assigned | st.tuples(misspelt, values)).map("=".join)


@some
@given(override=overrides)
def test_any_override_is_accepted_or_one_line_that_names_its_key(folder: Path, override: str) -> None:
    line = check(folder, "train", override)
    section = override.partition("=")[0].partition(".")[0]
    assert not line or one_line(section)[:9] in line, (override, line)


@some
@given(words=st.lists(overrides | values, max_size=6))
def test_any_words_are_accepted_or_one_line(folder: Path, words: list[str]) -> None:
    check(folder, "train", *words)


shipped = st.sampled_from([path.read_text() for path in sorted(CONFIGS.glob("*.yaml"))])


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A config of ours in which somebody has made a few mistakes."""
    lines = draw(shipped).splitlines()
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        spot = draw(st.integers(0, len(line)))
        lines[at : at + 1] = draw(
            st.sampled_from(
                [[], [line, line], [line + draw(values)], [line[:spot] + draw(odd) + line[spot:]], [" " + line]]
            )
        )
        lines = lines or [""]
    return "\n".join(lines).encode(errors="surrogateescape") + draw(
        st.sampled_from([b"", b"\xff", b"\0", b"\n---\na: 1"])
    )


@some
@given(content=spoilt() | st.binary(max_size=40))
@pytest.mark.parametrize("command", ["train", "tune"])
def test_any_file_is_accepted_or_one_line(folder: Path, command: str, content: bytes) -> None:
    file = folder.parent / "config.yaml"
    file.write_bytes(content)
    check(folder, command, str(file))


def leaf(key: str) -> st.SearchStrategy[Any]:
    """A distribution for this key, or what is none."""
    kinds = st.sampled_from(["choice", "grid", "uniform", "loguniform", "randint", "unifrom"])
    plain = st.sampled_from([yaml.safe_load(word) for word in PLAUSIBLE.get(key, ["1"])])
    some_values = st.lists(plain | plain | st.integers(1, 9) | st.floats(0.01, 1) | values, min_size=1, max_size=3)
    ends = st.sampled_from(PLAUSIBLE.get(key, ["1"])).map(
        lambda end: sorted([0.5, float(end)]) if end.isdecimal() else [1, 2]
    )
    long = st.sampled_from([{"choice": list(range(3000))}, {"grid": list(range(1, 1500))}, {}, 3, None])
    finite = some_values.map(lambda each: {"choice": each})
    return (
        finite
        | ends.map(lambda each: {"uniform": each})
        | st.builds(lambda *pair: dict([pair]), kinds, some_values)
        | long
    )


sections = st.sampled_from(["gossip", "gossip.steps", "model.args.x", "seed.x"])
swept = (known | known | known | sections).flatmap(lambda key: st.tuples(st.just(key), leaf(key)))
spaces = st.lists(swept, max_size=3).map(dict)
tuned = st.sampled_from([key for key in SWEEP_KEYS if key.startswith("tune.")])
tunings = tuned.flatmap(lambda key: st.tuples(st.just(key), st.sampled_from(PLAUSIBLE[key]) | values))


@some
@given(space=spaces, tune=st.lists(tunings.map("=".join), max_size=2))
def test_any_sweep_is_accepted_or_one_line(folder: Path, space: dict[str, Any], tune: list[str]) -> None:
    file = folder.parent / "sweep.yaml"
    file.write_text(yaml.safe_dump({"train": {"eval_every": 50}, "space": space}))
    check(folder, "tune", str(file), *tune)


OPTIONS = {
    "train": "--run-dir --json",
    "tune": "--run-dir --json --resume",
    "peer": "--run-dir --json --initial_peer --host_maddr --announce-maddr --identity_path --gossip_group_size "
    "--gossip_min_group_size --gossip_alpha --gossip_steps --gossip_seconds --gossip-schedule --data_root",
    "data": "prepare",
}
places = words_of(
    ". loop loop/x earlier earlier/events.jsonl /proc/x /sys/x /dev/null s3:// foo://x file:// :// s3://b?x=1 "
    "/ip4/127.0.0.1/tcp/65536 /ip4/127.0.0.1/tcp/0 /ip4/999.1.1.1/tcp/1 /dns/a/tcp/1/p2p/Qm -1 -- --json -h",
    *("", "x" * 300, "x/" * 2000, "s3://a b", "a\nb"),
)


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(sorted(OPTIONS)))
    words = [command]
    for option in draw(st.lists(words_of(OPTIONS[command]), max_size=3)):
        words += [draw(st.sampled_from([option, option, option[:-1], f"{option}x"])), draw(places | values)][
            : draw(st.integers(1, 2))
        ]
    return words


@some
@given(words=commands())
def test_any_option_is_accepted_or_one_line(folder: Path, words: list[str]) -> None:
    match words[0]:
        case "peer":  # would start: the last thing that is looked at is refused
            check(folder, *words, "--run-dir", "earlier", accepted="already holds a run")
        case "data":
            check(folder, *words, "data.download=false")
        case _:
            check(folder, *words)


plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
arguments = st.recursive(plain, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3))


@some
@given(words=st.lists(overrides, max_size=3), argument=arguments)
def test_a_config_is_read_as_it_was_written(words: list[str], argument: Any) -> None:
    try:
        values = load(None, words).model_dump()
    except ConfigError:
        values = {}
    config = parse({**values, "model": {"factory": "a:b", "args": {"x": argument}}})
    assert parse(parse_text(dump(config).encode(), called="it")) == config


def test_every_number_has_bounds_on_both_sides() -> None:
    def is_unbounded(told: dict[str, Any]) -> bool:
        told = told.get("items", told)
        lowest, highest = told.keys() & {BOUNDS[0], BOUNDS[2]}, told.keys() & {BOUNDS[1], BOUNDS[3]}
        return told.get("type") in ("integer", "number") and not (lowest and highest)

    assert len(SCHEMA) > 60
    assert [key for key, told in SCHEMA.items() if is_unbounded(told)] == []
