"""Phrases in the 80 prompt templates, as tokens."""

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES, SimpleTokenizer
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

#: Of open_clip: a call makes int64 (B, context length) of B texts.
Tokenizer: TypeAlias = SimpleTokenizer | HFTokenizer

#: The 80 prompt templates of the CLIP paper; each makes a sentence of a phrase.
PROMPT_TEMPLATES: tuple[Callable[[str], str], ...] = tuple(OPENAI_IMAGENET_TEMPLATES)

# Phrases of which the tokenizer makes the same tokens whatever stands around them.
_PLAIN = re.compile(r'[A-Za-z0-9]+([ -]+[A-Za-z0-9]+)*')
# A word that no template has.
_MARKER = 'qzxj'


class PromptTokenizer:
    """Tokens of phrases in every template.

    open_clip's tokenizer cleans and splits every prompt anew, which for a hundred phrases takes
    longer than a GPU takes to encode them. For plain words the tokens of a prompt are those of its
    parts, so the parts of the templates are split once and a phrase once, not 80 times.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: int = tokenizer.context_length
        #: Tokens before and after the phrase in each template; None where parts cannot be joined.
        self._around: list[tuple[list[int], list[int]]] | None = None
        if type(tokenizer) is SimpleTokenizer and tokenizer.reduction_fn is None:
            parts = (template(_MARKER).partition(_MARKER) for template in PROMPT_TEMPLATES)
            self._around = [
                (tokenizer.encode(before), tokenizer.encode(after)) for before, _, after in parts
            ]

    def __call__(self, phrases: Sequence[str]) -> Tensor:
        """int64 (80 x len(phrases), context): all prompts of the first phrase, then the next's."""
        return torch.cat([self._prompts(phrase) for phrase in phrases])

    def longest(self, phrase: str) -> int:
        """Number of tokens of the phrase's longest prompt, start and end included."""
        if self._around is None or not _PLAIN.fullmatch(phrase):
            return max(len(self._encode(template(phrase))) for template in PROMPT_TEMPLATES) + 2
        around = max(len(before) + len(after) for before, after in self._around)
        return around + len(self._tokenizer.encode(phrase)) + 2

    def _prompts(self, phrase: str) -> Tensor:
        if self._around is None or not _PLAIN.fullmatch(phrase):
            return self._tokenizer([template(phrase) for template in PROMPT_TEMPLATES])
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        middle = self._tokenizer.encode(phrase)
        rows = []
        for before, after in self._around:
            row = [start, *before, *middle, *after][: self._context - 1]
            rows.append([*row, end] + [0] * (self._context - 1 - len(row)))
        return torch.tensor(rows)

    def _encode(self, prompt: str) -> list[int]:
        encode = getattr(self._tokenizer, 'encode', None) or self._tokenizer.tokenizer.encode
        return encode(prompt)
