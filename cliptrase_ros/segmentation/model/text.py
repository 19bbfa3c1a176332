"""Phrases to class features: prompt templates, a causal text tower cut short, a cache."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cliptrase_ros.segmentation.model.prompts import PROMPT_TEMPLATES, PromptTokenizer, Tokenizer
from cliptrase_ros.segmentation.model.text_cache import TextCache, fingerprint
from cliptrase_ros.segmentation.process_settings import exact_float32
from cliptrase_ros.segmentation.vocabulary import VocabularyError, quote

#: Prompts encoded at once: enough to fill a processor, few enough to bound memory.
_PROMPTS_PER_BATCH = 1024

#: Phrases remembered, the latest: some megabytes, and more than any vocabulary holds.
_REMEMBERED_PHRASES = 4096

# To be counted up when the same phrase would get other features than before.
_CACHE_VERSION = 1


def causal_features(tower: nn.Module, tokens: Tensor) -> Tensor:
    """What `encode_text` gives for a causal text tower of open_clip, several times faster.

    The mask is causal: what follows the end token, where the feature is read, cannot change it, so
    the context ends with the longest prompt.

    Args:
        tokens: int64 (n, context), the end token being the largest.

    Returns:
        float (n, D), not of unit length.
    """
    end = tokens.argmax(-1)
    length = int(end.max()) + 1
    x = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x[torch.arange(len(x), device=x.device), end])
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


class TextEncoder:
    """Encodes phrases with the text tower of an open_clip model, each phrase once.

    What was encoded is remembered by the process, and on disk where there is a folder for it.

    Attributes:
        cache: The one on disk, once it has been asked for a phrase.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, cache_folder: Path | None = None
    ) -> None:
        """Take over the text tower of a model, which is on its final device already."""
        self._model = model
        self._tower = getattr(model, 'text', model)
        self._context: int = tokenizer.context_length
        self._tokenize = PromptTokenizer(tokenizer)
        self._features: dict[str, Tensor] = {}
        self._cache_folder = cache_folder
        self.cache: TextCache | None = None
        self._width = 0

    def check(self, phrases: Sequence[str]) -> None:
        """Check that phrases fit the text tower in every template, which takes milliseconds.

        To be called before `encode`, which cuts silently what does not fit.

        Raises:
            VocabularyError: A phrase is too long.
        """
        for phrase in phrases:
            tokens = self._tokenize.longest(phrase)
            if tokens > self._context:
                raise VocabularyError(
                    f'the phrase {quote(phrase)} is too long: in its prompt it takes {tokens} '
                    f'tokens, and the text tower reads {self._context}; shorten it'
                )

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Features of phrases, the normalised mean of the unit features of their prompts.

        See CLIPtrase, section 4.1.

        Returns:
            float32 (len(phrases), D), unit length, on the model's device.
        """
        missing = self.missing(phrases)
        batch_size = max(1, _PROMPTS_PER_BATCH // len(PROMPT_TEMPLATES))
        for first in range(0, len(missing), batch_size):
            batch = missing[first : first + batch_size]
            features = self._encode_batch(batch)
            # Cloned, because a row would keep the memory of its whole batch.
            self._features.update(zip(batch, map(Tensor.clone, features), strict=True))
            if self.cache is not None:
                rows = features.cpu().numpy()
                self.cache.store(dict(zip(batch, rows, strict=True)))
        result = torch.stack([self._features[phrase] for phrase in phrases])
        for phrase in list(self._features)[:-_REMEMBERED_PHRASES]:
            del self._features[phrase]
        return result

    def missing(self, phrases: Sequence[str]) -> list[str]:
        """Those that have to be encoded: neither remembered nor on disk. Takes milliseconds."""
        missing = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._features]
        if not missing or self._cache_folder is None:
            return missing
        if self.cache is None:
            self.cache = TextCache(self._cache_folder, self._fingerprint())
        found = {phrase: self.cache.load(phrase, self._width) for phrase in missing}
        device = next(self._model.parameters()).device
        for phrase, features in found.items():
            if features is not None:
                self._features[phrase] = torch.from_numpy(features).to(device)
        return [phrase for phrase in missing if found[phrase] is None]

    @torch.inference_mode()
    def _fingerprint(self) -> str:
        """A name for all that features depend on; finds their width as well."""
        example = self._tokenize(['x'])
        device = next(self._model.parameters()).device
        self._width = self._encode_tokens(example[:1].to(device)).shape[-1]
        heads = [m.num_heads for m in self._tower.modules() if isinstance(m, nn.MultiheadAttention)]
        weights = (
            (name, value.detach().cpu().contiguous())
            for name, value in self._tower.state_dict().items()
            if not name.startswith('visual.')
        )
        layers = [repr(child) for name, child in self._tower.named_children() if name != 'visual']
        return fingerprint(
            f'{_CACHE_VERSION} {heads}',
            layers,
            [template('{}') for template in PROMPT_TEMPLATES],
            example.numpy().tobytes(),
            *(part for name, value in weights for part in (name, value.numpy().tobytes())),
        )

    @torch.inference_mode()
    @exact_float32()
    def _encode_batch(self, phrases: Sequence[str]) -> Tensor:
        tokens = self._tokenize(phrases).to(next(self._model.parameters()).device)
        features = torch.cat([self._encode_tokens(t) for t in tokens.split(_PROMPTS_PER_BATCH)])
        features = F.normalize(features.float(), dim=-1)
        means = features.unflatten(0, (len(phrases), -1)).mean(1)
        return F.normalize(means, dim=-1)

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        if self._is_causal():
            return causal_features(self._tower, tokens)
        return self._model.encode_text(tokens)

    def _is_causal(self) -> bool:
        tower = self._tower
        pool_type = getattr(tower, 'text_pool_type', getattr(tower, 'pool_type', None))
        return (
            pool_type == 'argmax'
            and getattr(tower, 'attn_mask', None) is not None
            and getattr(tower, 'cls_emb', None) is None
        )
