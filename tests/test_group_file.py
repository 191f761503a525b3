"""The groups file: what is written, what is read back, and the line of every mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from effp_fx.errors import GroupFileError
from effp_fx.group_file import GroupRules, emit, parse
from effp_fx.groups import Analysis, ChannelGroup, Frozen

FROZEN = (Frozen("head.conv.weight", 0, 91, "it reaches the\nmodel's output", "conv2d", "head.conv", "net.py:7"),)


@dataclass
class Made:
    start: int = 0
    groups: list[ChannelGroup] = field(default_factory=list)

    def add(self, name: str, channels: int, layers: tuple[str, ...] = (), **bounds: int) -> None:
        stop = self.start + channels
        self.groups.append(ChannelGroup(name, self.start, stop, (), (), layers or (name,), **bounds))
        self.start = stop


def analysis(groups: Made | None = None, frozen: tuple[Frozen, ...] = FROZEN) -> Analysis:
    if groups is None:
        groups = Made()
        groups.add("stem.conv", 64, ("stem.conv", "stem.down"))
        groups.add("stem.conv#2", 64)
        groups.add("body.0", 32, multiple_of=4)
        groups.add("0", 8, min_kept=2)
        groups.add("no", 8)
    return Analysis(groups.start, tuple(groups.groups), {}, (), (), frozen, nx.DiGraph())


def read(body: str) -> GroupRules:
    """What `body`, under "groups:" (line 1), asks for."""
    return parse("groups:\n" + body, analysis())


def test_what_is_written() -> None:
    text = emit(analysis())
    body = text.split("# A group that is left out stays as it is.\n")[1]
    assert body == (
        "\nversion: 1\n"
        "groups:\n"
        "  stem.conv:\n"
        "    channels: 64\n"
        "    layers:\n"
        "      - stem.conv\n"
        "      - stem.down\n"
        '  "stem.conv#2":\n'
        "    channels: 64\n"
        "    layers:\n"
        '      - "stem.conv#2"\n'
        "  body.0:\n"
        "    channels: 32\n"
        "    layers:\n"
        "      - body.0\n"
        "    multiple_of: 4\n"
        '  "0":\n'
        "    channels: 8\n"
        "    layers:\n"
        '      - "0"\n'
        "    smallest_kept: 2\n"
        '  "no":\n'
        "    channels: 8\n"
        "    layers:\n"
        '      - "no"\n'
        "\n"
        "# In no group, because removing them could change what the model computes or returns:\n"
        "#   head.conv.weight: 91 channels, it reaches the model's output\n"
    )
    assert all(f"#   {key}: " in text for key in ("pin", "free", "tie", "smallest_kept", "multiple_of"))


def test_what_is_written_asks_for_nothing_new() -> None:
    assert parse(emit(analysis()), analysis()) == GroupRules(min_kept={"0": 2}, multiple_of={"body.0": 4})
    empty = analysis(Made(), ())
    assert parse(emit(empty), empty) == GroupRules()


@given(st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=5))
def test_any_name_comes_back(names: set[str]) -> None:
    made = Made()
    for name in sorted(names):
        made.add(name, 4, min_kept=3)
    frozen = tuple(Frozen(name, 0, 1, name, "", "", "") for name in names)
    model = analysis(made, frozen)
    assert parse(emit(model), model) == GroupRules(min_kept=dict.fromkeys(sorted(names), 3))
    assert set(yaml.safe_load(emit(model))["groups"]) == names


def test_what_the_user_edits() -> None:
    rules = read(
        "  stem.conv: {channels: 64, pin: true}\n"
        "  stem.conv#2:\n"
        "    tie: stem.conv\n"
        "    smallest_kept: 16\n"
        "  0:\n"
        "    multiple_of: 8\n"
        "    free: yes\n"
        "  body.0:\n"
    )
    assert rules == GroupRules(
        pins=frozenset({"stem.conv"}),
        frees=frozenset({"0"}),
        ties=(("stem.conv#2", "stem.conv"),),
        min_kept={"stem.conv#2": 16},
        multiple_of={"0": 8},
    )


def test_no_groups_ask_for_nothing() -> None:
    assert parse("groups:\n", analysis()) == parse("version: 1\ngroups: {}", analysis()) == GroupRules()


def test_patterns_and_the_later_entry_holds() -> None:
    rules = read("  '*': {pin: true, smallest_kept: 4}\n  stem.*: {free: true}\n  body.0: {pin: false}\n")
    assert rules.pins == {"0", "no"} and rules.frees == {"stem.conv", "stem.conv#2"}
    assert set(rules.min_kept) == {"stem.conv", "stem.conv#2", "body.0", "0", "no"}
    rules = read("  '*': {free: true}\n  stem.conv: {pin: true}\n  body.0: {free: false}\n")
    assert rules.pins == {"stem.conv"} and rules.frees == {"stem.conv#2", "0", "no"}


def test_a_name_that_looks_like_a_pattern_is_a_name_first() -> None:
    made = Made()
    for name in ("a[0]", "a0"):
        made.add(name, 4)
    assert parse("groups:\n  a[0]: {pin: true}\n", analysis(made)).pins == {"a[0]"}


@pytest.mark.parametrize(
    ("body", "line", "message", "more"),
    [
        ("  stem.cnv: {pin: true}", 2, "unknown group 'stem.cnv'", "did you mean stem.conv"),
        ("  nothing.*: {pin: true}", 2, "unknown group", "5 groups"),
        ("  head.conv: {free: true}", 2, "'head.conv' cannot be pruned", "reaches the"),
        ("  stem.conv:\n    pinn: true", 3, "unknown key 'pinn'", "did you mean pin?"),
        ("  stem.conv:\n    <<: {pin: true}", 3, "unknown key '<<'", "tie"),
        ("  stem.conv:\n    channels: 64\n    pin: 1", 4, "not a yes or no", "seen: '1'"),
        ("  stem.conv:\n    pin: 'true'", 3, "not a yes or no", "true or false"),
        ("  stem.conv:\n    pin: [true]", 3, "not a yes or no", "a list"),
        ("  stem.conv:\n    pin:", 3, "not a yes or no", "seen: ''"),
        ("  stem.conv:\n    pin: !!bool maybe", 3, "not a yes or no", "maybe"),
        ("  stem.conv:\n    pin: !!python/object:os.system x", 3, "not a yes or no", "x"),
        ("  stem.conv:\n    free: 3", 3, "not a yes or no", "true or false"),
        ("  stem.conv:\n    pin: true\n    free: true", 2, "both pinned and freed", "one of them"),
        ("  stem.conv:\n    smallest_kept: 65", 3, "out of range", "1 to 64, the channels of stem.conv"),
        ("  '*':\n    smallest_kept: 9", 3, "out of range", "1 to 8, the channels of 0"),
        ("  stem.conv:\n    smallest_kept: 0", 3, "not a whole number above 0", "'0'"),
        ("  stem.conv:\n    smallest_kept: true", 3, "not a whole number", "true"),
        ("  stem.conv:\n    multiple_of: 1.5", 3, "not a whole number", "1.5"),
        ("  stem.conv:\n    multiple_of: 0x10", 3, "not a whole number", "0x10"),
        ("  stem.conv:\n    multiple_of: -8", 3, "not a whole number", "-8"),
        ("  stem.conv:\n    multiple_of: {a: 1}", 3, "not a whole number", "a mapping"),
        ("  stem.conv:\n    multiple_of: 128", 3, "out of range", "1 to 64"),
        ("  stem.conv:\n    tie: body.0", 3, "unequal sizes", "stem.conv has 64 channels, body.0 has 32"),
        ("  stem.conv:\n    tie: stem.conv", 3, "tied to itself", "another group"),
        ("  stem.conv:\n    tie: stem.cnv", 3, "unknown group", "did you mean"),
        ("  stem.conv:\n    tie: head.conv", 3, "cannot be pruned", "91 channels"),
        ("  stem.conv:\n    tie: [stem.conv#2]", 3, "tied to one other group", "a list"),
        ("  stem.conv:\n    tie:", 3, "tied to one other group", "''"),
        ("  stem.conv:\n    channels: 32", 3, "is another one", "64 channels"),
        ("  stem.conv:\n    layers: [stem.conv]", 3, "is another one", "stem.conv, stem.down"),
        ("  stem.conv:\n    layers: [stem.conv, stem.down, [x]]", 3, "is another one", "a list"),
        ("  stem.conv:\n    layers: stem.conv", 3, "is another one", "stem.conv, stem.down"),
        ("  stem.conv: {}\n  body.0: {}\n  stem.conv: {}", 4, "'stem.conv' stands twice", "first in line 2"),
        ("  stem.conv:\n    pin: true\n    pin: false", 4, "'pin' stands twice", "first in line 3"),
        ("  stem.conv: true", 2, "not a mapping", "keys such as pin: true"),
        ("  ? [a]\n  : {}", 2, "a key must be a name", "a list"),
        ("  stem.conv: {pin: true", 2, "not YAML", "expected"),
        ("\tstem.conv: {}", 2, "not YAML", "cannot start any token"),
        ("  - stem.conv", 2, "not a mapping", "a list"),
        ("version: 2", 2, "another version", "version: 1"),
        ("version: x", 2, "not a whole number", "'x'"),
        ("group: {}", 2, "unknown key 'group'", "version or groups"),
    ],
)
def test_a_mistake_is_named_with_its_line(body: str, line: int, message: str, more: str) -> None:
    with pytest.raises(GroupFileError) as caught:
        read(body)
    assert caught.value.where == f"groups.yaml:{line}", str(caught.value)
    assert message in caught.value.what and more in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("version: 1", "has no groups"),
        ("[]", "not a mapping"),
        ("groups: {}\n---\ngroups: {}", "not YAML"),
        ("groups: \x00", "not YAML"),
        ("[" * 1500, "not YAML"),
        ("groups: *a", "not YAML"),
    ],
)
def test_what_is_no_groups_file(text: str, message: str) -> None:
    with pytest.raises(GroupFileError, match=message) as caught:
        parse(text, analysis(), name="mine.yaml")
    assert str(caught.value.where).startswith("mine.yaml")


@given(st.text(max_size=40), st.sampled_from(["", "groups:\n  ", "groups:\n  body.0:\n    ", "groups:\n  body.0: {"]))
def test_no_text_gives_another_error(text: str, before: str) -> None:
    result: Any = None
    try:
        result = parse(before + text, analysis())
    except GroupFileError as error:
        assert error.what and error.where
    assert result is None or isinstance(result, GroupRules)
