"""Settings of the node besides those of its engine, each declared once.

The engine's settings are declared in `segmentation/settings.py`; all of them together are the
node's parameters. Needs neither ROS nor torch: the launch file describes its arguments by it.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from cliptrase_ros.messages.images import MAX_PIXELS, MAX_SIDE
from cliptrase_ros.messages.transports import TRANSPORTS
from cliptrase_ros.segmentation.settings import (
    ModelSettings,
    SegmentationSettings,
    Setting,
    check_settings,
    is_too_elongated,
    setting,
    settings_of,
)
from cliptrase_ros.segmentation.vocabulary import (
    DEFAULT_BACKGROUND,
    MAX_PHRASES,
    Vocabulary,
    VocabularyError,
    clean_phrase,
    parse_vocabulary,
)

NODE_NAME = 'cliptrase'

#: Slowest limit on label images a second, beside 0 = none; slower would look like a dead node.
MIN_RATE = 0.001


class ParameterError(ValueError):
    """A parameter value that cannot be used; the message names it and says what to do."""


def image_size(text: str) -> tuple[int, int]:
    """(height, width) of an entry `WIDTHxHEIGHT` of `warm_up_sizes`.

    Raises:
        ParameterError: The text is no size, or no image of that size can be labelled.
    """
    found = re.fullmatch(r'([0-9]{1,6})x([0-9]{1,6})', text.strip())
    width, height = map(int, found.groups()) if found else (0, 0)
    if min(width, height) == 0 or is_too_elongated(height, width):
        raise ParameterError(
            f"'warm_up_sizes' has {text.strip()[:40]!r}; give sizes of images in pixels, "
            "WIDTHxHEIGHT, for instance ['640x480', '1280x720']"
        )
    return height, width


@dataclass(frozen=True)
class NodeSettings:
    """Settings of the node alone: vocabulary, cameras, topics, limits, lifecycle.

    Raises:
        ValueError: Values out of range or that contradict each other.
    """

    vocabulary: tuple[str, ...] = setting(
        (
            'person = man, woman, child',
            'chair',
            'table = desk',
            'door',
            'car',
            'road',
            'grass',
            'tree',
        ),
        "The classes to label by, each 'name' or 'name = synonym, synonym'.",
        live=True,
        entry=str,
        constraints='1 to 255 classes, no blanks, no phrase twice; at most '
        f'{MAX_PHRASES} phrases, synonyms and background included',
    )
    background: tuple[str, ...] = setting(
        DEFAULT_BACKGROUND,
        'Phrases that stand for none of the classes; their pixels become 255, unlabelled. One '
        'that is in the vocabulary as well counts as the class.',
        live=True,
        entry=str,
        constraints="'' for none",
    )
    rate: float = setting(
        10.0,
        "Most label images a second and camera, on the clock of the node ('use_sim_time'); 0 "
        'labels every image there is time for.',
        live=True,
        limits=(MIN_RATE, 1000.0),
        also=(0,),
        unit='label images a second',
    )
    cameras: tuple[str, ...] = setting(
        ('camera',),
        "Names of the cameras. Each NAME is read from 'NAME/image_raw' (relative, remappable) and "
        "written to '~/NAME/label' and so on.",
        constraints='at least one; letters, digits and underscores, not beginning with a digit; '
        'no name twice',
    )
    transport: tuple[str, ...] = setting(
        ('raw',),
        "How images come: 'raw' on 'NAME/image_raw', 'compressed' (JPEG, PNG) on "
        "'NAME/image_raw/compressed', and so on 'ffmpeg' (FFMPEGPacket) and 'foxglove' "
        '(CompressedVideo), which are video. One for all cameras, or one for each in order.',
        entry=clean_phrase,
        constraints=f'each one of {", ".join(TRANSPORTS)}',
    )
    depth: bool = setting(
        False,
        "Publish '~/NAME/points' from 'NAME/depth/image_raw', registered to the image, and "
        "'NAME/camera_info'.",
    )
    mask_topics: tuple[str, ...] = setting(
        (),
        "Classes, by name, that have an image of their own on '~/NAME/mask/CLASS': 255 where the "
        "class is, 0 elsewhere. CLASS is the name with '_' for what topic names cannot hold.",
        entry=clean_phrase,
        constraints="'' for none; no two that make the same topic",
    )
    warm_up_sizes: tuple[tuple[int, int], ...] = setting(
        (),
        "Sizes of the images to come, 'WIDTHxHEIGHT' each: made ready for before the first of "
        'them. On a GPU other sizes are slower for their first 16 images.',
        entry=image_size,
        constraints="'' for none",
    )
    always_on: bool = setting(False, 'Label and publish everything even while nobody listens.')
    autostart: bool = setting(
        True, 'Configure and activate at start; otherwise a lifecycle manager does.'
    )
    allow_cpu_fallback: bool = setting(
        False,
        'Label with the CPU when the GPU is lost or has no memory for one image; otherwise such '
        'images fail. The CPU may be needed for driving.',
    )
    max_image_megapixels: float = setting(
        MAX_PIXELS / 1e6,
        'Larger images are refused, before they are decoded.',
        limits=(0.001, MAX_SIDE**2 / 1e6),
        unit='megapixels',
    )
    max_phrases: int = setting(
        MAX_PHRASES,
        'Vocabularies with more phrases, synonyms and background included, are refused.',
        limits=(1, MAX_PHRASES),
        unit='phrases',
    )
    max_phrase_length: int = setting(
        200,
        'Phrases of more characters are refused, before the text tower counts their tokens.',
        limits=(1, 1000),
        unit='characters',
    )

    def __post_init__(self) -> None:
        check_settings(self)
        _check_cameras(self.cameras)
        _check_transport(self.transport, self.cameras)
        _check_mask_topics(self.mask_topics)
        for height, width in self.warm_up_sizes:
            if width * height > self.max_image_megapixels * 1e6:
                raise ParameterError(
                    f"'warm_up_sizes' has {width}x{height}; such images are refused, because "
                    f"'max_image_megapixels' is {self.max_image_megapixels:g}"
                )

    def transport_of(self, camera: str) -> str:
        """How the images of a camera come, one of `TRANSPORTS`."""
        one_each = len(self.transport) > 1
        return self.transport[self.cameras.index(camera) if one_each else 0]

    def make_vocabulary(self, previous: Vocabulary | None = None) -> Vocabulary:
        """Make the vocabulary that these values describe.

        A phrase that is in the vocabulary counts as a class, also if it is in the background: two
        parameters cannot be set in one go on the command line.

        Args:
            previous: The vocabulary in force, whose classes keep their ids.

        Raises:
            VocabularyError: As of `parse_vocabulary`, and for what is beyond `max_phrases` and
                `max_phrase_length`.
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

    def _check_length(self, name: str, entries: tuple[str, ...]) -> None:
        """Refuse by length alone what would take long to parse."""
        length = sum(map(len, entries))
        # White space around phrases and separators may be as long as the phrases.
        limit = 2 * MAX_PHRASES * self.max_phrase_length
        if length > limit:
            raise VocabularyError(
                f'the {name} is too long: {length} characters, of which at most {limit} are '
                'read; drop some phrases'
            )


#: Every parameter of the node; those that can be set while it runs come first.
PARAMETERS: tuple[Setting, ...] = tuple(
    sorted(
        (
            *settings_of(NodeSettings),
            *settings_of(SegmentationSettings),
            *settings_of(ModelSettings),
        ),
        key=lambda declared: not declared.live,
    )
)


def default_value(declared: Setting) -> Any:
    """The default of a setting as a parameter has it."""
    if not isinstance(declared.default, tuple):
        return declared.default
    if declared.entry is None or len(declared.default) > 1:
        return list(declared.default)
    # A list of ROS cannot be empty and keep its type; a string can.
    return ''.join(declared.default)


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
    """The last part of the topic of a class's masks: letters without accents, digits, single `_`.

    Raises:
        ParameterError: Nothing is left of the name.
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
