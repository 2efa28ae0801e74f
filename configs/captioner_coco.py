"""A captioner on COCO: Show, Attend and Tell, and Show and Tell beside it.

    python -m vljax.train --config configs/captioner_coco.py --workdir runs/captioner
    python -m vljax.train --config configs/captioner_coco.py:/data/coco --workdir runs/coco

The first trains both on captions of the embedded scenes, after a trunk that learns to recognise
what they show: some 7 minutes of one core. Expected there, one seed, 500 pictures: CIDEr 305 ± 7
(70 without attention), 68 % of named pairs of colour and shape are there. The second runs the
published setting of soft attention on COCO 2014: `annotations/captions_train2014.json`, or
Karpathy's `dataset_coco.json` (then add `--config.data.split=train --config.data.eval_split=test`),
and the features of ResNet-152 by the photographs' names (`features/*.npz`). To make them from the
photographs add `--config.model.trunk.kind=resnet152
--config.pretrained.trunk=resnet152-394f9c45.pth`. Expected by the paper, of VGG's features: BLEU-4
24.3, METEOR 23.90; it has not been run here.
"""

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import captioner


@on_scenes_without_data(captioner.get_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe; `data_dir` holds captions and features."""
    config = captioner.get_published_config(data_dir)
    config.about = "Show, Attend and Tell on COCO: features of ResNet-152, an LSTM 1,800 wide."
    return config
