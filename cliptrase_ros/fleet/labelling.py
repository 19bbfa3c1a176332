"""What inputs are labelled as: model, words and settings; and what workers are to do."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cliptrase_ros
from cliptrase_ros.segmentation.settings import ModelSettings, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary

# Version of how results are laid out; results of another one lie in another folder.
_LAYOUT = 1


@dataclass(frozen=True)
class Labelling:
    """All that labels depend on beside the inputs.

    Attributes:
        weights: Digests of the weights of CLIP and, where there is one, of SAM.
        rate: Most images labelled a second of a camera or video, 0 = all.
        overlay: Whether results have pictures for people.
        topics: Of recordings, `TOPIC` or `TOPIC=CAMERA`; empty for every one with pictures.
        node: Full name of the node that the topics of recordings go under.
    """

    model: ModelSettings
    weights: tuple[str, ...]
    vocabulary: Vocabulary
    settings: SegmentationSettings
    rate: float
    overlay: bool
    topics: tuple[str, ...]
    node: str

    def describe(self) -> dict[str, Any]:
        """All of it, for people and for JSON; equal for labellings that give equal labels."""
        # Who only looks at results needs no PyTorch.
        from cliptrase_ros.photos.results import describe_vocabulary

        return {
            'layout': _LAYOUT,
            'version': cliptrase_ros.__version__,
            'model': self.model.model,
            'pretrained': self.model.pretrained,
            'weights': list(self.weights),
            'precision': self.model.precision,
            **asdict(self.settings),
            'rate': self.rate,
            'overlay': self.overlay,
            'topics': list(self.topics),
            'node': self.node,
            'vocabulary': describe_vocabulary(self.vocabulary),
        }

    @property
    def digest(self) -> str:
        """Name of its folder; equal for labellings that give equal labels."""
        content = {**self.describe(), 'pretrained': ''}  # the weights say what it is
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """What workers are to do, and with what.

    Attributes:
        digest: Of the labelling, as it is where the command runs.
        output: URL or path below which results go.
        device: See `ModelSettings.device`.
        threads: Processor cores that inference uses.
        batch: Images of equal size at a time; None for what suits the device.
        scratch: Folder for what is fetched; None for the system's.
        scratch_gib: Most that fetched inputs take there.
        formats: Of datasets that results become, see `exports.export.FORMATS`.
        with_images: Whether datasets have the images too.
        needs_model: Whether there is anything to label; datasets are made without a model.
    """

    labelling: Labelling
    digest: str
    output: str
    device: str
    threads: int
    batch: int | None
    scratch: Path | None
    scratch_gib: float
    formats: tuple[str, ...] = ()
    with_images: bool = False
    needs_model: bool = True

    @property
    def datasets(self) -> dict[str, str]:
        """Where the datasets lie, paths in the folder of the labelling by format."""
        suffix = '-with-images' if self.with_images else ''
        return {name: f'export/{name}{suffix}' for name in self.formats}
