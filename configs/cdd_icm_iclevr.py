"""CDD-ICM on i-CLEVR (6,000 dialogues of five turns, 128 px): tables 1 and 2, right-hand columns.

    python -m vljax.train --config configs/cdd_icm_iclevr.py --workdir runs/dialogue
    python -m vljax.train --config configs/cdd_icm_iclevr.py:/data/iCLEVR --workdir runs/iclevr \
        --config.pretrained.clip=clip-vit-base-patch32

The first trains a small model on the embedded scenes, some 15 minutes of one core. Expected there,
48 dialogues, free-running, three seeds: F1 62, 66, 65 ± 4, RSIM 27, 32, 31 ± 2 (copies of the
reference 0; without ICM 63 and 30). There ICM of stage 2 has a composer of its own, for among the 8
turns of a batch it needs colours alone and would make the rest forgotten
(`--config.model.own_matcher=False --config.icm_logit_scale=1.0`, as published for batches of 256:
29 and 14 with φ = 3, where its own makes 52 and 26). The second runs the published setting on a
folder with `clevr_{train,val,test}.h5` (GeNeVA_datasets). Expected by the paper: F1 99.96, RSIM
85.66; it has not been run here. Rows of table 2 are flags: `--config.with_icm=False`,
`--config.with_icm_guidance=False`, `--config.dropped.share=0` with
`--config.guidance.classifier_free=1`, `--config.backbone_rate=0` or `=1`.

Data in files of the same form that GeNeVA's detector was not trained on are judged by one of the
run's own (`--config.localizer.width=64`, with `localizer.classes` and `localizer.coordinates`). On
scenes it finds what is there with an F1 of 97 (240 pictures) after two CPU minutes, and places it
0.04 of a picture off.
"""

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import cdd_icm


@on_scenes_without_data(cdd_icm.get_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe; `data_dir` holds the HDF5 files."""
    config = cdd_icm.get_published_config("iclevr", data_dir)
    config.about = "CDD-ICM on i-CLEVR, as published: CLIP ViT-B/32, 128 px."
    return config
