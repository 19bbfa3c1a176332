"""Every parameter of the segmentation node, in one table, and what makes a value acceptable."""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from cliptrase_ros.messages.images import MAX_PIXELS, MAX_SIDE
from cliptrase_ros.segmentation.model.preprocessing import is_too_elongated
from cliptrase_ros.segmentation.settings import (
    MAX_SMOOTHING,
    PRECISIONS,
    PRESETS,
    RESOLUTION_RANGE,
    SegmentationSettings,
)
from cliptrase_ros.segmentation.vocabulary import (
    DEFAULT_BACKGROUND,
    MAX_PHRASES,
    Vocabulary,
    VocabularyError,
    clean_phrase,
    parse_vocabulary,
)

#: How images can come.
TRANSPORTS = ('raw', 'compressed')

#: Slowest limit on label images a second, beside 0 = none; slower would look like a dead node.
MIN_RATE = 0.001


class ParameterError(ValueError):
    """A parameter value that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class ParameterSpec:
    """One row of the table.

    type: None where a list of strings or one string will do. limits: smallest and largest value.
    live: can be set while the node runs; otherwise it is read once, at start.
    """

    name: str
    type: Parameter.Type | None
    default: object
    doc: str
    live: bool = False
    limits: tuple[float, float] | None = None
    constraints: str = ''

    def descriptor(self) -> ParameterDescriptor:
        """Make the descriptor that tools show and rclpy enforces."""
        descriptor = ParameterDescriptor(
            name=self.name,
            description=self.doc,
            additional_constraints=self.constraints,
            read_only=not self.live,
            # Types are held to here, not by rclpy, whose refusal names numbers instead of types.
            dynamic_typing=True,
        )
        if self.type is not None:
            descriptor.type = self.type.value
        if self.limits is not None and self.type is Parameter.Type.INTEGER:
            low, high = (int(v) for v in self.limits)
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        elif self.limits is not None:
            low, high = (float(v) for v in self.limits)
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        return descriptor


_ENTRIES = "a list of strings, or one string with entries separated by ';'"

PARAMETERS: tuple[ParameterSpec, ...] = (
    ParameterSpec(
        'vocabulary',
        None,
        [
            'person = man, woman, child',
            'chair',
            'table = desk',
            'door',
            'car',
            'road',
            'grass',
            'tree',
        ],
        "The classes to label by, each 'name' or 'name = synonym, synonym'.",
        live=True,
        constraints=f'{_ENTRIES}; 1 to 255 classes, no blanks, no phrase twice; at most '
        f'{MAX_PHRASES} phrases, synonyms and background included',
    ),
    ParameterSpec(
        'background',
        None,
        list(DEFAULT_BACKGROUND),
        'Phrases that stand for none of the classes; their pixels become 255 (unlabelled). One '
        'that is in the vocabulary as well counts as the class.',
        live=True,
        constraints=f"{_ENTRIES}; '' for none",
    ),
    ParameterSpec(
        'min_confidence',
        Parameter.Type.DOUBLE,
        0.0,
        'Pixels whose class is less probable than this become 255 (unlabelled).',
        live=True,
        limits=(0.0, 1.0),
    ),
    ParameterSpec(
        'rate',
        Parameter.Type.DOUBLE,
        10.0,
        'Most label images a second and camera, on the clock of the node; 0 labels every image '
        'there is time for.',
        live=True,
        limits=(0.0, 1000.0),
        constraints=f'0, or {MIN_RATE:g} and more',
    ),
    ParameterSpec(
        'preset',
        Parameter.Type.STRING,
        'robot',
        "'robot' labels the whole frame; 'plus' does with patches that correlate sharing their "
        "probabilities instead of a vote of clusters; 'paper' is exactly the published method, "
        'which sees a square from the centre.',
        live=True,
        constraints=f'one of {", ".join(PRESETS)}',
    ),
    ParameterSpec(
        'resolution',
        Parameter.Type.INTEGER,
        336,
        'Length of the shorter side fed to CLIP, pixels. Small things need more, time grows with '
        'its square and faster.',
        live=True,
        limits=RESOLUTION_RANGE,
    ),
    ParameterSpec(
        'refinement',
        Parameter.Type.STRING,
        'none',
        "What is done to the boundaries of labels: 'edges' moves them to where the picture has "
        "edges, about two patches away at most; 'sam' gives each mask of a SAM one label.",
        live=True,
        constraints='one of none, edges, sam',
    ),
    ParameterSpec(
        'smoothing',
        Parameter.Type.DOUBLE,
        0.0,
        'Share of what a patch was in the image before that is kept where it still looks the '
        'same, against flicker; 0 labels every image by itself.',
        live=True,
        limits=(0.0, MAX_SMOOTHING),
    ),
    ParameterSpec(
        'window',
        Parameter.Type.INTEGER,
        0,
        'Side of squares that slide over a large image, pixels at the resolution fed to CLIP; 0 '
        'feeds it whole.',
        live=True,
        limits=(0, RESOLUTION_RANGE[1]),
        constraints=f'0, or {RESOLUTION_RANGE[0]} and more',
    ),
    ParameterSpec(
        'stride',
        Parameter.Type.INTEGER,
        0,
        'How far apart windows stand, pixels, a window at most; 0 is half a window.',
        live=True,
        limits=(0, RESOLUTION_RANGE[1]),
    ),
    ParameterSpec(
        'cameras',
        Parameter.Type.STRING_ARRAY,
        ['camera'],
        'Names of the cameras. Each NAME is read from NAME/image_raw (relative, remappable) and '
        'written to ~/NAME/label and so on.',
        constraints='at least one; letters, digits and underscores, not beginning with a digit; '
        'no name twice',
    ),
    ParameterSpec(
        'transport',
        None,
        'raw',
        "How images come: 'raw' on NAME/image_raw, 'compressed' (JPEG, PNG) on "
        'NAME/image_raw/compressed. One for all cameras, or one for each in order.',
        constraints=f'{_ENTRIES}; each one of {", ".join(TRANSPORTS)}',
    ),
    ParameterSpec(
        'depth',
        Parameter.Type.BOOL,
        False,
        'Publish ~/NAME/points from NAME/depth/image_raw, registered to the image, and '
        'NAME/camera_info.',
    ),
    ParameterSpec(
        'mask_topics',
        None,
        '',
        'Classes, by name, that have an image of their own on ~/NAME/mask/CLASS: 255 where the '
        "class is, 0 elsewhere. CLASS is the name with '_' for what topic names cannot hold.",
        constraints=f"{_ENTRIES}; '' for none; no two that make the same topic",
    ),
    ParameterSpec(
        'model',
        Parameter.Type.STRING,
        'ViT-B-16-quickgelu',
        "Architecture as open_clip names it, 'toybox' for the small model that comes with this "
        "package, or 'local-dir:FOLDER' for a model of your own.",
    ),
    ParameterSpec(
        'pretrained',
        Parameter.Type.STRING,
        'openai',
        'Weights: a tag open_clip knows for the model, or a local file (safetensors, or a state '
        'dict).',
    ),
    ParameterSpec(
        'sam_model',
        Parameter.Type.STRING,
        '',
        "Folder of a SAM, SAM 2, SAM-HQ or EdgeTAM for refinement 'sam'; empty for none.",
    ),
    ParameterSpec(
        'device',
        Parameter.Type.STRING,
        'auto',
        "Where inference runs: 'auto', 'cpu', 'cuda' or 'cuda:N'.",
    ),
    ParameterSpec(
        'precision',
        Parameter.Type.STRING,
        'auto',
        "Number format of the image tower; 'auto' is float16 on CUDA and float32 elsewhere.",
        constraints=f'auto or one of {", ".join(PRECISIONS)}',
    ),
    ParameterSpec(
        'threads',
        Parameter.Type.INTEGER,
        0,
        'Processor cores that inference uses at most; 0 leaves one of them to others, or takes '
        'what OMP_NUM_THREADS says.',
        limits=(0, 1024),
    ),
    ParameterSpec(
        'warm_up_sizes',
        None,
        '',
        "Sizes of the images to come, 'WIDTHxHEIGHT' each: made ready for before the first of "
        'them. On a GPU other sizes are slower for their first 16 images.',
        constraints=f"{_ENTRIES}; '' for none",
    ),
    ParameterSpec(
        'cache_dir',
        Parameter.Type.STRING,
        '',
        'Folder for downloaded weights and encoded phrases; empty for the usual ones.',
    ),
    ParameterSpec(
        'always_on',
        Parameter.Type.BOOL,
        False,
        'Label and publish everything even while nobody listens.',
    ),
    ParameterSpec(
        'autostart',
        Parameter.Type.BOOL,
        True,
        'Configure and activate at start; otherwise a lifecycle manager does.',
    ),
    ParameterSpec(
        'allow_cpu_fallback',
        Parameter.Type.BOOL,
        False,
        'Label with the CPU when the GPU is lost or has no memory for one image; otherwise such '
        'images fail. The CPU may be needed for driving.',
    ),
    ParameterSpec(
        'max_image_megapixels',
        Parameter.Type.DOUBLE,
        MAX_PIXELS / 1e6,
        'Larger images are refused, before they are decoded.',
        limits=(0.001, MAX_SIDE**2 / 1e6),
    ),
    ParameterSpec(
        'max_phrases',
        Parameter.Type.INTEGER,
        MAX_PHRASES,
        'Vocabularies with more phrases, synonyms and background included, are refused.',
        limits=(1, MAX_PHRASES),
    ),
    ParameterSpec(
        'max_phrase_length',
        Parameter.Type.INTEGER,
        200,
        'Phrases of more characters are refused, before the text tower counts their tokens.',
        limits=(1, 1000),
    ),
)

#: Lists that may have no entries.
_MAY_BE_EMPTY = ('background', 'mask_topics', 'warm_up_sizes')

#: How to write a value of a type, where YAML easily reads another.
_TYPE_HINTS = {
    Parameter.Type.DOUBLE: 'write a decimal point: 5.0, not 5',
    Parameter.Type.STRING: 'write it in quotes of its own: "\'no\'"',
    Parameter.Type.STRING_ARRAY: "write a list of strings: ['front', 'rear']",
}

_SPECS = {spec.name: spec for spec in PARAMETERS}


@dataclass(frozen=True)
class Parameters:
    """A checked, immutable set of values; one field for each row of the table."""

    vocabulary: str | tuple[str, ...]
    background: tuple[str, ...]
    min_confidence: float
    rate: float
    preset: str
    resolution: int
    refinement: str
    smoothing: float
    window: int
    stride: int
    cameras: tuple[str, ...]
    transport: tuple[str, ...]
    depth: bool
    mask_topics: tuple[str, ...]
    model: str
    pretrained: str
    sam_model: str
    device: str
    precision: str
    threads: int
    warm_up_sizes: tuple[tuple[int, int], ...]
    cache_dir: str
    always_on: bool
    autostart: bool
    allow_cpu_fallback: bool
    max_image_megapixels: float
    max_phrases: int
    max_phrase_length: int

    @property
    def settings(self) -> SegmentationSettings:
        """What of this the engine wants with every call."""
        return SegmentationSettings(
            preset=self.preset,
            resolution=self.resolution,
            min_confidence=self.min_confidence,
            refinement=self.refinement,
            smoothing=self.smoothing,
            window=self.window,
            # Set one after the other, in any order: one never keeps the other from being set.
            stride=min(self.stride, self.window),
        )

    def transport_of(self, camera: str) -> str:
        """Return how the images of a camera come."""
        one_each = len(self.transport) > 1
        return self.transport[self.cameras.index(camera) if one_each else 0]

    def make_vocabulary(self, previous: Vocabulary | None = None) -> Vocabulary:
        """Return the vocabulary these values describe; `previous` as for `parse_vocabulary`.

        A phrase that is in the vocabulary counts as a class, also if it is in the background: two
        parameters cannot be set in one go on the command line. Raises VocabularyError, also for
        what is beyond `max_phrases` and `max_phrase_length`.
        """
        self._check_length('vocabulary', self.vocabulary)
        self._check_length('background', self.background)
        vocabulary = parse_vocabulary(self.vocabulary, self.background, previous)
        phrases = vocabulary.phrases
        if len(phrases) > self.max_phrases:
            raise VocabularyError(
                f'the vocabulary has {len(phrases)} phrases, synonyms and background included; '
                f'this node takes {self.max_phrases} (max_phrases); drop some'
            )
        for phrase in phrases:
            if len(phrase) > self.max_phrase_length:
                raise VocabularyError(
                    f'the phrase {phrase[:40]!r}... is too long: {len(phrase)} characters; this '
                    f'node takes {self.max_phrase_length} (max_phrase_length); shorten it'
                )
        return vocabulary

    def _check_length(self, name: str, entries: str | tuple[str, ...]) -> None:
        """Refuse by length alone what would take long to parse."""
        length = len(entries) if isinstance(entries, str) else sum(map(len, entries))
        # White space around phrases and separators may be as long as the phrases.
        limit = 2 * MAX_PHRASES * self.max_phrase_length
        if length > limit:
            raise VocabularyError(
                f'the {name} is too long: {length} characters, of which at most {limit} are '
                'read; drop some phrases'
            )

    def changed(self, changes: Iterable[Parameter]) -> 'Parameters':
        """Return the values with some parameters set anew; names not in the table are ignored.

        Raises ParameterError, with everything as it was, if any of the changes is unacceptable.
        """
        known = [parameter for parameter in changes if parameter.name in _SPECS]
        return _checked(replace(self, **_converted(known)))


def declared_values(node: Node, specs: Sequence[ParameterSpec]) -> dict[str, object]:
    """Declare parameters on a node; returns the values it was started with, by name.

    Raises ParameterError: a value of the wrong type or out of range.
    """
    parameters = [_declared(node, spec) for spec in specs]
    for spec, parameter in zip(specs, parameters, strict=True):
        _check_type(spec, parameter)
    return {parameter.name: parameter.value for parameter in parameters}


def declare_parameters(node: Node) -> Parameters:
    """Declare every parameter of the table on a node and read the values it was started with.

    Raises ParameterError: a value of the wrong type, out of range or otherwise unacceptable.
    """
    parameters = []
    for spec in PARAMETERS:
        parameter = _declared(node, spec)
        if parameter.type_ == Parameter.Type.NOT_SET and spec.name in _MAY_BE_EMPTY:
            # In a list without entries rcl sees no value at all.
            parameter = Parameter(spec.name, value='')
        parameters.append(parameter)
    return _checked(Parameters(**_converted(parameters)))


def _declared(node: Node, spec: ParameterSpec) -> Parameter:
    try:
        return node.declare_parameter(spec.name, spec.default, spec.descriptor())
    except ParameterException as error:
        raise ParameterError(str(error)) from error


def _check_type(spec: ParameterSpec, parameter: Parameter) -> None:
    if parameter.type_ == Parameter.Type.NOT_SET:
        raise ParameterError(f"'{spec.name}' is empty; give it a value{_type_hint(spec)}")
    if spec.type is not None and parameter.type_ != spec.type:
        raise ParameterError(
            f"'{spec.name}' is {str(parameter.value)[:60]!r}, of type {parameter.type_.name}; it "
            f'must be of type {spec.type.name}{_type_hint(spec)}'
        )


def _type_hint(spec: ParameterSpec) -> str:
    hint = _TYPE_HINTS.get(spec.type)
    return f' ({hint})' if hint else ''


def _converted(parameters: Iterable[Parameter]) -> dict[str, object]:
    converted = {}
    for parameter in parameters:
        spec, value = _SPECS[parameter.name], parameter.value
        _check_type(spec, parameter)
        if spec.type is None:
            value = _entries(spec.name, value)
        converted[spec.name] = tuple(value) if isinstance(value, list) else value
    for name in {'background', 'mask_topics', 'transport', 'warm_up_sizes'} & converted.keys():
        entries = converted[name]
        if isinstance(entries, str):
            entries = tuple(entries.split(';'))
            if not clean_phrase(entries[-1]):
                entries = entries[:-1]  # a trailing separator is no blank entry
        # A YAML list cannot be empty and keep its type: [''] is how one writes "none".
        converted[name] = () if not any(p.strip() for p in entries) else entries
    for name in {'mask_topics', 'transport'} & converted.keys():
        converted[name] = tuple(clean_phrase(entry) for entry in converted[name])
    if 'warm_up_sizes' in converted:
        converted['warm_up_sizes'] = tuple(_size(entry) for entry in converted['warm_up_sizes'])
    return converted


def _size(entry: str) -> tuple[int, int]:
    """(height, width) of 'WIDTHxHEIGHT'."""
    found = re.fullmatch(r'([0-9]{1,6})x([0-9]{1,6})', entry.strip())
    width, height = map(int, found.groups()) if found else (0, 0)
    if min(width, height) == 0 or is_too_elongated(height, width):
        raise ParameterError(
            f"'warm_up_sizes' has {entry.strip()[:40]!r}; give sizes of images in pixels, "
            "WIDTHxHEIGHT, for instance ['640x480', '1280x720']"
        )
    return height, width


def _entries(name: str, value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        if re.fullmatch(r'\s*\[.*\]\s*', value, re.DOTALL):
            raise ParameterError(
                f"'{name}' came as the single string {value[:60]!r}: a list in which only some "
                f'entries look like text arrives like that. {_quoting(name)}'
            )
        return value
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        value = tuple(value)
        # An empty list has no type of its own: it arrives as booleans or bytes.
        if all(isinstance(v, str) for v in value):
            return value
    kind = type(value[0] if isinstance(value, tuple) else value).__name__
    raise ParameterError(
        f"'{name}' has to be {_ENTRIES}, not {'a list of ' if isinstance(value, tuple) else ''}"
        f'{kind}: unquoted words such as 1, no or on are not text. {_quoting(name)}'
    )


def _quoting(name: str) -> str:
    return (
        'Quote every entry, or give one string of several: '
        f'ros2 param set /cliptrase {name} "[\'road\', \'no\']", or "road; no"'
    )


def _checked(values: Parameters) -> Parameters:
    # rclpy holds values to the ranges of the descriptors before this; not a number passes some.
    if not math.isfinite(values.rate) or values.rate < 0:
        raise ParameterError(f"'rate' is {values.rate}; give label images a second, or 0 for all")
    if 0 < values.rate < MIN_RATE:
        raise ParameterError(
            f"'rate' is {values.rate}, less than one label image in {1 / MIN_RATE:.0f} s; give "
            f'{MIN_RATE:g} or more, or 0 for all'
        )
    if not 0.0 <= values.min_confidence <= 1.0:
        raise ParameterError(f"'min_confidence' is {values.min_confidence}; give 0.0 to 1.0")
    if values.refinement == 'sam' and not values.sam_model:
        raise ParameterError(
            "'refinement' is 'sam', but the node was started without one: start it with "
            "'sam_model', the folder of a SAM"
        )
    for height, width in values.warm_up_sizes:
        if width * height > values.max_image_megapixels * 1e6:
            raise ParameterError(
                f"'warm_up_sizes' has {width}x{height}; such images are refused, because "
                f"'max_image_megapixels' is {values.max_image_megapixels:g}"
            )
    _check_cameras(values.cameras)
    _check_transport(values.transport, values.cameras)
    _check_mask_topics(values.mask_topics)
    try:
        values.settings  # noqa: B018 (the engine's own check of what it will be given)
    except ValueError as error:
        raise ParameterError(str(error)) from error
    return values


def check_camera_name(parameter: str, name: str) -> None:
    """Raise ParameterError, which names the parameter, for a name no topic can have."""
    if not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', name):
        raise ParameterError(
            f"'{parameter}' has {name!r}, which cannot be part of a topic name: use letters, "
            'digits and underscores, not beginning with a digit. For another topic, remap it: '
            '-r front/image_raw:=/driver/front/color'
        )


def _check_cameras(names: tuple[str, ...]) -> None:
    if not names:
        raise ParameterError("'cameras' is empty; name at least one camera, for instance [camera]")
    for name in names:
        check_camera_name('cameras', name)
        if names.count(name) > 1:
            raise ParameterError(f"'cameras' has {name!r} {names.count(name)} times; name it once")


def _check_transport(transport: tuple[str, ...], cameras: tuple[str, ...]) -> None:
    unknown = [entry for entry in transport if entry not in TRANSPORTS]
    if unknown or len(transport) not in (1, len(cameras)):
        raise ParameterError(
            f"'transport' is {'; '.join(transport)!r}; give one of {', '.join(TRANSPORTS)} for all "
            f'cameras, or one for each of the {len(cameras)}'
        )


def mask_topic_name(class_name: str) -> str:
    """Return the last part of the topic of a class's masks: letters, digits and single '_'.

    Accents are dropped. Raises ParameterError for a name of which nothing is left.
    """
    plain = unicodedata.normalize('NFKD', class_name)
    plain = ''.join(c for c in plain if not unicodedata.combining(c))
    token = re.sub(r'[^A-Za-z0-9]+', '_', plain).strip('_')
    if not token:
        raise ParameterError(
            f"'mask_topics' has {class_name!r}, of which nothing can be part of a topic name; give "
            'the class a name with Latin letters, and this one as its synonym'
        )
    # A topic cannot begin with a digit, and with '_' it would be a hidden one.
    return token if token[0].isalpha() else f'class_{token}'


def _check_mask_topics(names: tuple[str, ...]) -> None:
    owners: dict[str, str] = {}
    for name in names:
        topic = mask_topic_name(name)
        key = topic.casefold()
        if key in owners:
            raise ParameterError(
                f"'mask_topics' has {owners[key]!r} and {name!r}, which make the same topic "
                f'mask/{topic}; name one of them, or rename a class'
            )
        owners[key] = name
