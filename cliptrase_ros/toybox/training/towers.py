"""The toybox CLIP as training sees it, plain tokens and recovered ones together, and as written."""

import json
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from cliptrase_ros.segmentation.model.backbone import DenseBackbone, DenseFeatures
from cliptrase_ros.segmentation.model.weights import CONFIG_NAME, TOYBOX_FOLDER, WEIGHTS_NAME


class ImageTower:
    """Runs the tower once for plain and for recovered tokens: only their last blocks differ."""

    def __init__(self, visual: nn.Module):
        """Wrap open_clip's VisionTransformer."""
        self.visual = visual
        self.backbone = DenseBackbone(visual)
        self._last_input: Tensor | None = None
        visual.transformer.resblocks[-1].ln_1.register_forward_pre_hook(self._remember)

    def _remember(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._last_input = inputs[0]

    def __call__(self, pixels: Tensor) -> tuple[Tensor, DenseFeatures]:
        """Run the tower.

        Args:
            pixels: float (B, 3, H, W), normalised; H and W are multiples of the patch size.

        Returns:
            Tokens of the unmodified tower, float32 (B, 1 + N, D), unit length, [CLS] first; and
            what the engine makes of the same pass.
        """
        dense = self.backbone(pixels)
        visual = self.visual
        plain = visual.ln_post(visual.transformer.resblocks[-1](self._last_input)) @ visual.proj
        self._last_input = None
        return F.normalize(plain.float(), dim=-1), dense


class Tokenizer:
    """CLIP's tokenizer with only the tokens that training uses, renumbered in order.

    The order is kept because the text tower finds the end token by its largest number.
    """

    def __init__(self, texts: list[str], context_length: int):
        self._full = open_clip.SimpleTokenizer(context_length=context_length)
        self.token_ids = torch.cat([self._full(texts).unique(), torch.tensor([0])]).unique()

    def __call__(self, texts: list[str]) -> Tensor:
        """Tokens of texts, int64 (len(texts), context_length)."""
        return torch.searchsorted(self.token_ids, self._full(texts))


def make_model(config: dict, tokens: int) -> nn.Module:
    """Make a CLIP of random weights by open_clip's `model_cfg`, for a vocabulary of `tokens`."""
    text = {**config['text_cfg'], 'vocab_size': tokens}
    return open_clip.CLIP(
        config['embed_dim'], config['vision_cfg'], text, quick_gelu=config['quick_gelu']
    )


def read_config(folder: Path = TOYBOX_FOLDER) -> dict:
    """The folder's open_clip configuration."""
    return json.loads((folder / CONFIG_NAME).read_text())


def export(model: nn.Module, token_ids: Tensor, config: dict, folder: Path) -> None:
    """Write configuration and float16 weights.

    Args:
        token_ids: int64, numbers in CLIP's vocabulary of the rows of the token embedding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().cpu().half().contiguous()
        for name, tensor in model.state_dict().items()
        if name != 'attn_mask'
    }
    state['token_ids'] = token_ids.long()
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + '\n')
    path = folder / WEIGHTS_NAME
    temporary = path.with_suffix('.partial')
    save_file(state, temporary)
    # safetensors makes files that only their owner can read; a package's data is for everyone.
    temporary.chmod(0o644)
    temporary.replace(path)
