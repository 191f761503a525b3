"""Ultralytics: `prune_trainer(yolo, target_flops=0.5)`, and `yolo.train(...)` prunes while it trains."""

from effp_fx.integrations.ultralytics.attach import prune_trainer
from effp_fx.integrations.ultralytics.pruning import Pruning

__all__ = ["Pruning", "prune_trainer"]
