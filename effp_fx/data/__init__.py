"""Data sets for detectors: VOC, COCO and YOLO folders, and scenes drawn from a seed; knows no model, no pruning."""

from effp_fx.data.augment import BoxTransform, as_it_is, light_augmentation, ssd_augmentation
from effp_fx.data.coco import open_coco
from effp_fx.data.dataset import Box, DetectionDataset, Record, Target, Transform
from effp_fx.data.drawing import Difficulty
from effp_fx.data.loading import collate, loader, set_epoch
from effp_fx.data.problems import DataReport, Problem
from effp_fx.data.scenes import write_scenes
from effp_fx.data.sources import open_dataset, splits
from effp_fx.data.voc import VOC_CLASSES, open_voc
from effp_fx.data.yolo import open_yolo

__all__ = [
    "VOC_CLASSES",
    "Box",
    "BoxTransform",
    "DataReport",
    "DetectionDataset",
    "Difficulty",
    "Problem",
    "Record",
    "Target",
    "Transform",
    "as_it_is",
    "collate",
    "light_augmentation",
    "loader",
    "open_coco",
    "open_dataset",
    "open_voc",
    "open_yolo",
    "set_epoch",
    "splits",
    "ssd_augmentation",
    "write_scenes",
]
