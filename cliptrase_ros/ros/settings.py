"""Settings of the node besides those of its engine, each declared once.

The engine's settings are declared in `segmentation/settings.py`; all of them together are the
node's parameters. Needs neither ROS nor torch: the launch file describes its arguments by it.
"""

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from cliptrase_ros.messages.ground import MAX_COST, CameraPose, pose_of_body
from cliptrase_ros.messages.images import MAX_PIXELS, MAX_SIDE
from cliptrase_ros.messages.transports import DEPTH_TRANSPORTS, TRANSPORTS
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
    name_and_synonyms,
    parse_vocabulary,
    quote,
)

NODE_NAME = 'cliptrase'

#: What points can be made of.
POINTS = ('depth', 'ground')

#: Most cells of `~/NAME/ground` from the camera to the end of its range.
MAX_GROUND_CELLS = 1000

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


def camera_pose(text: str) -> tuple[float, ...]:
    """The six numbers of an entry `x y z roll pitch yaw` of `camera_poses`.

    Raises:
        ParameterError: The text is no pose, or one from which no ground is seen.
    """
    try:
        values = [float(value) for value in text.split()]
    except ValueError:
        values = []
    if len(values) != 6 or not all(map(math.isfinite, values)):
        raise ParameterError(
            f"'camera_poses' has {text.strip()[:60]!r}; give 'x y z roll pitch yaw' of a camera in "
            "metres and radians, for instance '0.2 0 1.1 0 0.35 0'"
        )
    if values[2] <= 0:
        raise ParameterError(
            f"'camera_poses' has {text.strip()[:60]!r}, a camera that is not above the ground: the "
            'third number, its height, has to be more than 0'
        )
    return tuple(values)


def ground_cost(text: str) -> tuple[str, int]:
    """Class name and cost of an entry `name = cost` of `ground_costs`.

    Raises:
        ParameterError: The text is not of this form, or the cost out of range.
    """
    name, _, cost = text.rpartition('=')
    name, cost = clean_phrase(name), cost.strip()
    if not name or not re.fullmatch('[0-9]{1,3}', cost) or int(cost) > MAX_COST:
        raise ParameterError(
            f"'ground_costs' has {text.strip()[:60]!r}; give 'name = cost' of a class, a whole "
            f"number from 0 to {MAX_COST}, for instance 'grass = 60'"
        )
    return name, int(cost)


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
    ground_costs: tuple[tuple[str, int], ...] = setting(
        (),
        "Classes that lie on the ground, each 'name = cost': 0 is free, 100 not to be driven on. "
        'The other classes of the vocabulary stand on it and cost 100.',
        live=True,
        entry=ground_cost,
        constraints=f"'' for none; costs 0 to {MAX_COST}; no name twice",
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
    depth_transport: tuple[str, ...] = setting(
        ('raw',),
        "How depth comes: 'raw' on 'NAME/depth/image_raw', 'compressedDepth' (PNG, RVL) on "
        "'NAME/depth/image_raw/compressedDepth'. One for all cameras, or one for each in order.",
        entry=clean_phrase,
        constraints=f'each one of {", ".join(DEPTH_TRANSPORTS)}',
    )
    points: str = setting(
        'depth',
        "What '~/NAME/points' is made of: 'depth', if that is true, or 'ground': the places of "
        "pixels in the plane of 'ground_frame'.",
        choices=POINTS,
    )
    ground_frame: str = setting(
        '',
        "Frame whose plane z = 0 is the ground, for instance 'base_footprint': publish "
        "'~/NAME/ground', with 'NAME/camera_info'.",
        constraints="'' for none",
    )
    camera_poses: tuple[tuple[float, ...], ...] = setting(
        (),
        "Where each camera is in 'ground_frame', 'x y z roll pitch yaw' (metres, radians; x "
        "forward, y left, z up): '0.2 0 1.1 0 0.35 0' looks 20 degrees down. Without, tf says it, "
        'of the frame of the image.',
        entry=camera_pose,
        constraints="'' for those of tf; one for each camera in order",
    )
    ground_range: float = setting(
        5.0,
        'How far from a camera the ground is looked at.',
        limits=(0.5, 100.0),
        unit='metres',
    )
    ground_resolution: float = setting(
        0.05,
        "Side of a cell of '~/NAME/ground'.",
        limits=(0.005, 1.0),
        unit='metres',
    )
    mask_topics: tuple[str, ...] = setting(
        (),
        "Classes, by name, that have an image of their own on '~/NAME/mask/CLASS': 255 where the "
        "class is, 0 elsewhere. CLASS is the name with '_' for what topic names cannot hold.",
        entry=clean_phrase,
        constraints="'' for none; no two that make the same topic",
    )
    score_topics: tuple[str, ...] = setting(
        (),
        'Phrases, of classes or background, that have an image of their probability on '
        "'~/NAME/scores/PHRASE'; named as those of 'mask_topics'.",
        entry=clean_phrase,
        constraints="'' for none; no two that make the same topic",
    )
    overlay_boxes: bool = setting(
        False,
        "Draw the instances on '~/NAME/overlay': a box each, with class and id.",
        live=True,
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
        _check_transport('transport', self.transport, TRANSPORTS, self.cameras)
        _check_transport('depth_transport', self.depth_transport, DEPTH_TRANSPORTS, self.cameras)
        _check_phrase_topics('mask_topics', self.mask_topics)
        _check_phrase_topics('score_topics', self.score_topics)
        self._check_ground()
        for height, width in self.warm_up_sizes:
            if width * height > self.max_image_megapixels * 1e6:
                raise ParameterError(
                    f"'warm_up_sizes' has {width}x{height}; such images are refused, because "
                    f"'max_image_megapixels' is {self.max_image_megapixels:g}"
                )

    @property
    def max_pixels(self) -> int:
        """Width x height of the largest image that is not refused."""
        return round(self.max_image_megapixels * 1e6)

    def transport_of(self, camera: str) -> str:
        """How the images of a camera come, one of `TRANSPORTS`."""
        return self._of_camera(self.transport, camera)

    def depth_transport_of(self, camera: str) -> str | None:
        """How the depth images of a camera come, one of `DEPTH_TRANSPORTS`; None without depth."""
        return self._of_camera(self.depth_transport, camera) if self.depth else None

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
            self._check_phrase(phrase)
        return vocabulary

    def _check_ground(self) -> None:
        names = [name.casefold() for name, _ in self.ground_costs]
        for name in names:
            if names.count(name) > 1:
                raise ParameterError(f"'ground_costs' has {name!r} twice; give it one cost")
        if self.points == 'ground' and not self.ground_frame:
            raise ParameterError(
                "'points' is 'ground', but no 'ground_frame' is given; name the frame whose plane "
                "z = 0 is the ground, for instance 'base_footprint'"
            )
        if self.camera_poses and len(self.camera_poses) != len(self.cameras):
            raise ParameterError(
                f"'camera_poses' has {len(self.camera_poses)} entries for {len(self.cameras)} "
                "cameras; give one for each in order, or '' for those of tf"
            )
        if self.ground_range > MAX_GROUND_CELLS * self.ground_resolution:
            raise ParameterError(
                f"'ground_range' is {self.ground_range:g} m, more than {MAX_GROUND_CELLS} cells of "
                f"'ground_resolution', {self.ground_resolution:g} m; make cells larger"
            )

    def pose_of(self, camera: str) -> CameraPose | None:
        """Where a camera is in the ground's frame, None where tf says it."""
        if not self.camera_poses:
            return None
        return pose_of_body(*self.camera_poses[self.cameras.index(camera)])

    def _of_camera(self, transports: tuple[str, ...], camera: str) -> str:
        return transports[self.cameras.index(camera) if len(transports) > 1 else 0]

    def make_phrase(self, text: str) -> str:
        """Make a phrase that can be a class's name; raises VocabularyError where it cannot."""
        self._check_phrase(text)
        name, synonyms = name_and_synonyms(text)
        if not name or synonyms:
            raise VocabularyError(
                f"the phrase {quote(text)} is blank, or has '=' or ':' in it; name what you mean, "
                "for instance 'fire extinguisher'"
            )
        return name

    def _check_phrase(self, phrase: str) -> None:
        if len(phrase) > self.max_phrase_length:
            raise VocabularyError(
                f'the phrase {phrase[:40]!r}... is too long: {len(phrase)} characters; this '
                f'node takes {self.max_phrase_length} (max_phrase_length); shorten it'
            )

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


def _check_transport(
    name: str, transport: tuple[str, ...], known: tuple[str, ...], cameras: tuple[str, ...]
) -> None:
    unknown = [entry for entry in transport if entry not in known]
    if unknown or len(transport) not in (1, len(cameras)):
        raise ParameterError(
            f'{name!r} is {"; ".join(transport)!r}; give one of {", ".join(known)} for all '
            f'cameras, or one for each of the {len(cameras)}'
        )


def phrase_topic_name(parameter: str, phrase: str) -> str:
    """The last part of a phrase's topic: letters without accents, digits, single `_`.

    Raises:
        ParameterError: Nothing is left of the phrase, which the parameter of this name has.
    """
    plain = unicodedata.normalize('NFKD', phrase)
    plain = ''.join(c for c in plain if not unicodedata.combining(c))
    token = re.sub(r'[^A-Za-z0-9]+', '_', plain).strip('_')
    if not token:
        raise ParameterError(
            f"'{parameter}' has {phrase!r}, of which nothing can be part of a topic name; give "
            'the class a name with Latin letters, and this one as its synonym'
        )
    # A topic cannot begin with a digit, and with '_' it would be a hidden one.
    return token if token[0].isalpha() else f'class_{token}'


def _check_phrase_topics(parameter: str, phrases: tuple[str, ...]) -> None:
    owners: dict[str, str] = {}
    for phrase in phrases:
        topic = phrase_topic_name(parameter, phrase)
        key = topic.casefold()
        if key in owners:
            raise ParameterError(
                f"'{parameter}' has {owners[key]!r} and {phrase!r}, which make the same topic, "
                f'{topic}; name one of them, or rename a class'
            )
        owners[key] = phrase
