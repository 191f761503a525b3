"""Data sets for detectors: VOC, COCO and YOLO folders, and scenes drawn from a seed; knows no model, no pruning."""

from effp_fx.data.dataset import Box, DetectionDataset, Record, Target, Transform
from effp_fx.data.drawing import Difficulty
from effp_fx.data.loading import collate, loader
from effp_fx.data.problems import DataReport, Problem
from effp_fx.data.scenes import write_scenes
from effp_fx.data.voc import VOC_CLASSES, open_voc

__all__ = [
    "VOC_CLASSES",
    "Box",
    "DataReport",
    "DetectionDataset",
    "Difficulty",
    "Problem",
    "Record",
    "Target",
    "Transform",
    "collate",
    "loader",
    "open_voc",
    "write_scenes",
]
