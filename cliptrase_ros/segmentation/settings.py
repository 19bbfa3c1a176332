"""Settings of the engine, each declared once, and the method that they stand for.

The node's parameters, the options of the command line, `config/segment.yaml`, the table in
docs/node.md and the checks of values are made from the declarations here, by `settings_of`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

#: Shorter side fed to CLIP, pixels.
RESOLUTION_RANGE = (64, 1024)

#: Largest ratio of an image's longer to its shorter side.
MAX_ASPECT_RATIO = 32

#: Largest share of what was before: more would never forget.
MAX_SMOOTHING = 0.95

#: Number formats of the image tower.
PRECISIONS = ('float32', 'float16', 'bfloat16')


def is_too_elongated(height: int, width: int) -> bool:
    """Whether an image is beyond `MAX_ASPECT_RATIO`."""
    return max(height, width) > MAX_ASPECT_RATIO * min(height, width)


@dataclass(frozen=True)
class Setting:
    """All that is to be known of a setting; declared by `setting`, read by `settings_of`.

    Attributes:
        doc: What it does, in a sentence or two. What is typed literally stands in single quotes.
        name: Of the field of the dataclass that declares it, as are `type` and `default`.
        live: Whether a running node takes a new value.
        limits: Smallest and largest value, both included; None for no limits.
        also: Values there are beside those within the limits, all of them below.
        unit: What a number counts, in the plural; or what a text names, for instance a folder.
        choices: The values there are; () for any.
        constraints: What else a value has to be, for people.
        entry: For a list that may also be given as one string with entries separated by `;`: what
            makes a value of the text of an entry.
    """

    doc: str
    name: str = ''
    type: Any = str
    default: Any = ''
    live: bool = False
    limits: tuple[float, float] | None = None
    also: tuple[float, ...] = ()
    unit: str = ''
    choices: tuple[str, ...] = ()
    constraints: str = ''
    entry: Callable[[str], Any] | None = None

    @property
    def rule(self) -> str:
        """What a value has to be, for people; '' where its type says it all."""
        if self.choices:
            return f'one of {", ".join(self.choices)}'
        if self.limits is None:
            return self.constraints
        also = ''.join(f'{value:g}, ' for value in self.also) + ('or ' if self.also else '')
        unit = f' {self.unit}' if self.unit else ''
        low, high = self.limits
        return f'{also}{low:.10g} to {high:.10g}{unit}'

    def check(self, value: Any) -> None:
        """Raise ValueError for a value of another type, out of range, or none of the choices."""
        kind = _KINDS.get(self.type)
        if kind is not None and (
            isinstance(value, bool) != (self.type is bool) or not isinstance(value, kind[0])
        ):
            rule = f', {self.rule}' if self.rule else ''
            raise ValueError(f'{self.name} is {value!r}; it must be {kind[1]}{rule}')
        if self.choices:
            if value not in self.choices:
                raise ValueError(f'{self.name} is {value!r}; it must be {self.rule}')
        elif self.limits is not None:
            low, high = self.limits
            if not (low <= value <= high or value in self.also):
                raise ValueError(f'{self.name} is {value}; it must be {self.rule}')


# Which values each type takes, NumPy's numbers too, and how it is called.
_KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, 'True or False'),
    int: (Integral, 'a whole number'),
    float: (Real, 'a number'),
    str: (str, 'a text'),
}


def setting(default: Any, doc: str, **attributes: Any) -> Any:
    """Declare a field of a dataclass as a setting; **attributes: further ones of `Setting`."""
    return field(default=default, metadata={'setting': Setting(doc, **attributes)})


def settings_of(declaration: type) -> tuple[Setting, ...]:
    """The settings that a dataclass declares, in order.

    Fields that are no settings, because only benchmarks choose them, are left out.
    """
    return tuple(
        replace(f.metadata['setting'], name=f.name, type=f.type, default=f.default)
        for f in fields(declaration)
        if 'setting' in f.metadata
    )


def check_settings(values: Any) -> None:
    """Raise ValueError for the first setting of a dataclass that is not what it has to be."""
    for declared in settings_of(type(values)):
        declared.check(getattr(values, declared.name))


@dataclass(frozen=True)
class Method:
    """Every choice that changes labels; equal methods give equal labels of the same pixels.

    Attributes:
        frame: What the network sees, see `preprocessing`: `centre`, a centred square; `whole`, the
            whole image in whole patches; `mmcv`, the whole image as mmcv and mmsegmentation scale
            and normalise it.
        features: Of patches, see `backbone.FEATURES`: `clip`, `recovered` (CLIPtrase) or
            `calibrated` (SC-CLIP).
        clustering: Regions of patches that correlate alike vote for one label.
        denoising: What the [CLS] token correlates with is removed before clustering.
        propagation: Patches that correlate share their class probabilities; see `propagation`.
        fewest_clusters: An image with fewer keeps its labels as they are before the vote.
        min_agreement: 0..1; share of a region's pixels that the winning label must already hold.
        softmax: Where probabilities are made. At `patches`: of a class's phrases the most similar
            counts, and the probabilities of classes are enlarged to pixels. At `pixels`: the
            similarity to every phrase is enlarged to the camera's pixels, there phrases get their
            probabilities, and of a class's phrases the most probable counts.
        logit_scale: Factor on cosines, for `softmax` at pixels; 0 is the model's own.
        min_area: 0..1, for `softmax` at pixels; a class with no more than this share of the pixels
            that are not background gives its pixels to the others.
        refinement: `none`, `edges` or `pamr`, see the setting; `sam` is none of the pipeline's.
        window, stride: The settings of these names, where they are not left to the preset.
        image_prior, smoothing, min_presence: The settings of these names.
        scores: Whether the probabilities of patches are asked for, which changes no labels.

    Raises:
        ValueError: For choices that exclude each other.
    """

    frame: str
    features: str = 'recovered'
    clustering: bool = True
    denoising: bool = True
    propagation: bool = False
    fewest_clusters: int = 1
    min_agreement: float = 0.0
    softmax: str = 'patches'
    logit_scale: float = 0.0
    min_area: float = 0.0
    image_prior: bool = False
    window: int = 0
    stride: int = 0
    smoothing: float = 0.0
    min_presence: float = 0.0
    refinement: str = 'none'
    scores: bool = False

    def __post_init__(self) -> None:
        if self.softmax == 'pixels':
            if self.frame == 'centre':
                raise ValueError('softmax at pixels needs the whole frame, not its centre')
            for name in ('clustering', 'propagation', 'image_prior', 'smoothing'):
                value = getattr(self, name)
                if value:
                    raise ValueError(
                        f'{name} is {value}, but it needs class probabilities of patches, and '
                        'preset sc_clip has none: switch it off, or choose robot, plus or paper'
                    )
        elif self.logit_scale or self.min_area:
            raise ValueError('logit_scale and min_area are for softmax at pixels, not at patches')


#: `paper`: exactly the published CLIPtrase. `robot`: whole frame, a vote only where a region
#: agrees. `plus`: whole frame, probabilities shared among patches that correlate instead of a vote.
#: `sc_clip`: exactly the published SC-CLIP (arXiv 2411.15869).
PRESETS = {
    'paper': Method('centre'),
    'robot': Method('whole', fewest_clusters=2, min_agreement=0.7),
    'plus': Method('whole', clustering=False, propagation=True),
    'sc_clip': Method(
        'mmcv',
        features='calibrated',
        clustering=False,
        softmax='pixels',
        logit_scale=40.0,
        window=224,
        stride=112,
    ),
}


@dataclass(frozen=True)
class SegmentationSettings:
    """How images are segmented; handed to the engine with every call.

    Attributes:
        image_prior: Multiply the logits by those of the [CLS] token, as the paper does on VOC20;
            for benchmarks.
        scores: Whether results have `Segmentation.scores`.

    Raises:
        ValueError: For a value out of range.
    """

    preset: str = setting(
        'robot',
        "'robot' labels the whole frame; 'plus' does too, but patches that correlate share their "
        "probabilities, and no clusters vote; 'paper' is CLIPtrase exactly as published, which "
        "sees a square from the centre; 'sc_clip' is SC-CLIP exactly as published, in windows: the "
        'best published labels, in about twice the time.',
        live=True,
        choices=tuple(PRESETS),
    )
    resolution: int = setting(
        336,
        "Length of the shorter side fed to CLIP; all presets but 'sc_clip' round it to whole "
        'patches. Small things need more, time grows with its square and faster.',
        live=True,
        limits=RESOLUTION_RANGE,
        unit='pixels',
    )
    min_confidence: float = setting(
        0.0,
        'Pixels whose class is less probable than this become 255, unlabelled.',
        live=True,
        limits=(0, 1),
    )
    min_presence: float = setting(
        0.0,
        'Classes that no patch of an image shows with at least this probability are left out of '
        'its labels: for many words, few of them there. The background never is; 0 is off.',
        live=True,
        limits=(0, 1),
    )
    refinement: str = setting(
        'none',
        "What is done to the boundaries of labels: 'edges' moves them to where the picture has "
        "edges, about two patches away at most; 'pamr' lets pixels of like colour share labels, "
        "which takes longer, and no clusters vote then; 'sam' gives each mask of a SAM the label "
        'that most of its pixels have, which is slow.',
        live=True,
        choices=('none', 'edges', 'pamr', 'sam'),
    )
    smoothing: float = setting(
        0.0,
        'Against flicker: weight of the class probabilities that a patch had in the image before, '
        'of the same camera or video, where it still looks the same. 0.5 is much; 0 labels every '
        'image by itself.',
        live=True,
        limits=(0, MAX_SMOOTHING),
    )
    min_instance_area: float = setting(
        0.0005,
        'Connected regions of a class with a smaller share of the pixels of the image are no '
        'instances of it: they are not counted, and get no box.',
        live=True,
        limits=(0, 1),
    )
    window: int = setting(
        -1,
        'Side of squares that slide over a large image, pixels at the resolution fed to CLIP; 0 '
        "feeds it whole; -1 is as the preset has it, 224 with 'sc_clip' and 0 with the others.",
        live=True,
        limits=RESOLUTION_RANGE,
        also=(-1, 0),
        unit='pixels',
    )
    stride: int = setting(
        0,
        'How far apart windows stand, at least a patch and at most a window; 0 is half a window.',
        live=True,
        limits=(0, RESOLUTION_RANGE[1]),
        unit='pixels',
    )
    image_prior: bool = False
    scores: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        window = self.method.window
        if window and self.stride > window:
            raise ValueError(
                f'stride is {self.stride}; it must be 0 to the window, which is {window}'
            )

    @property
    def method(self) -> Method:
        """The preset's choices, with the settings that `Method` has by the same name."""
        preset = PRESETS[self.preset]
        chosen = {f.name: getattr(self, f.name) for f in fields(Method) if hasattr(self, f.name)}
        window = preset.window if self.window < 0 else self.window
        chosen |= {'window': window, 'stride': (self.stride or window // 2) if window else 0}
        if self.refinement == 'pamr':
            # A vote of regions would undo it.
            chosen['clustering'] = False
        if self.refinement == 'sam':
            # Masks vote on what the pipeline gives.
            chosen['refinement'] = 'none'
        return replace(preset, **chosen)


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and where it computes; what `load_segmenter` takes.

    Raises:
        ValueError: For a value out of range.
    """

    model: str = setting(
        'ViT-B-16-quickgelu',
        "Architecture as open_clip names it, 'toybox' for the small model that comes with this "
        "package, or 'local-dir:FOLDER' for a model of your own.",
        unit='name',
    )
    pretrained: str = setting(
        'openai',
        'Weights: a tag that open_clip knows for the model, or a local file, safetensors or a '
        'state dict.',
        unit='tag',
    )
    sam_model: str = setting(
        '',
        "Folder of a SAM, SAM 2, SAM-HQ or EdgeTAM for refinement 'sam'; empty for none.",
        unit='folder',
    )
    device: str = setting('auto', "Where inference runs: 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    precision: str = setting(
        'auto',
        "Number format of the image tower; 'auto' is float16 on CUDA and float32 elsewhere.",
        choices=('auto', *PRECISIONS),
    )
    threads: int = setting(
        0,
        'Processor cores that inference uses at most, in the whole process; 0 takes what '
        'OMP_NUM_THREADS says where it is set, and else all but one.',
        limits=(0, 1024),
        unit='cores',
    )
    spin_ms: float = setting(
        0.0,
        'How long inference on CUDA polls for finished labels before it sleeps. Polling saves the '
        'time of waking up and keeps a core busy; 0 sleeps at once.',
        limits=(0, 10),
        unit='milliseconds',
    )
    cache_dir: str = setting(
        '',
        'Folder for downloaded weights and encoded phrases; empty for the usual ones.',
        unit='folder',
    )

    def __post_init__(self) -> None:
        check_settings(self)
