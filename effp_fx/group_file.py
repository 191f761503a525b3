"""The editable groups file: writes a model's channel groups as YAML, reads back what the user changed, line by line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import yaml

from effp_fx.errors import GroupFileError

if TYPE_CHECKING:
    from effp_fx.groups import Analysis, ChannelGroup

VERSION = 1
_HEADER = """\
# The channel groups of a model, written by `effp-fx trace MODEL --emit groups.yaml`.
# The channels of a group are removed from all of its layers at once. Edit, then pass `--groups groups.yaml`.
#
# Under a group you may write
#   pin: true           remove none of its channels
#   free: true          lift a pin: of `ignore`, or of an earlier line of this file
#   tie: other_group    remove the same channels from both; they must be equally many
#   smallest_kept: 8    keep at least so many channels
#   multiple_of: 8      keep a multiple of so many channels
# A name may be a pattern, `backbone.*:`; where two entries speak of one group, the later one holds.
# `channels` and `layers` are for the reader: they say which model this is for, and are checked, not changed.
# A group that is left out stays as it is.
"""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# YAML reads these as something else than text.
_RESERVED = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class GroupRules:
    """What the groups file asks for, by group name.

    Attributes:
        pins: groups of which nothing is removed.
        frees: groups whose pin, from `ignore` for one, is lifted.
        ties: pairs of groups of equal size that lose the same channels.
        min_kept: the smallest number of channels to keep, 1 to all.
        multiple_of: the number of kept channels is a multiple of this, 1 to all.
    """

    pins: frozenset[str] = frozenset()
    frees: frozenset[str] = frozenset()
    ties: tuple[tuple[str, str], ...] = ()
    min_kept: Mapping[str, int] = field(default_factory=dict)
    multiple_of: Mapping[str, int] = field(default_factory=dict)


def emit(analysis: Analysis) -> str:
    """Return the groups of the analysis as YAML with a comment that explains; `parse` of it asks for nothing new."""
    lines = [_HEADER, f"version: {VERSION}", "groups:" if analysis.groups else "groups: {}"]
    for group in analysis.groups:
        lines += [f"  {_quoted(group.name)}:", f"    channels: {group.channels}", "    layers:"]
        lines += [f"      - {_quoted(layer)}" for layer in group.layers]
        lines += [f"    smallest_kept: {group.min_kept}"] if group.min_kept > 1 else []
        lines += [f"    multiple_of: {group.multiple_of}"] if group.multiple_of > 1 else []
    if analysis.frozen:
        lines += ["", "# In no group, because removing them could change what the model computes or returns:"]
    for frozen in analysis.frozen:
        # One line of characters that YAML allows, whatever the reason quotes.
        reason = "".join(c if c.isprintable() else "?" for c in " ".join(frozen.reason.split()))
        lines.append(f"#   {_quoted(frozen.tensor)}: {frozen.channels} channels, {reason}")
    return "\n".join(lines) + "\n"


def text_of(file: str | Path) -> str:
    """What stands in a groups file. Raises GroupFileError where it cannot be read as text."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GroupFileError(
            "the groups file cannot be read",
            where=str(file),
            seen=str(error),
            mend="effp-fx trace MODEL --emit FILE writes one to edit",
        ) from error


def parse(text: str, analysis: Analysis, *, name: str = "groups.yaml") -> GroupRules:
    """Read the text of a groups file for the model of the analysis.

    Args:
        text: the YAML that `emit` wrote, edited.
        analysis: of the same model.
        name: what to call the file in errors.

    Raises:
        GroupFileError: not YAML, or an unknown key or group, a value of the wrong kind or out of range, a tie of
            unequal sizes, or sizes of another model. `where` is "name:line".
    """
    return _Reader(analysis, name).read(text)


class _Reader:
    """Collects the rules entry by entry; the one place that knows the file's name."""

    def __init__(self, analysis: Analysis, name: str) -> None:
        self.analysis = analysis
        self.name = name
        self.groups = {group.name: group for group in analysis.groups}
        self.pins: set[str] = set()
        self.frees: set[str] = set()
        self.ties: dict[str, str] = {}
        self.min_kept: dict[str, int] = {}
        self.multiple_of: dict[str, int] = {}
        self.keys: dict[str, Callable[[ChannelGroup, yaml.Node], None]] = {
            "channels": self._channels,
            "layers": self._layers,
            "pin": self._pin,
            "free": self._free,
            "tie": self._tie,
            "smallest_kept": lambda group, node: self._set_number(self.min_kept, group, node),
            "multiple_of": lambda group, node: self._set_number(self.multiple_of, group, node),
        }

    def read(self, text: str) -> GroupRules:
        root = {key.value: (key, value) for key, value in self._entries(self._compose(text), "version: 1 and groups:")}
        for key, (node, _) in root.items():
            if key not in ("version", "groups"):
                self._fail(node, f"unknown key {key!r}", key, "version or groups")
        if "groups" not in root:
            self._fail(None, "the groups file has no groups", "no key 'groups'", "groups: with the groups below it")
        if "version" in root and self._whole(root["version"][1]) != VERSION:
            node = root["version"][1]
            self._fail(node, "the groups file is of another version", _shown(node), f"version: {VERSION}")
        for key, value in self._entries(root["groups"][1], "group names, each with its keys below it"):
            self._entry(key, value)
        ties = tuple(self.ties.items())
        return GroupRules(frozenset(self.pins), frozenset(self.frees), ties, self.min_kept, self.multiple_of)

    def _compose(self, text: str) -> yaml.Node:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            seen = getattr(error, "problem", None) or str(error) or type(error).__name__
            where = f"{self.name}:{mark.line + 1}" if mark else self.name
            raise GroupFileError("the groups file is not YAML", where=where, seen=seen) from error
        if root is None:
            self._fail(None, "the groups file is empty", "no entries", "what effp-fx trace --emit writes")
        return root

    def _entries(self, node: yaml.Node, expected: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Yield the keys and values of a mapping; nothing for an empty value."""
        if _is(node, "null"):
            return
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, "not a mapping", _shown(node), expected)
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._fail(key, "a key must be a name", _shown(key), expected)
            if key.value in seen:
                self._fail(key, f"{key.value!r} stands twice", f"first in line {seen[key.value]}", "it once")
            seen[key.value] = _line(key)
            yield key, value

    def _entry(self, key: yaml.ScalarNode, value: yaml.Node) -> None:
        matched = self._matching(key)
        own = list(self._entries(value, "keys such as pin: true"))
        for name, node in own:
            if name.value not in self.keys:
                self._fail(name, f"unknown key {name.value!r}", key.value, ", ".join(self.keys), _near(name, self.keys))
            for group in matched:
                self.keys[name.value](group, node)
        wanted = {name.value for name, node in own if name.value in ("pin", "free") and _BOOLS[node.value.lower()]}
        if len(wanted) == 2:
            self._fail(key, f"{key.value!r} is both pinned and freed", "pin: true and free: true", "one of them")

    def _matching(self, key: yaml.ScalarNode) -> list[ChannelGroup]:
        if key.value in self.groups:
            return [self.groups[key.value]]
        matched = [group for name, group in self.groups.items() if fnmatchcase(name, key.value)]
        if not matched:
            self._unknown(key)
        return matched

    def _unknown(self, node: yaml.ScalarNode) -> NoReturn:
        reasons = [f for f in self.analysis.frozen if node.value in (f.tensor, f.tensor.rpartition(".")[0])]
        if reasons:
            what, seen = f"{node.value!r} cannot be pruned, so it is no group", str(reasons[0])
            self._fail(node, what, seen, "the name of a group of this model")
        seen = f"{len(self.groups)} groups, none of that name"
        self._fail(node, f"unknown group {node.value!r}", seen, "the name of a group", _near(node, self.groups))

    def _channels(self, group: ChannelGroup, node: yaml.Node) -> None:
        if self._whole(node) != group.channels:
            self._not_this_model(group, node, f"{group.channels} channels")

    def _layers(self, group: ChannelGroup, node: yaml.Node) -> None:
        items = node.value if isinstance(node, yaml.SequenceNode) else []
        layers = [item.value for item in items if isinstance(item, yaml.ScalarNode)]
        if layers != list(group.layers) or len(layers) != len(items):
            self._not_this_model(group, node, f"the layers {', '.join(group.layers)}")

    def _not_this_model(self, group: ChannelGroup, node: yaml.Node, expected: str) -> NoReturn:
        mend = "leave channels and layers as they were written, or write the file anew for this model"
        self._fail(node, f"the group {group.name!r} of this model is another one", _shown(node), expected, mend)

    def _pin(self, group: ChannelGroup, node: yaml.Node) -> None:
        if self._bool(node):
            self.pins.add(group.name)
            self.frees.discard(group.name)
        else:
            self.pins.discard(group.name)

    def _free(self, group: ChannelGroup, node: yaml.Node) -> None:
        if self._bool(node):
            self.frees.add(group.name)
            self.pins.discard(group.name)
        else:
            self.frees.discard(group.name)

    def _tie(self, group: ChannelGroup, node: yaml.Node) -> None:
        if not isinstance(node, yaml.ScalarNode) or _is(node, "null"):
            self._fail(node, "a group is tied to one other group", _shown(node), "the name of a group")
        other = self.groups.get(node.value)
        if other is None:
            self._unknown(node)
        if other.name == group.name:
            self._fail(node, f"{group.name!r} is tied to itself", node.value, "the name of another group")
        if other.channels != group.channels:
            sizes = f"{group.name} has {group.channels} channels, {other.name} has {other.channels}"
            self._fail(node, "groups of unequal sizes cannot be tied", sizes, "two groups with as many channels")
        self.ties[group.name] = other.name

    def _set_number(self, numbers: dict[str, int], group: ChannelGroup, node: yaml.Node) -> None:
        number = self._whole(node)
        if not 1 <= number <= group.channels:
            expected = f"1 to {group.channels}, the channels of {group.name}"
            self._fail(node, "the number is out of range", _shown(node), expected)
        numbers[group.name] = number

    def _bool(self, node: yaml.Node) -> bool:
        if not _is(node, "bool") or node.value.lower() not in _BOOLS:
            self._fail(node, "not a yes or no", _shown(node), "true or false")
        return _BOOLS[node.value.lower()]

    def _whole(self, node: yaml.Node) -> int:
        if not _is(node, "int") or not re.fullmatch("[1-9][0-9]{0,8}", node.value):
            self._fail(node, "not a whole number above 0", _shown(node), "a number such as 8")
        return int(node.value)

    def _fail(self, node: yaml.Node | None, what: str, seen: str, expected: str, mend: str | None = None) -> NoReturn:
        where = f"{self.name}:{_line(node)}" if node else self.name
        raise GroupFileError(what, where=where, seen=seen, expected=expected, mend=mend)


def _is(node: yaml.Node, kind: str) -> bool:
    return isinstance(node, yaml.ScalarNode) and bool(node.tag == _TAG + kind)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value)[:80]
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _near(node: yaml.ScalarNode, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(node.value, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else None


def _quoted(name: str) -> str:
    """Return the name as YAML text: as it is where that is safe, else in double quotes with escapes."""
    if _PLAIN.fullmatch(name) and name.lower() not in _RESERVED:
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if " " <= c <= "~" else f"\\U{ord(c):08x}" for c in escaped) + '"'
