"""EFFP and its rivals, each from its published description, over the same channel groups, costs and targets."""

from effp_fx.methods.base import (
    METHODS,
    Attach,
    Budget,
    Method,
    Outcome,
    Rider,
    Trainer,
    find_method,
    register_method,
)
from effp_fx.methods.chex import CHEX
from effp_fx.methods.dense import Dense
from effp_fx.methods.eagleeye import EagleEye
from effp_fx.methods.effp import EFFP, without_regrowing
from effp_fx.methods.group_fisher import GroupFisher
from effp_fx.methods.hrank import HRank
from effp_fx.methods.one_shot import OneShot
from effp_fx.methods.oto import OTO
from effp_fx.methods.slimming import Slimming
from effp_fx.methods.soft_masking import SoftMasking
from effp_fx.methods.tcfp import TCFP
from effp_fx.methods.torch_pruning import TorchPruning
from effp_fx.methods.uniform import Uniform

_OWN: dict[str, Method] = {
    "dense": Dense(),
    "uniform": Uniform(),
    "l1": OneShot("l1"),
    "gamma": OneShot("gamma"),
    "hrank": HRank(),
    "eagleeye": EagleEye(),
    "slimming": Slimming(),
    "tcfp": TCFP(),
    "group_fisher": GroupFisher(),
    "torch_pruning": TorchPruning(),
    "oto": OTO(),
    "chex": CHEX(),
    "soft_masking": SoftMasking(),
    "effp_no_regrow": without_regrowing(),
    "effp": EFFP(),
}
for _name, _method in _OWN.items():
    register_method(_name, _method)

__all__ = [
    "CHEX",
    "EFFP",
    "METHODS",
    "OTO",
    "TCFP",
    "Attach",
    "Budget",
    "Dense",
    "EagleEye",
    "GroupFisher",
    "HRank",
    "Method",
    "OneShot",
    "Outcome",
    "Rider",
    "Slimming",
    "SoftMasking",
    "TorchPruning",
    "Trainer",
    "Uniform",
    "find_method",
    "register_method",
    "without_regrowing",
]
