"""From a model and its inputs to an analysis that was tried out: capture, interpret, number, try, freeze, repeat."""

from __future__ import annotations

import difflib
import fnmatch
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from effp_fx import binding, graph, group_file, grouping, size_rules, trial
from effp_fx.capture import Capture, capture, named_tensors
from effp_fx.channel_ids import Reason
from effp_fx.errors import CaptureError, NameNotFoundError
from effp_fx.graph import same_ops
from effp_fx.group_file import GroupRules
from effp_fx.groups import Analysis, Keep
from effp_fx.inputs import Example, first_samples, samples
from effp_fx.interpret import Interpretation
from effp_fx.outlines import Values

Progress = Callable[[str], None]
Ignore = Iterable[str | nn.Module]
_ROUNDS = 60
"""Trials until a model settles; each freezes or rebinds something, so this bounds a fault of ours, not a model."""


@dataclass
class Tracing:
    """A model's analysis, and what it takes to refine it."""

    model: nn.Module
    example: Example
    train_example: Example | None
    work: Interpretation
    analysis: Analysis
    modes: tuple[str, ...] = ("eval",)
    """The modes that the model ran in: `eval`, `train`. One graph stands for both where they do the same ops."""
    rules: list[trial.SizeRule] = field(default_factory=list)
    bounds: dict[str, tuple[int, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    trials: int = 0
    unexplained: set[tuple[str, str, str]] = field(default_factory=set)
    """Op, source line and class of module where no attribute held the size: the same line of another block is not
    looked at again."""

    def attributes(self, keep: Keep) -> binding.Attributes:
        """What has to be rebound for a plan."""
        return trial.attributes_for(self.model, self.analysis, self.rules, keep)

    def freeze(self, channels: np.ndarray, reason: Reason) -> None:
        """Take channels out of the game and number the rest anew; size rules are found again."""
        ids = self._ids_of(channels)
        self.work.ids.freeze(ids, reason)
        self._renumber()

    def apply_rules(self, rules: GroupRules, ignored: AbstractSet[str] = frozenset()) -> None:
        """Pin, tie and bound groups as a group file says; `ignored` weights stay, but for those that it frees."""
        freed = [self.analysis.group(name) for name in sorted(rules.frees)]
        spared = [self._ids_of(np.arange(group.start, group.stop)) for group in freed]
        _freeze_ignored(self.work, ignored, spared)
        for name in rules.pins:
            group = self.analysis.group(name)
            self.work.ids.freeze(
                self._ids_of(np.arange(group.start, group.stop)), Reason("pinned by the group file", module=name)
            )
        for one, two in rules.ties:
            left, right = self.analysis.group(one), self.analysis.group(two)
            self.work.ids.unite(self._first_ids(left.start, left.stop), self._first_ids(right.start, right.stop))
        for name in {*rules.min_kept, *rules.multiple_of}:
            self.bounds[name] = (rules.min_kept.get(name, 1), rules.multiple_of.get(name, 1))
        for one, two in [tie for _ in rules.ties for tie in rules.ties]:  # as often as a chain of ties may be long
            least, multiple = zip(self.bounds.get(one, (1, 1)), self.bounds.get(two, (1, 1)), strict=True)
            self.bounds[one] = self.bounds[two] = (max(least), math.lcm(*multiple))
        self._renumber()

    def settle(self, progress: Progress) -> None:
        """Run trials until the compact model does what the analysis says, in every mode that was captured."""
        begin = time.perf_counter()
        for _ in range(_ROUNDS):
            if not self.analysis.channels or not self._try_out(progress):
                self.seconds["trial"] = self.seconds.get("trial", 0.0) + time.perf_counter() - begin
                return
        raise CaptureError(
            f"{type(self.model).__name__} did not settle after {_ROUNDS} trials",
            mend="name the part that resists in ignore=, and report the model",
        )

    def settled(self, model: nn.Module) -> Tracing:
        """What it takes to lower another model of this structure, without the graphs and the ids behind it."""
        light = replace(self.analysis, graphs=())
        return replace(self, model=model, analysis=light, work=Interpretation({}))

    def _try_out(self, progress: Progress) -> bool:
        """One round; True where something was learnt and another is due."""
        keep = trial.trial_keep(self.analysis)
        for part in self.analysis.graphs:
            if not part.novel:  # the sizes at its ops were tried with the graph before it; verification runs both
                continue
            self.trials += 1
            progress(f"trial {self.trials}: {self.analysis.channels} channels")
            tried = trial.Trial(self.model, self.analysis, part, self.rules, keep)
            mismatch = tried.run()
            if mismatch is None:
                continue
            place = graph.op_name(mismatch.node), mismatch.reason().source, mismatch.node.meta.get("module_type", "")
            rules = [] if place in self.unexplained else size_rules.explain(tried, mismatch)
            if not rules:
                self.unexplained.add(place)
            if rules:
                self.rules += rules
            elif len(mismatch.channels):
                self.freeze(mismatch.channels, mismatch.reason())
            elif group := tried.responsible(mismatch):
                self.freeze(np.arange(group.start, group.stop), mismatch.reason())
            else:
                raise CaptureError(
                    f"the compact copy of {type(self.model).__name__} does not run, and nothing explains why",
                    where=mismatch.reason().source,
                    seen=mismatch.text,
                    mend="name the part that resists in ignore=, and report the model",
                )
            return True
        return False

    def _renumber(self) -> None:
        old = self.analysis
        self.analysis = grouping.build(self.work, {name for name, _ in self.model.named_parameters()}, self.bounds)
        table = np.full(old.channels + 1, -1)
        for name, tensor in old.tensors.items():
            for dim, channels in tensor.dims.items():
                now = self.analysis.tensors[name].dims.get(dim, np.full(len(channels), -1))
                table[channels] = now  # where no channel was, the last entry, which is put back below
        table[-1] = -1
        self.rules = [
            trial.SizeRule(rule.module, rule.attribute, rule.index, rule.old, table[rule.channels])
            for rule in self.rules
        ]

    def _ids_of(self, channels: np.ndarray) -> np.ndarray:
        wanted = np.zeros(self.analysis.channels, dtype=np.bool_)
        wanted[channels] = True
        found = []
        for name, owners in self.work.owners.items():
            for owner in owners:
                numbers = self.analysis.tensors[name].dims.get(owner.dim)
                if numbers is not None:
                    found.append(owner.start + np.flatnonzero((numbers >= 0) & wanted[numbers]))
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def _first_ids(self, start: int, stop: int) -> np.ndarray:
        """One id of each channel, in the order of the channels."""
        first = np.zeros(stop - start, dtype=np.int64)
        for name, owners in self.work.owners.items():
            for owner in owners:
                numbers = self.analysis.tensors[name].dims.get(owner.dim)
                if numbers is None:
                    continue
                for index in np.flatnonzero((numbers >= start) & (numbers < stop)):
                    if not first[numbers[index] - start]:
                        first[numbers[index] - start] = owner.start + index
        return first


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold the garbage collector: it would look through a growing graph again and again, and find nothing to free."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_no_collection()
def trace(
    model: nn.Module,
    example: Example,
    *,
    train_example: Example | None = None,
    ignore: Ignore = (),
    groups: str | Path | None = None,
    progress: Progress = lambda _: None,
) -> Tracing:
    """Capture, interpret, group and try out a model; the model is left as it was.

    Args:
        model: any module that runs on the example.
        example: inputs for eval mode.
        train_example: inputs for train mode, with targets where forward wants them; None: those of eval mode.
        ignore: modules, their names, or globs over names, whose own channels stay.
        groups: a groups file as the user edited it; it may free what `ignore` pins.
        progress: called with a line before each long step.

    Raises:
        CaptureError, InputError: the model or the inputs cannot be used.
        NameNotFoundError: `ignore` names nothing in the model.
        GroupFileError: the groups file asks for what cannot be.
    """
    text = None if groups is None else group_file.text_of(groups)
    pinned = ignored_tensors(model, ignore)
    begin = time.perf_counter()
    progress("capture in eval mode")
    captures = [capture(model, example, values=Values.UNTIL_READ)]
    notes = []
    progress("capture in train mode")
    try:
        captures.append(_captured_in_training(model, train_example or example, captures[0]))
    except CaptureError as error:
        notes.append(f"train mode was not captured: {error.seen or error}")
    captured = time.perf_counter()
    progress("interpret")
    work = Interpretation(_shapes(model))
    modes = tuple("train" if recorded.train else "eval" for recorded in captures)
    if len(captures) == 2 and same_ops(captures[0].graph, captures[1].graph):
        del captures[1]
    for recorded in captures:
        work.walk(recorded)
    work.freeze_unused()
    if text is None:
        _freeze_ignored(work, pinned)
    work.notes += notes
    analysis = grouping.build(work, {name for name, _ in model.named_parameters()})
    seconds = {"capture": captured - begin, "analysis": time.perf_counter() - captured}
    tracing = Tracing(model, example, train_example, work, analysis, modes, seconds=seconds)
    tracing.settle(progress)
    if text is not None:
        tracing.apply_rules(group_file.parse(text, tracing.analysis, name=str(groups)), pinned)
        tracing.settle(progress)
    return tracing


def _captured_in_training(model: nn.Module, example: Example, evaluated: Capture) -> Capture:
    """The graph in train mode, for its ops alone: nothing is computed that need not be, and the batch is no larger than
    in eval mode, so that what both do alike is seen to be.

    Where the run fails like that, or leaves out parameters that eval mode does not read either (layers that work on
    what was found), it is repeated with all values.
    """
    try:
        few = first_samples(example, samples(evaluated.example))
        outlined = capture(model, few, train=True, values=Values.NONE)
    except CaptureError:
        return capture(model, example, train=True)
    missing = {name for name, _ in model.named_parameters()} - evaluated.used - outlined.used
    return capture(model, example, train=True) if missing else outlined


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items() if tensor.is_floating_point()}


def ignored_tensors(model: nn.Module, ignore: Ignore) -> set[str]:
    """The weights of the modules that `ignore` names. Raises NameNotFoundError for a name that finds none."""
    modules = dict(model.named_modules())
    found: set[str] = set()
    for entry in ignore if isinstance(ignore, Iterable) and not isinstance(ignore, (str, nn.Module)) else [ignore]:
        if isinstance(entry, nn.Module):
            paths = [path for path, module in modules.items() if module is entry]
        else:
            paths = [path for path in modules if isinstance(entry, str) and fnmatch.fnmatchcase(path, entry)]
        if not paths:
            raise _not_in_the_model(entry, list(modules))
        for path in paths:
            prefix = f"{path}." if path else ""
            found |= {name for name in named_tensors(model) if name.startswith(prefix)}
    return found


def _not_in_the_model(entry: Any, paths: list[str]) -> NameNotFoundError:
    name = repr(entry) if not isinstance(entry, nn.Module) else f"a {type(entry).__name__}"
    near = difflib.get_close_matches(str(entry), paths, n=3, cutoff=0.5) if isinstance(entry, str) else []
    return NameNotFoundError(
        f"ignore names {name}, which is not in the model",
        seen=f"{len(paths)} modules" + (f", such as {', '.join(near)}" if near else ""),
        expected="a module, the name of one as in model.named_modules(), or a glob over such names",
    )


def _freeze_ignored(work: Interpretation, names: AbstractSet[str], spared: Iterable[np.ndarray] = ()) -> None:
    """What these weights hand out stays, but for `spared` ids; what they read may go."""
    consumed = np.zeros(len(work.ids), dtype=np.bool_)
    for ids in work.context.consumed:
        consumed[ids] = True
    for ids in spared:
        consumed[ids] = True
    for name in names:
        for owner in work.owners.get(name, []):
            ids = np.arange(owner.start, owner.stop)
            work.ids.freeze(ids[~consumed[ids]], Reason("ignored at the user's wish", module=name))
