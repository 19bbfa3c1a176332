"""The benchmarks as facts: classes, background, where files lie, what was published on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

_NAMES = Path(__file__).parent / 'names'


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset lies on people's disks.

    Attributes:
        homes: Folders of the dataset under the root. The first that has the files is taken; the
            root itself is tried last.
        images: Folder of the images under the home; files may lie deeper.
        labels: Folder of the label images, likewise.
        convention: What label values mean, a key of `labels.CONVENTIONS`.
        image_suffix: End of an image's name; what is before it equals the label image's.
        label_suffix: End of a label image's name.
        listing: File under the home with the names to evaluate, one a line; without one, whatever
            has a label image is evaluated.
    """

    homes: tuple[str, ...]
    images: str
    labels: str
    convention: str
    image_suffix: str = '.jpg'
    label_suffix: str = '.png'
    listing: str = ''


@dataclass(frozen=True)
class Published:
    """What a method reached, in percent: pAcc, mAcc, fwIoU, mIoU; None where it is not told."""

    pixel_accuracy: float | None
    mean_accuracy: float | None
    frequency_weighted_iou: float | None
    mean_iou: float


@dataclass(frozen=True)
class Dataset:
    """A benchmark.

    Attributes:
        classes: Phrases by index; `name = synonym, synonym` (or `name: ...`) has synonyms, commas
            alone belong to the phrase.
        background: Phrases that stand for "none of the classes"; empty where pixels of none of the
            classes do not count.
        layouts: Ways in which its files may lie, tried in order.
        images: How many are evaluated; 0 where that is not fixed.
        image_prior: Whether CLIPtrase multiplies logits by those of the [CLS] token here.
        published: What CLIPtrase reached, by the side of the network's input, pixels.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    background: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    images: int = 0
    image_prior: bool = False
    published: Mapping[int, Published] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How SC-CLIP is run on a dataset, and what it reached so.

    Attributes:
        classes, background: Phrases in place of the dataset's, of the same classes.
        mean_iou: What ViT-B/16 reached, percent.
        logit_scale, min_area: As `Method` has them.
        min_confidence: Pixels less probable than this are background.
        resolution: Shorter side fed to CLIP, pixels.
    """

    classes: tuple[str, ...]
    background: tuple[str, ...]
    mean_iou: float
    logit_scale: float = 40.0
    min_confidence: float = 0.0
    min_area: float = 0.0
    resolution: int = 336

    @property
    def published(self) -> Mapping[int, Published]:
        """What it reached, as in `Dataset`."""
        return {self.resolution: Published(None, None, None, self.mean_iou)}


def _read_names(file: str) -> tuple[str, ...]:
    return tuple((_NAMES / f'{file}.txt').read_text().splitlines())


_VOC12 = ('VOCdevkit/VOC2012', 'VOC2012')
_VOC10 = ('VOCdevkit/VOC2010', 'VOC2010')
_ADE = ('ADEChallengeData2016', 'ade/ADEChallengeData2016')
_COCO = ('coco', 'coco_stuff164k', 'coco-stuff', 'cocostuff')
_OBJECT = ('coco_object', *_COCO)

# MMSegmentation's layouts (and the datasets' own) come before those converted for detectron2:
# where both are there, the former tell background from border.
_VOC = (
    Layout(
        *(_VOC12, 'JPEGImages', 'SegmentationClass', 'voc'),
        listing='ImageSets/Segmentation/val.txt',
    ),
    Layout(_VOC12, 'JPEGImages', 'annotations_detectron2_bg/val', 'voc from 0 with background'),
    Layout(_VOC12, 'images_detectron2/val', 'annotations_detectron2/val', 'voc from 0'),
    Layout(_VOC12, 'JPEGImages', 'annotations_detectron2/val', 'voc from 0'),
)
_PC59 = (
    Layout(
        *(_VOC10, 'JPEGImages', 'SegmentationClassContext', 'pc59'),
        listing='ImageSets/SegmentationContext/val.txt',
    ),
    Layout(('pcontext',), 'val/image', 'val/label', 'pc59 from 0'),
    Layout(_VOC10, 'JPEGImages', 'annotations_detectron2/pc59_val', 'pc59 from 0'),
)
# 16 bits a pixel: TIFF by custom, PNG as well.
_PC459 = tuple(
    Layout(homes, images, labels, 'pc459 from 0', label_suffix=suffix)
    for homes, images, labels in (
        (('pcontext_full',), 'val/image', 'val/label'),
        (_VOC10, 'JPEGImages', 'annotations_detectron2/pc459_val'),
    )
    for suffix in ('.tif', '.png')
)
_ADE150 = (
    Layout(_ADE, 'images/validation', 'annotations/validation', 'ade150'),
    Layout(_ADE, 'images/validation', 'annotations_detectron2/validation', 'ade150 from 0'),
)
_ADE847 = tuple(
    Layout(
        *(('ADE20K_2021_17_01',), 'images_detectron2/validation'),
        *('annotations_detectron2/validation', 'ade847 from 0'),
        label_suffix=suffix,
    )
    for suffix in ('.tif', '.png')
)
_CITYSCAPES = tuple(
    Layout(
        *(('cityscapes',), 'leftImg8bit/val', 'gtFine/val', convention),
        image_suffix='_leftImg8bit.png',
        label_suffix=f'_gtFine_{kind}.png',
    )
    for convention, kind in (('cityscapes from 0', 'labelTrainIds'), ('cityscapes', 'labelIds'))
)


def _coco(convention: str) -> tuple[Layout, ...]:
    """Where COCO-Stuff's maps lie: detectron2, MMSegmentation, as distributed."""
    from_0 = f'{convention} from 0'
    return (
        Layout(_COCO, 'val2017', 'stuffthingmaps_detectron2/val2017', from_0),
        Layout(_COCO, 'images/val2017', 'annotations_detectron2/val2017', from_0),
        Layout(
            *(_COCO, 'images/val2017', 'annotations/val2017', from_0),
            label_suffix='_labelTrainIds.png',
        ),
        Layout(_COCO, 'val2017', 'stuffthingmaps/val2017', convention),
        Layout(_COCO, 'images/val2017', 'annotations/val2017', convention),
    )


_COCO_OBJECT = (
    Layout(
        *(_OBJECT, 'images/val2017', 'annotations/val2017', 'coco object from 1'),
        label_suffix='_instanceTrainIds.png',
    ),
    *_coco('coco object'),
)
_COCO_NAMES = _read_names('coco171')
_VOC_NAMES = _read_names('voc20')
_CONTEXT_NAMES = _read_names('pc59')
_ADE_NAMES = _read_names('ade150')
_CITYSCAPES_NAMES = _read_names('cityscapes')
# What SCLIP and most methods after it use.
_OBJECT_BACKGROUND = _read_names('background_object')

# Of ViT-B/16 with inputs of 224 and of 336 pixels (README of the authors' repository).
_PUBLISHED = {
    name: {224: Published(*at_224), 336: Published(*at_336)}
    for name, at_224, at_336 in (
        ('coco171', (38.9, 44.47, 26.87, 22.84), (40.14, 45.09, 27.96, 24.06)),
        ('voc20', (89.68, 91.4, 82.49, 80.95), (89.51, 91.77, 82.15, 81.2)),
        ('pc59', (58.94, 57.08, 45.28, 33.83), (60.15, 57.47, 46.64, 34.92)),
        ('pc459', (44.18, 21.53, 35.22, 9.36), (45.61, 21.26, 36.66, 9.95)),
        ('ade150', (38.57, 39.17, 27.96, 16.35), (39.92, 37.75, 29.17, 17.04)),
        ('ade847', (25.45, 18.78, 18.99, 6.31), (26.73, 17.99, 20.3, 5.89)),
        ('coco80', (50.08, 62.5, 38.19, 43.56), (50.01, 62.55, 38.24, 44.84)),
        ('voc21', (78.63, 84.11, 67.67, 50.88), (79.93, 85.24, 69.1, 53.04)),
        ('pc60', (52.14, 56.08, 37.61, 29.87), (53.21, 56.43, 38.76, 30.79)),
    )
}

DATASETS: dict[str, Dataset] = {
    dataset.name: replace(dataset, published=_PUBLISHED.get(dataset.name, {}))
    for dataset in (
        Dataset('coco171', 'COCO-Stuff 171', _COCO_NAMES, (), _coco('coco171'), 5000),
        Dataset('voc20', 'PASCAL VOC 20', _VOC_NAMES, (), _VOC, 1449, image_prior=True),
        Dataset('pc59', 'PASCAL Context 59', _CONTEXT_NAMES, (), _PC59),
        Dataset('pc459', 'PASCAL Context 459', _read_names('pc459'), (), _PC459),
        Dataset('ade150', 'ADE20K 150', _ADE_NAMES, (), _ADE150, 2000),
        # A line of synonyms is one phrase, as in the published evaluation.
        Dataset('ade847', 'ADE20K 847', _read_names('ade847'), (), _ADE847, 2000),
        Dataset(
            'coco80',
            'COCO-Object, as the paper counts',
            _COCO_NAMES[:80],
            _read_names('background_coco80'),
            _coco('coco80'),
            5000,
        ),
        Dataset('voc21', 'PASCAL VOC 21', _VOC_NAMES, _read_names('background_voc21'), _VOC, 1449),
        Dataset('pc60', 'PASCAL Context 60', _CONTEXT_NAMES, ('background',), _PC59),
        Dataset(
            'coco81-object',
            'COCO-Object',
            _COCO_NAMES[:80],
            # `bed` is a class here.
            tuple(name for name in _OBJECT_BACKGROUND if name != 'bed'),
            _COCO_OBJECT,
            5000,
        ),
        Dataset('cityscapes', 'Cityscapes', _CITYSCAPES_NAMES, (), _CITYSCAPES, 500),
    )
}


def _changed(names: tuple[str, ...], **changes: str) -> tuple[str, ...]:
    return tuple(changes.get(name, name) for name in names)


def _without_spaces(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.replace(' ', '') for name in names)


_PERSON = 'person = ' + ', '.join(
    f'person in {what}' for what in ('shirt', 'jeans', 'dress', 'sweater', 'skirt', 'jacket')
)
_VOC_RECIPE_NAMES = _changed(
    _VOC_NAMES,
    boat='ship',
    diningtable='table',
    person=_PERSON,
    tv='television monitor = tv monitor, monitor, television, screen',
)
_OBJECT_RECIPE_NAMES = _changed(_COCO_NAMES[:80], person=f'{_PERSON}, body')
_CONTEXT_RECIPE_NAMES = _changed(_CONTEXT_NAMES, diningtable='table')

#: How SC-CLIP is run, by the name of the dataset: settings of the authors' repository, words of
#: SCLIP's, which it builds upon, and figures as notes on a later paper list them.
SC_CLIP = {
    'voc21': Recipe(
        *(_VOC_RECIPE_NAMES, _OBJECT_BACKGROUND, 64.6),
        logit_scale=50.0,
        min_confidence=0.15,
        min_area=0.1,
    ),
    'pc60': Recipe(_CONTEXT_RECIPE_NAMES, ('background',), 36.8, min_confidence=0.15),
    'coco81-object': Recipe(
        *(_OBJECT_RECIPE_NAMES, _OBJECT_BACKGROUND, 37.7), logit_scale=55.0, min_confidence=0.35
    ),
    'voc20': Recipe(_VOC_RECIPE_NAMES, (), 84.3),
    'pc59': Recipe(_CONTEXT_RECIPE_NAMES, (), 40.1),
    'coco171': Recipe(_without_spaces(_COCO_NAMES), (), 26.6),
    'cityscapes': Recipe(_without_spaces(_CITYSCAPES_NAMES), (), 41.0, resolution=560),
    'ade150': Recipe(_without_spaces(_ADE_NAMES), (), 20.1),
}

#: Rendered rooms by name: their split and difficulty in `toybox.scenes`.
TOYBOX = {
    'toybox': ('held_out', 'easy'),
    'toybox-hard': ('held_out', 'hard'),
    'toybox-unseen': ('unseen_combinations', 'easy'),
}

#: The nine of the paper, in the order of its table.
PAPER = tuple(name for name, dataset in DATASETS.items() if dataset.published)

#: The eight that methods without training are compared on, in the order of their tables.
EIGHT = tuple(SC_CLIP)
