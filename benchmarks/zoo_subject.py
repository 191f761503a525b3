"""The model that a benchmark measures: built from its spec, every weight that matters randomised, with its inputs."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from effp_fx.inputs import Example
from effp_fx.models import registry
from effp_fx.models.randomise import randomise

SEED = 0


def subject(spec: str) -> tuple[nn.Module, Example, registry.Built]:
    """Build a model spec in eval mode, always with the same weights: (model, example inputs, how it was built)."""
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = registry.build(spec)
    model = randomise(built.model.eval(), seed=SEED)
    return model, built.example(), built
