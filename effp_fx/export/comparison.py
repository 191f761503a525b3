"""Holds a written file against PyTorch: against the recording, and against what the model itself returns."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effp_fx.capture import tensors_of, undisturbed
from effp_fx.errors import ExportError
from effp_fx.export import detections, parity, selection
from effp_fx.export.parts import Recorded
from effp_fx.export.report import Decoding
from effp_fx.export.selection import Detections
from effp_fx.inputs import Example

_SEEDS = (1, 2)
"""Random inputs beside the example."""
_SAME = 1e-3
"""How far apart two detections may be that are taken for one: of the largest coordinate, and in score."""
_SHARE = 0.02
"""Share of detections that near ties may exchange; more is an error."""
_NOISE = 10.0
"""How many times what float32 loses in boxes and scores is still taken for rounding."""


@dataclass
class Comparison:
    """What was found."""

    errors: parity.Errors = field(default_factory=parity.Errors)
    noise: dict[str, float] = field(default_factory=dict)
    detections: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)


def compare(runner: nn.Module, made: Recorded, decoded: Path, full: Path | None) -> Comparison:
    """Run the file and PyTorch on the example and on random inputs.

    Args:
        runner: a copy of the model, in eval mode, that may be changed by running.
        made: what was exported.
        decoded: the file without the choice of detections.
        full: the file with it, if there is one that ONNX Runtime runs.

    Raises:
        ExportError: an output differs by more than rounding explains.
    """
    found = Comparison()
    session = parity.open_session(decoded)
    whole = parity.open_session(full) if full is not None else None
    part, counts = made.part, _Counts()
    doubt = f"what Python read out of tensors is fixed to the example: {made.reads[0]}" if made.reads else None
    for kind, example in _examples(made):
        inputs = made.feed(example)
        got = parity.run_onnx(session, part, inputs)
        noise = functools.cache(partial(parity.rounding, part, inputs))
        rows = parity.run_graph(part.graph_module, part, inputs)
        where = f"the recording on {kind}"
        parity.compare(got, part, inputs, partial(_given, rows), found.errors, noise=noise, where=where)
        if not found.noise:
            found.noise = dict(zip(part.outputs, noise(), strict=True))
        if made.detection is not None and made.decoding is not None:
            output = _run_model(runner, example)
            _check_rows(output, made, rows, kind)
            if whole is not None:
                _count(counts, whole, made, output, (rows, got), inputs)
        elif part.own_outputs:
            own, where = partial(_own_tensors, runner, example), f"the model on {kind}"
            parity.compare(got, part, inputs, own, found.errors, noise=noise, where=where, doubt=doubt)
    if whole is not None:
        _conclude(found, counts)
    return found


def _examples(made: Recorded) -> list[tuple[str, Example]]:
    pairs = []
    for example in made.examples:
        pairs.append(("the example inputs", example))
        pairs += [("random inputs", parity.other_values(example, seed)) for seed in _SEEDS]
    return pairs


def _run_model(runner: nn.Module, example: Example) -> Any:
    with undisturbed(), torch.no_grad():
        torch.manual_seed(0)
        return runner(*example.args, **example.kwargs)


def _given(tensors: list[Tensor], _: Example) -> Sequence[Tensor]:
    return tensors


def _own_tensors(runner: nn.Module, example: Example, _: Example) -> Sequence[Tensor]:
    return tensors_of(_run_model(runner, example))[0]


def _check_rows(output: Any, made: Recorded, rows: list[Tensor], kind: str) -> None:
    """What the model returns stands among the boxes and scores: each detection, or every anchor."""
    detection, decoding = made.detection, made.decoding
    assert detection is not None and decoding is not None
    own = selection.own(output, detection)
    if isinstance(own, list):
        apart = selection.rows_apart((rows[0], rows[1]), own, decoding)[1]
    else:
        apart = max(parity.difference(one, two)[1] for one, two in zip(rows, own, strict=True))
    if apart > _SAME:
        raise ExportError(
            "boxes and scores of every anchor do not hold what the model itself returns",
            where=f"on {kind}",
            seen=f"relative error {apart:.2e}" + (f"; Python read {made.reads[0]}" if made.reads else ""),
            expected=f"at most {_SAME:.0e}",
            mend='part="network" exports what comes before the post-processing',
        )


@dataclass
class _Counts:
    """Detections compared, and how many differ."""

    chosen: tuple[int, int] = (0, 0)
    """From those that the same rules choose in PyTorch from the file's own boxes and scores."""
    own: tuple[int, int] = (0, 0)
    """From the model's own; where it chooses none, from those that its boxes and scores give."""
    tied: bool = False
    """Whether scores are equal, as where a sigmoid saturates: which of them comes first is then anybody's choice."""


def _count(
    counts: _Counts,
    session: Any,
    made: Recorded,
    output: Any,
    pairs: tuple[list[Tensor], list[Tensor]],
    inputs: Example,
) -> None:
    detection, decoding = made.detection, made.decoding
    assert detection is not None and decoding is not None
    found = run_full(session, made, inputs, decoding)
    recorded, file = pairs
    own = selection.own(output, detection)
    wanted = own if isinstance(own, list) else selection.select(recorded[0], recorded[1], decoding)
    wanted = [_above(image, decoding.score_threshold) for image in wanted]
    counts.tied |= any(_ties(image.scores) for image in found)
    chosen = selection.unmatched(found, selection.select(file[0], file[1], decoding), _SAME)
    counts.chosen = (counts.chosen[0] + chosen[0], counts.chosen[1] + chosen[1])
    other = selection.unmatched(found, wanted, _SAME)
    counts.own = (counts.own[0] + other[0], counts.own[1] + other[1])


def _ties(scores: Tensor) -> bool:
    return len(scores) - len(scores.unique()) > _SHARE * len(scores)


def run_full(session: Any, made: Recorded, inputs: Example, decoding: Decoding) -> list[Detections]:
    """The detections that a file gives, image by image."""
    tensors = inputs.tensors()
    feed = {name: tensors[at].numpy() for name, at in zip(made.part.inputs, made.part.taken, strict=True)}
    names = [detections.COUNT, detections.BOXES, detections.SCORES, detections.CLASSES]
    counts, boxes, scores, labels = (torch.from_numpy(value) for value in session.run(names, feed))
    return [
        Detections(boxes[at, :count], scores[at, :count], labels[at, :count].long())
        for at, count in enumerate(counts.flatten().tolist())
    ]


def _above(image: Detections, threshold: float) -> Detections:
    passes = image.scores > threshold
    return Detections(image.boxes[passes], image.scores[passes], image.labels[passes])


def _conclude(found: Comparison, counts: _Counts) -> None:
    """Raise where the file chooses otherwise. Rounding before the choice moves it too: that is said, not refused."""
    found.detections = counts.own
    total, apart = counts.own
    noisy = counts.tied or _NOISE * max(found.noise.values(), default=0.0) > _SAME
    wrong = counts.chosen if counts.chosen[1] > _SHARE * counts.chosen[0] and not counts.tied else None
    if wrong is None and apart > _SHARE * total and not noisy:
        wrong = counts.own
    if wrong is not None:
        raise ExportError(
            "the file does not give the detections of the model",
            seen=f"{wrong[1]} of {wrong[0]} differ",
            expected=f"at most {_SHARE:.0%}, exchanged at near ties",
            mend='part="decoded" leaves the choice outside',
        )
    if apart:
        why = "near ties of scores or overlaps"
        if noisy:
            why = "equal scores" if counts.tied else "boxes and scores that float32 rounding moves by more"
        found.notes.append(f"{apart} of {total} detections differ from the model's: {why}")
