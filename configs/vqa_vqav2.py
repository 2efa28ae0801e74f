r"""An answerer alone, on VQA v2: the answering model of PJ-X, or another of the lecture decks'.

    python -m vljax.train --config configs/vqa_vqav2.py --workdir runs/vqa \
        --config.model.answerer.kind=film
    python -m vljax.train --config configs/vqa_vqav2.py:/data/vqa_v2 --workdir runs/vqa_v2

The first trains on questions about the embedded scenes; kinds are 'attention' (of it `rounds` = 2
is stacked attention, 0 is none; `fusion` one of eight), 'film', 'relation', 'coattention',
'bilinear' and 'modules'. Its first stage, the trunk, is the same for all: where one run has it,
another takes it from there by `--config.pretrained.trunk=runs/vqa/weights/recognise.safetensors`
and the same of `recogniser`. The second runs the published setting on VQA v2's files and
ResNet-152's features; it has not been run here. Expected on scenes, percent right of 2,000 examples
of one seed, 3 CPU minutes after the trunk's 5:

| kind | all | colour | shape | count | exist | relation | background |
|---|---|---|---|---|---|---|---|
| attention | 75.0 ± 1.0 | 64 ± 3 | 75 ± 2 | 83 ± 2 | 72 ± 2 | 47 ± 3 | 100 |
| attention, `rounds` = 0 | 71.8 ± 1.0 | 63 ± 3 | 57 ± 3 | 68 ± 3 | 85 ± 2 | 49 ± 3 | 100 |

Two more seeds of attention: 75.2 ± 1.0 and, on another trunk, 70.4 ± 1.0 (relations 43 ± 3 both).
Of the other kinds 'film' came to 62 and, second seed, 59.8 ± 1.1 (relations 53 ± 3 and 47 ± 3);
'relation' with `relation.cells` = 5, on that other trunk, to 58.8 ± 1.1 (relations 53 ± 3, colours
30, shapes 32). 'coattention' and 'bilinear' have not been trained to numbers, nor has 'modules',
which takes over a second a step on a CPU.
"""

from ml_collections import ConfigDict

from vljax.systems import pjx


def get_config(data_dir: str | None = None) -> ConfigDict:
    """The recipe; `data_dir` holds the data set's files and features."""
    if data_dir is None:
        config = pjx.get_config()
        config.about = "Questions about the embedded scenes, answered: a small recipe."
        config.ablations = False
        for name in ("explain", "explain_without_attention", "describe"):
            del config.stages[name]
        return config
    config = pjx.get_published_config("vqa_v2", data_dir)
    config.about = "Answers on VQA v2: features of ResNet-152, 2,048 wide."
    return config
