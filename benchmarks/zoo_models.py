"""The models of the zoo, as specs by group: what `make zoo` traces, prunes and checks, one row each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ZooModel:
    """One row of the zoo."""

    spec: str
    """What ``effp_fx.models.build`` makes it from."""
    group: str
    is_cnn: bool = True
    """Convolutions do the work, so a target of 0.5 must be met; False for transformers and hybrids."""


# Images of 320 pixels in place of 800, and fewer proposals, for a CPU; thresholds so low that a random network detects
# something: with an empty result nothing would be compared.
_SMALL = "min_size=320&max_size=320"
_TWO_STAGE = f"{_SMALL}&box_score_thresh=0.001&box_detections_per_img=10&rpn_post_nms_top_n_test=50"
_ONE_STAGE = f"{_SMALL}&score_thresh=0.001&detections_per_img=50&topk_candidates=100"
_SINGLE_SHOT = "score_thresh=0.001&detections_per_img=50&topk_candidates=100"

_DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": _TWO_STAGE,
    "fasterrcnn_mobilenet_v3_large_fpn": _TWO_STAGE,
    "fasterrcnn_resnet50_fpn": _TWO_STAGE,
    "fasterrcnn_resnet50_fpn_v2": _TWO_STAGE,
    "fcos_resnet50_fpn": _ONE_STAGE,
    "keypointrcnn_resnet50_fpn": _TWO_STAGE,
    "maskrcnn_resnet50_fpn": _TWO_STAGE,
    "maskrcnn_resnet50_fpn_v2": _TWO_STAGE,
    "retinanet_resnet50_fpn": _ONE_STAGE,
    "retinanet_resnet50_fpn_v2": _ONE_STAGE,
    "ssd300_vgg16": _SINGLE_SHOT,
    "ssdlite320_mobilenet_v3_large": _SINGLE_SHOT,
}
_NO_BATCH_NORM = ("ssd300_vgg16",)
_SEGMENTATION = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet101",
    "deeplabv3_resnet50",
    "fcn_resnet101",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
)
_CLASSIFICATION = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "densenet161",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "mc3_18",
    "mnasnet1_0",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "r2plus1d_18",
    "r3d_18",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "s3d",
    "shufflenet_v2_x1_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "vgg11",
    "vgg13_bn",
    "wide_resnet50_2",
)
_TRANSFORMER_CLASSIFICATION = ("maxvit_t", "swin_t", "swin_v2_t", "swin3d_t", "vit_b_32")
_ULTRALYTICS = ("yolov3", "yolov5n", "yolov6n", "yolov8n", "yolov8s", "yolov9t", "yolov9c", "yolov10n", "yolo11n")
_TIMM = (
    "convnextv2_atto",
    "cs3darknet_s",
    "cspresnet50",
    "darknet53",
    "densenetblur121d",
    "dla34",
    "dpn68",
    "ecaresnet26t",
    "efficientnet_lite0",
    "ese_vovnet19b_dw",
    "fasternet_t0",
    "fbnetc_100",
    "gernet_s",
    "ghostnetv2_100",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_next_atto",
    "lcnet_050",
    "legacy_seresnet18",
    "mambaout_femto",
    "mixnet_s",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "nf_resnet26",
    "rdnet_tiny",
    "regnetz_b16",
    "repghostnet_050",
    "repvgg_a0",
    "repvit_m0_9",
    "res2net50_26w_4s",
    "resnest14d",
    "resnetv2_50",
    "rexnet_100",
    "selecsls42b",
    "skresnet18",
    "starnet_s1",
    "tinynet_a",
    "tresnet_m",
    "xception41",
)
_HUGGING_FACE = ("detr", "yolos", "rt_detr")
_MORE_HUGGING_FACE = ("conditional_detr", "d_fine", "rt_detr_v2", "deformable_detr")


def zoo() -> list[ZooModel]:
    """Return every row, in the order in which the table shows them."""
    frozen = [name for name in _DETECTORS if name not in _NO_BATCH_NORM]
    return [
        *(ZooModel(f"torchvision:{name}?{options}", "torchvision detectors") for name, options in _DETECTORS.items()),
        *(
            ZooModel(f"torchvision:{name}?norm=frozen&{_DETECTORS[name]}", "torchvision detectors, frozen batch norm")
            for name in frozen
        ),
        *(ZooModel(f"torchvision:{name}", "torchvision segmentation") for name in _SEGMENTATION),
        *(ZooModel(f"torchvision:{name}", "torchvision classification") for name in _CLASSIFICATION),
        *(
            ZooModel(f"torchvision:{n}", "torchvision classification", is_cnn=False)
            for n in _TRANSFORMER_CLASSIFICATION
        ),
        *(ZooModel(f"ultralytics:{name}.yaml", "Ultralytics") for name in _ULTRALYTICS),
        ZooModel("ultralytics:rtdetr-l.yaml", "Ultralytics", is_cnn=False),
        *(ZooModel(f"timm:{name}", "timm") for name in _TIMM),
        *(ZooModel(f"hf:{name}", "Hugging Face", is_cnn=False) for name in (*_HUGGING_FACE, *_MORE_HUGGING_FACE)),
    ]
