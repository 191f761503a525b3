"""A cut that verification refuses is explained: the op at which the runs part is found and its channels are frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effp_fx import api


class ScaledBySize(nn.Module):
    """Attention with one head whose scale is a tensor made of the size of the head: no trial looks into tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.query, self.key, self.value = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 12, 1)
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        scores = (query.mT @ key / torch.tensor(float(query.shape[1])).sqrt()).softmax(-1)
        return self.last((value @ scores.mT).unflatten(2, x.shape[2:]))


def test_a_scale_computed_from_a_size_freezes_the_head_and_the_rest_is_cut_exactly() -> None:
    result = api.prune_reported(ScaledBySize(), torch.rand(1, 3, 16, 16), target_flops=0.6)
    assert result.verification.equal
    assert result.verification.max_relative_error < 1e-12
    assert result.model.query.out_channels == result.model.key.out_channels == 8
    assert result.model.stem.out_channels < 16 or result.model.value.out_channels < 12
    frozen = {item.tensor: item for item in result.trace.frozen}
    assert "its value changes when channels go" in frozen["query.weight"].reason
    assert frozen["query.weight"].op == "aten.clone"
    assert "test_diagnose.py" in frozen["query.weight"].source
