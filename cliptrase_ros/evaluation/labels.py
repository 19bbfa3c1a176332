"""What the values in label images mean: tables from value to class index."""

from collections.abc import Mapping

import numpy as np

#: Truth of a pixel that never counts.
IGNORED = -1
#: Truth of the border drawn around objects; the paper's protocol counts it as background.
BORDER = -2
#: Truth of a pixel that belongs to none of the classes.
BACKGROUND = -3

#: Values a label image may hold: 16 bits.
VALUES = 65536

# The ids of COCO-Stuff's label images, 0..181, at which no class exists.
_COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
# Of Cityscapes's 34 ids those that are evaluated, in the order of its train ids.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def values_table(meaning: Mapping[int, int], otherwise: int = IGNORED) -> np.ndarray:
    """Make the table that turns the values of label images into truth, int16 (65536,).

    Args:
        meaning: Class index, or a negative constant of this module, by value.
        otherwise: What all other values mean.
    """
    table = np.full(VALUES, otherwise, np.int16)
    table[list(meaning)] = list(meaning.values())
    return table


def _consecutive(classes: int, first: int = 0) -> dict[int, int]:
    return {first + index: index for index in range(classes)}


def _coco_ids() -> dict[int, int]:
    used = [value for value in range(182) if value not in _COCO_GAPS]
    return {value: index for index, value in enumerate(used)}


def _coco80_as_published(stuff: Mapping[int, int]) -> np.ndarray:
    # The published evaluation reads maps of 171 classes, takes the first 80 for the classes and
    # index 80 for the background. That index belongs to the first stuff class, which therefore
    # counts as background, as unlabelled pixels do. All other stuff does not count.
    meaning = {value: index for value, index in stuff.items() if index < 80}
    first_stuff = {value: BACKGROUND for value, index in stuff.items() if index == 80}
    return values_table(meaning | first_stuff | {255: BACKGROUND})


def _coco_objects(stuff: Mapping[int, int]) -> np.ndarray:
    return values_table({v: i for v, i in stuff.items() if i < 80}, otherwise=BACKGROUND)


#: The conventions of label images by name.
CONVENTIONS: dict[str, np.ndarray] = {
    # PASCAL VOC as distributed: 0 background, 1..20, 255 border.
    'voc': values_table(_consecutive(20, 1) | {0: BACKGROUND, 255: BORDER}),
    # Converted for detectron2: 0..19; background and border are both 255.
    'voc from 0': values_table(_consecutive(20) | {255: BACKGROUND}),
    # The same with background: 0..19, 20 background, 255 border.
    'voc from 0 with background': values_table(_consecutive(20) | {20: BACKGROUND, 255: BORDER}),
    # PASCAL Context: 0 everything else, 1..59 in alphabetical order.
    'pc59': values_table(_consecutive(59, 1) | {0: BACKGROUND}),
    'pc59 from 0': values_table(_consecutive(59) | {255: BACKGROUND}),
    'pc459 from 0': values_table(_consecutive(459)),
    # ADE20K's scene parsing challenge: 0 is no class.
    'ade150': values_table(_consecutive(150, 1)),
    'ade150 from 0': values_table(_consecutive(150)),
    'ade847 from 0': values_table(_consecutive(847)),
    # COCO-Stuff: category id - 1 as distributed, or 0..170; 255 is unlabelled.
    'coco171': values_table(_coco_ids()),
    'coco171 from 0': values_table(_consecutive(171)),
    'coco80': _coco80_as_published(_coco_ids()),
    'coco80 from 0': _coco80_as_published(_consecutive(171)),
    'coco object': _coco_objects(_coco_ids()),
    'coco object from 0': _coco_objects(_consecutive(171)),
    # Converted for COCO-Object: 0 background, 1..80.
    'coco object from 1': values_table(_consecutive(80, 1), otherwise=BACKGROUND),
    'cityscapes': values_table({value: index for index, value in enumerate(_CITYSCAPES_IDS)}),
    'cityscapes from 0': values_table(_consecutive(19)),
}
