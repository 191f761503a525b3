"""Boxes and scores of every anchor out of a captured detector: what stands before, or would without, its selections.

What the family says of its output (`effp_fx.models.Detection`) names the tensors. Where the output holds every anchor
they are cut out of it; where it holds detections, the post-processing is replayed with selections that select
everything (`effp_fx.select_all`), and what comes out is arranged as anchors by classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from effp_fx import dense_part, graph, value_names
from effp_fx.capture import Capture
from effp_fx.dense_part import DensePart
from effp_fx.errors import ExportError
from effp_fx.functional import functional
from effp_fx.inputs import Example
from effp_fx.models import Detection, Field
from effp_fx.select_all import Known, Replay, Rows
from effp_fx.select_all.values import Refusal

_ATEN = torch.ops.aten
BOXES, SCORES = "boxes", "scores"


@dataclass(frozen=True)
class DecodedPart:
    """The network up to boxes (batch, anchors, 4) and scores (batch, anchors, classes), as probabilities."""

    part: DensePart
    classes: tuple[int, ...]
    """The model's own label for each column of the scores."""
    levels: tuple[int, ...]
    """How many anchors each level of the pyramid has, in their order; one number where levels are not told apart."""


@dataclass(frozen=True)
class _Image:
    """Boxes (rows, 4) and scores of one output, as the replay gives them; a batch dimension before, maybe."""

    boxes: Rows
    scores: Rows
    labels: Tensor | None


def find(capture: Capture, example: Example, detection: Detection) -> DecodedPart:
    """The decoded part of a detector captured in eval mode on `example`.

    A list of images of one size becomes one input `images` (batch, channels, height, width).

    Raises:
        ExportError: the output is not as the family says, or a layer or an op that mixes rows follows a selection.
    """
    module = functional(capture.graph_module)
    facts = dense_part.facts_of(module)
    _, selected = dense_part.split(facts)
    outputs = list(module.graph.output_node().args[0])  # type: ignore[arg-type]  # the tuple that capture wrote
    fields = [item for item in (detection.boxes, detection.scores, detection.labels) if item is not None]
    cut = [_narrowed([outputs[at] for at in places(capture.out_spec, field)], field) for field in fields]
    wanted = [node for nodes, _ in cut for node in nodes]
    replay = Replay(module, facts, selected, wanted)
    images = [
        _image(replay, [nodes[at] for nodes, _ in cut], [field for _, field in cut]) for at in range(len(cut[0][0]))
    ]
    made = [_arranged(replay, image, detection) for image in images]
    boxes, scores = (_stacked(replay, [pair[at] for pair, _ in made]) for at in (0, 1))
    scores, classes = _probabilities(replay, scores, detection, made[0][1])
    replay.result.output((boxes, scores))
    attributes = {name: graph.tensor_of(module, name) for _, name in graph.weights(module)}
    whole = fx.GraphModule({**attributes, **replay.constants}, replay.result, "DecodedPart")
    whole.graph.eliminate_dead_code()
    part = dense_part.extract(whole, list(whole.graph.output_node().args[0]))  # type: ignore[arg-type]  # two nodes
    return DecodedPart(_signed(part, module, facts, example), classes, _levels(boxes))


def places(spec: pytree.TreeSpec, field: Field) -> list[int]:
    """Where the field's tensors stand among those of the output: one, or one for each image of a list."""
    if isinstance(field.output, int):
        return [field.output]
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    found = [index for path, index in leaves if str(value_names.path_words(path)[-1]) == field.output]
    if not found:
        raise ExportError(
            "the model's output is not what its family says",
            seen=str(spec)[:200],
            expected=f"a tensor under the key {field.output!r}",
        )
    return found


def _narrowed(nodes: list[fx.Node], field: Field) -> tuple[list[fx.Node], Field]:
    """Where the field is just one part of a join, that part: the join need not be replayed."""
    if field.columns is None or len(nodes) != 1 or graph.op_name(nodes[0]) not in ("aten.cat", "aten.concat"):
        return nodes, field
    join = nodes[0]
    rank = len(graph.info(join).shape)
    dim: Any = join.args[1] if len(join.args) > 1 else join.kwargs.get("dim", 0)
    if dim % rank != field.dim % rank:
        return nodes, field
    start = 0
    parts: Any = join.args[0]
    for part in parts:
        stop = start + graph.info(part).shape[dim]
        if (start, stop) == field.columns:
            return [part], Field(field.output, None, field.dim)
        start = stop
    return nodes, field


def _image(replay: Replay, nodes: list[fx.Node], fields: list[Field]) -> _Image:
    try:
        values = [_columns(replay, replay.value(node), field) for node, field in zip(nodes, fields, strict=True)]
    except Refusal as why:
        raise ExportError("the model's output is not what its family says", seen=str(why)) from why
    boxes, scores = values[0], values[1]
    labels = values[2] if len(values) > 2 else None
    if not isinstance(boxes, Rows) or not isinstance(scores, Rows) or isinstance(labels, Rows):
        raise ExportError(
            "boxes and scores of every anchor cannot be told apart: labels are chosen by value",
            seen="an argmax over the classes before the selection" if isinstance(labels, Rows) else "constant boxes",
            mend='part="network" exports what comes before the post-processing',
        )
    return _Image(boxes, scores, labels.tensor if labels is not None else None)


def _columns(replay: Replay, value: Known | Rows, field: Field) -> Known | Rows:
    if field.columns is None:
        return value
    start, stop = field.columns
    dim = field.dim % len(value.whole)
    if isinstance(value, Known):
        return Known(value.tensor.narrow(dim, start, stop - start))
    rows = replay.rows(value)
    cut = replay.add(_ATEN.slice.Tensor, (rows.node, dim, start, stop), rows)
    return Rows(cut, graph.info(cut).shape, rows.dtype)


Pair = tuple[fx.Node, fx.Node]


def _arranged(replay: Replay, image: _Image, detection: Detection) -> tuple[Pair, tuple[int, ...]]:
    """Boxes (batch, anchors, 4) and scores (batch, anchors, classes), and the label of each class."""
    if image.labels is None:
        boxes = _last(replay, replay.rows(image.boxes).node, detection.boxes)
        scores = _last(replay, replay.rows(image.scores).node, detection.scores)
        return (boxes, scores), tuple(range(graph.info(scores).shape[-1]))
    rows, labels = replay.rows(image.scores), image.labels.long()
    batched = len(image.boxes.whole) == 3
    if batched:
        labels = labels[0]
    labels = labels.flatten()
    anchors = image.boxes.index if image.boxes.index is not None else torch.arange(labels.numel())
    classes = labels.unique()
    count = image.boxes.shape[-2]
    cells = anchors * len(classes) + torch.searchsorted(classes, labels)
    if not torch.equal(cells.sort().values, torch.arange(count * len(classes))):
        raise ExportError(
            "boxes and scores of every anchor cannot be arranged: not every anchor has a score for each class",
            seen=f"{count} boxes, {len(classes)} classes, {labels.numel()} scores",
        )
    grid = _grid(replay, rows, torch.argsort(cells).reshape(count, len(classes)), batched)
    boxes = image.boxes.node if batched else replay.add(_ATEN.unsqueeze.default, (image.boxes.node, 0))
    return (boxes, grid), tuple(classes.tolist())


def _last(replay: Replay, node: fx.Node, field: Field) -> fx.Node:
    """Turned so that coordinates, or classes, are the last dimension."""
    rank = len(graph.info(node).shape)
    if field.dim % rank == rank - 1:
        return node
    return replay.add(_ATEN.transpose.int, (node, field.dim, -1))


def _grid(replay: Replay, rows: Rows, order: Tensor, batched: bool) -> fx.Node:
    """Scores of rows, in any order, as (batch, anchors, classes): a reshape where their order allows it."""
    anchors, classes = order.shape
    node = rows.node
    batch = rows.shape[0] if batched else 1
    flat = torch.arange(order.numel())
    if torch.equal(order.flatten(), flat):
        return replay.add(_ATEN.reshape.default, (node, [batch, anchors, classes]))
    if torch.equal(order.t().flatten(), flat):
        turned = _before_turning(node, (anchors, classes)) if not batched else None
        if turned is not None:
            return replay.add(_ATEN.unsqueeze.default, (turned, 0))
        made = replay.add(_ATEN.reshape.default, (node, [batch, classes, anchors]))
        return replay.add(_ATEN.transpose.int, (made, 1, 2))
    lined = replay.add(_ATEN.reshape.default, (node, [batch, anchors * classes]))
    picked = replay.add(_ATEN.index_select.default, (lined, 1, replay.constant(order.flatten())))
    return replay.add(_ATEN.reshape.default, (picked, [batch, anchors, classes]))


def _before_turning(node: fx.Node, shape: tuple[int, int]) -> fx.Node | None:
    """What was turned and flattened to `node`, if it has this shape."""
    turned: Any = node.args[0] if node.args else None
    if graph.op_name(node) != "aten.flatten" or graph.op_name(turned) != "aten.movedim":
        return None
    source: fx.Node = turned.args[0]
    return source if graph.info(source).shape == shape else None


def _stacked(replay: Replay, nodes: list[fx.Node]) -> fx.Node:
    return nodes[0] if len(nodes) == 1 else replay.add(_ATEN.cat.default, (nodes, 0))


def _probabilities(
    replay: Replay, scores: fx.Node, detection: Detection, classes: tuple[int, ...]
) -> tuple[fx.Node, tuple[int, ...]]:
    if detection.activation == "sigmoid":
        scores = replay.add(_ATEN.sigmoid.default, (scores,))
    if detection.activation == "softmax":
        scores = replay.add(_ATEN.softmax.int, (scores, -1))
    if detection.background is None:
        return scores, classes
    count, dropped = len(classes), detection.background % len(classes)
    pieces = [(start, stop) for start, stop in ((0, dropped), (dropped + 1, count)) if start < stop]
    cut = [replay.add(_ATEN.slice.Tensor, (scores, 2, start, stop)) for start, stop in pieces]
    kept = cut[0] if len(cut) == 1 else replay.add(_ATEN.cat.default, (cut, 2))
    return kept, (*classes[:dropped], *classes[dropped + 1 :])


def _signed(part: fx.GraphModule, module: fx.GraphModule, facts: dense_part.Facts, example: Example) -> DensePart:
    """Names for inputs and outputs; several images become one input."""
    placed = [node.name for node in dense_part.placeholders(module)]
    taken = tuple(placed.index(node.name) for node in dense_part.placeholders(part))
    names = tuple(value_names.of_inputs(example)[index] for index in taken)
    if stack_of(example) is not None:
        _join_images(part)
        taken, names = (0,), ("images",)
    ordered = bool(facts.choices & dense_part.before(facts.nodes, lambda node: node in facts.layers))
    return DensePart(part, names, taken, (BOXES, SCORES), False, (ordered, ordered))


def stack_of(example: Example) -> Example | None:
    """The example with its list of images as one tensor; None where it is no list of images of one size."""
    images = example.args[0] if len(example.args) == 1 and not example.kwargs else None
    if not isinstance(images, (list, tuple)) or not all(isinstance(item, Tensor) for item in images):
        return None
    if len({item.shape for item in images}) != 1:
        return None
    return Example((torch.stack(list(images)),))


def _join_images(part: fx.GraphModule) -> None:
    """One batch of images in place of one input for each."""
    olds = dense_part.placeholders(part)
    info = graph.info(olds[0])
    with part.graph.inserting_before(next(iter(part.graph.nodes))):
        images = part.graph.placeholder("images")
        images.meta["val"] = graph.TensorInfo((len(olds), *info.shape), info.dtype)
    for at, old in enumerate(olds):
        with part.graph.inserting_after(old):
            single = part.graph.call_function(_ATEN.select.int, (images, 0, at))
        single.meta["val"] = info
        old.replace_all_uses_with(single)
        part.graph.erase_node(old)
    part.recompile()


def _levels(boxes: fx.Node) -> tuple[int, ...]:
    """The sizes of the join along the anchors that the boxes come from, looking through ops that leave rows alone."""
    total = graph.info(boxes).shape[-2]
    node: fx.Node | None = boxes
    while node is not None:
        parts = [item for item in node.all_input_nodes if isinstance(item.meta.get("val"), graph.TensorInfo)]
        sizes = tuple(graph.info(part).shape[-2] for part in parts if len(graph.info(part).shape) > 1)
        if graph.op_name(node) == "aten.cat" and len(sizes) > 1 and sum(sizes) == total:
            return sizes
        node = next(
            (item for item in node.all_input_nodes if any(total in it.shape for it in graph.infos(item) if it)), None
        )
    return (total,)
