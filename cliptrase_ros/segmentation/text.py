"""Phrases to class features: prompt templates, a causal text tower cut short, a cache."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn

from .vocabulary import VocabularyError

#: The 80 prompt templates of the CLIP paper; each makes a sentence of a phrase.
PROMPT_TEMPLATES: tuple[Callable[[str], str], ...] = tuple(OPENAI_IMAGENET_TEMPLATES)

#: Prompts encoded at once: enough to fill a processor, few enough to bound memory.
_PROMPTS_PER_BATCH = 1024

#: Phrases remembered, the latest: some megabytes, and more than any vocabulary holds.
_REMEMBERED_PHRASES = 4096


class TextEncoder:
    """Encodes phrases with the text tower of an open_clip model, each phrase once per process."""

    def __init__(self, model: nn.Module, tokenizer: Callable[[Sequence[str]], Tensor]):
        """model: open_clip CLIP, on its final device. tokenizer: its open_clip tokenizer."""
        self._model = model
        self._tower = getattr(model, 'text', model)
        self._tokenizer = tokenizer
        self._features: dict[str, Tensor] = {}
        self._longest_template = max(PROMPT_TEMPLATES, key=lambda t: self._token_count(t('x')))

    def check(self, phrases: Sequence[str]) -> None:
        """Raise VocabularyError for a phrase that does not fit the text tower with its template.

        Called for its speed (milliseconds) before `encode`, which would cut the phrase silently.
        """
        context = self._tokenizer.context_length
        for phrase in phrases:
            tokens = self._token_count(self._longest_template(phrase))
            if tokens > context:
                shown = phrase if len(phrase) <= 60 else f'{phrase[:57]}...'
                raise VocabularyError(
                    f'the phrase {shown!r} is too long: in its prompt it takes {tokens} tokens, '
                    f'and the text tower reads {context}; shorten it'
                )

    def _token_count(self, prompt: str) -> int:
        encode = getattr(self._tokenizer, 'encode', None)
        if encode is None:
            return len(self._tokenizer.tokenizer.encode(prompt))
        return len(encode(prompt)) + 2  # the start and the end token

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """Features of phrases: float32 (len(phrases), D), unit length, on the model's device.

        Each is the normalised mean of the unit features of its prompts (CLIPtrase, section 4.1).
        """
        missing = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._features]
        if missing:
            # Cloned: a row would keep the memory of its whole batch.
            rows = (row.clone() for row in self._encode_missing(missing))
            self._features.update(zip(missing, rows, strict=True))
        result = torch.stack([self._features[phrase] for phrase in phrases])
        for phrase in list(self._features)[:-_REMEMBERED_PHRASES]:
            del self._features[phrase]
        return result

    @torch.inference_mode()
    def _encode_missing(self, phrases: Sequence[str]) -> Tensor:
        prompts = [template(phrase) for phrase in phrases for template in PROMPT_TEMPLATES]
        tokens = self._tokenizer(prompts).to(next(self._model.parameters()).device)
        features = torch.cat([self._encode_tokens(t) for t in tokens.split(_PROMPTS_PER_BATCH)])
        features = F.normalize(features.float(), dim=-1)
        means = features.unflatten(0, (len(phrases), -1)).mean(1)
        return F.normalize(means, dim=-1)

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        tower = self._tower
        if not self._is_causal:
            return self._model.encode_text(tokens)
        # The mask is causal: what follows the end token, where the feature is read, cannot
        # change it, so the context ends with the longest prompt.
        end = tokens.argmax(-1)
        length = int(end.max()) + 1
        x = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = tower.ln_final(x[torch.arange(len(x), device=x.device), end])
        projection = tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Module) else x @ projection

    @property
    def _is_causal(self) -> bool:
        tower = self._tower
        pool_type = getattr(tower, 'text_pool_type', getattr(tower, 'pool_type', None))
        return (
            pool_type == 'argmax'
            and getattr(tower, 'attn_mask', None) is not None
            and getattr(tower, 'cls_emb', None) is None
        )
