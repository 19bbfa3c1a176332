"""The model and the words of a batch, before any worker is started."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cliptrase_ros.fleet.engines import end_with_parent
from cliptrase_ros.segmentation.settings import ModelSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary

if TYPE_CHECKING:
    from cliptrase_ros.segmentation.segmenter import Segmenter


class ModelFault(Exception):
    """A model that cannot be had, or words that it cannot read; the message says which and why."""


@dataclass(frozen=True)
class ModelFacts:
    """What is to be known of a model, and of where it is to compute.

    Attributes:
        weights: Digests of the weights of CLIP and, where there is one, of SAM.
        gpus: How many this machine has.
    """

    weights: tuple[str, ...]
    gpus: int


def examine(model: ModelSettings, vocabulary: Vocabulary, is_here: bool) -> ModelFacts:
    """Load a model once, in a process of its own, whose memory is given back.

    Args:
        is_here: Whether it will compute on this machine, whose device is then checked.

    Raises:
        ModelFault: The model cannot be had, or a phrase not be encoded.
    """
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, context, end_with_parent) as process:
        return process.submit(_examine, model, vocabulary, is_here).result()


def _examine(model: ModelSettings, vocabulary: Vocabulary, is_here: bool) -> ModelFacts:
    import torch

    from cliptrase_ros.segmentation.model.weights import ModelError, select_device

    try:
        if is_here:
            select_device(model.device)
        segmenter, weights = load_with_digests(model, threads=1)
        segmenter.check_vocabulary(vocabulary)
    except (ModelError, ValueError) as error:
        raise ModelFault(str(error)) from None
    return ModelFacts(weights, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def load_with_digests(model: ModelSettings, threads: int) -> 'tuple[Segmenter, tuple[str, ...]]':
    """A model on the processor in float32, so that its digests are the same on every machine.

    Returns:
        The engine, to be moved to where it computes, and `ModelFacts.weights`.

    Raises:
        ModelError, ValueError: As `load_segmenter`.
    """
    from cliptrase_ros.segmentation.method.sam import Sam
    from cliptrase_ros.segmentation.segmenter import load_segmenter

    settings = replace(model, device='cpu', precision='float32', threads=threads)
    segmenter = load_segmenter(**vars(settings))
    sam = segmenter.mask_source
    sam_digests = [sam.weights_digest] if isinstance(sam, Sam) else []
    return segmenter, (segmenter.weights_digest, *sam_digests)
