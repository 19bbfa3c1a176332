"""Words to features in small steps, between images being labelled."""

import time
from collections.abc import Callable, Iterator

from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmenter
from cliptrase_ros.segmentation.vocabulary import Vocabulary, VocabularyClass
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

#: A step ends after this long, or after one phrase if that takes longer: about as much time for the
#: new words as for labelling by the old ones, seconds.
_STEP_S = 0.1


class Encoding:
    """A vocabulary that is being encoded, in the thread of the engine."""

    def __init__(self, engine: FaultTolerantEngine, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._engine = engine
        self._parts = _parts(vocabulary, engine.segmenter)

    def take_step(self, is_stopping: Callable[[], bool]) -> EncodedVocabulary | None:
        """Encode some phrases; returns the whole vocabulary with the last of them, before None.

        Raises what the engine raises.

        Args:
            is_stopping: Whether the step should end early.
        """
        deadline = time.monotonic() + _STEP_S
        for part in self._parts:
            encoded = self._engine.encode_vocabulary(part)
            if part is self.vocabulary:
                return encoded
            if is_stopping() or time.monotonic() > deadline:
                break
        return None


def _parts(vocabulary: Vocabulary, segmenter: Segmenter) -> Iterator[Vocabulary]:
    """Split into parts that are encoded one at a time, the whole last: phrases are cached."""
    missing = segmenter.missing_phrases(vocabulary)
    size = segmenter.phrases_at_once
    for first in range(0, len(missing), size):
        phrases = enumerate(missing[first : first + size])
        yield Vocabulary(tuple(VocabularyClass(i, phrase) for i, phrase in phrases))
    yield vocabulary
