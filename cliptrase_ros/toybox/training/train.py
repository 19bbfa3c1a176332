"""Train the toybox CLIP from captions: `python -m cliptrase_ros.toybox.training.train --help`."""

import argparse
import copy
import ctypes
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from cliptrase_ros.segmentation.model.text import causal_features
from cliptrase_ros.segmentation.settings import setting, settings_of
from cliptrase_ros.toybox.training import towers, views
from cliptrase_ros.toybox.training.captions import levels, prompts, training_texts
from cliptrase_ros.toybox.training.losses import caption_loss

CHECKPOINT = 'checkpoint.pt'
LOSSES = ('dense', 'cls')
SAVE_EVERY_S = 120.0


@dataclass(frozen=True)
class Settings:
    """What a run depends on; a checkpoint can only be resumed with the same."""

    loss: str = setting(
        'dense', 'dense: on [CLS] and on the patches; cls: the control', choices=LOSSES
    )
    layers: int = setting(8, 'of the image tower')
    steps: int = setting(9000, 'most steps')
    tokens: int = setting(1200, 'image tokens a step; smaller windows make larger batches')
    learning_rate: float = setting(1e-3, 'of AdamW, at its peak')
    matrix_learning_rate: float = setting(3e-3, 'of Muon, at its peak')
    weight_decay: float = setting(0.05, 'of matrices')
    warmup: int = setting(200, 'steps until learning rates are at their peak')
    seed: int = setting(0, 'of weights, views and windows')
    view_size: int = setting(224, 'side of rendered views, pixels')
    pool: int = setting(6000, 'views to render once; 0 = always new ones')


class Trainer:
    """Model, optimisers and step count; one `step` is one batch."""

    def __init__(
        self,
        settings: Settings,
        config: dict,
        source: views.PoolSource | views.FreshSource,
        device: torch.device,
    ):
        torch.manual_seed(settings.seed)
        self.settings, self.source, self.device = settings, source, device
        self.config = copy.deepcopy(config)
        model_config = self.config['model_cfg']
        model_config['vision_cfg']['layers'] = settings.layers
        self.tokenizer = towers.Tokenizer(
            training_texts(), model_config['text_cfg']['context_length']
        )
        self.model = towers.make_model(model_config, len(self.tokenizer.token_ids)).to(device)
        self.tower = towers.ImageTower(self.model.visual)
        self.optimizers = make_optimizers(self.model, settings)
        preprocess = config['preprocess_cfg']
        self.mean, self.std = (
            torch.tensor(preprocess[key], device=device)[:, None, None] for key in ('mean', 'std')
        )
        self.steps_done = 0
        self.seconds = 0.0

    def step(self, progress: float) -> dict[str, float]:
        """Train on one batch; returns the loss and its terms.

        Args:
            progress: 0..1, sets learning rate and window size.
        """
        settings, step = self.settings, self.steps_done
        patch = self.tower.backbone.patch_size
        height, width = views.window_size(step, progress, settings.seed, settings.view_size, patch)
        count = max(2, settings.tokens // ((height // patch) * (width // patch)))
        batch = self.source.batch(step, count, height, width)
        generator = torch.Generator().manual_seed(settings.seed * 7_919 + step)
        pixels, colorless = views.augment(batch.pixels.to(self.device), generator)
        pixels = (pixels - self.mean) / self.std
        coverage = batch.coverage.to(self.device)

        warm = min(1.0, (step + 1) / settings.warmup)
        share = warm * (0.02 + 0.98 * math.cos(math.pi / 2 * progress) ** 2)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group['lr'] = share * optimizer.defaults['lr']
        # On CPUs the fused attention's backward pass is several times slower than plain products.
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == 'cpu' else nullcontext()
        with self._autocast(), attention:
            plain, dense = self.tower(pixels)
            text = self._encode_text(generator)
        tokens = torch.cat([plain[:, :1], dense.tokens.float()[:, 1:]], 1)
        terms = caption_loss(
            tokens,
            dense.correlation,
            text,
            levels(),
            coverage,
            self.model.logit_scale.exp(),
            dense=settings.loss == 'dense',
            colorless=colorless,
        )
        loss = sum(terms.values())
        self.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            # CLIP's own bound: cosines are multiplied by at most 100.
            self.model.logit_scale.clamp_(0, math.log(100))
        self.steps_done += 1
        return {name: value.item() for name, value in {'loss': loss, **terms}.items()}

    def _autocast(self):
        # Processors without instructions for bfloat16 are ten times slower with it. Older PyTorch
        # cannot tell what instructions there are.
        instructions = getattr(torch.cpu, 'get_capabilities', dict)()
        is_slow = self.device.type == 'cpu' and not instructions.get('avx512_bf16')
        return nullcontext() if is_slow else torch.autocast(self.device.type, torch.bfloat16)

    def _encode_text(self, generator: torch.Generator) -> list[Tensor]:
        chosen = [prompts(level, generator) for level in levels()]
        tokens = self.tokenizer([prompt for group in chosen for prompt in group]).to(self.device)
        features = F.normalize(causal_features(self.model, tokens).float(), dim=-1)
        return list(features.split([len(group) for group in chosen]))

    def save(self, folder: Path) -> None:
        """Write the checkpoint and the model in its published form."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            'settings': asdict(self.settings),
            'model': self.model.state_dict(),
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'steps_done': self.steps_done,
            'seconds': self.seconds,
        }
        temporary = folder / f'{CHECKPOINT}.partial'
        torch.save(state, temporary)
        temporary.replace(folder / CHECKPOINT)
        towers.export(self.model, self.tokenizer.token_ids, self.config, folder)

    def resume(self, folder: Path) -> bool:
        """Continue from the folder's checkpoint; returns whether there is one."""
        path = folder / CHECKPOINT
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state['settings'] != asdict(self.settings):
            raise SystemExit(f'{path} was made with other settings: {state["settings"]}')
        self.model.load_state_dict(state['model'])
        for optimizer, saved in zip(self.optimizers, state['optimizers'], strict=True):
            optimizer.load_state_dict(saved)
        self.steps_done, self.seconds = state['steps_done'], state['seconds']
        return True


def make_optimizers(model: torch.nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for everything else.

    600 steps with Muon come as far as 2100 with AdamW alone, each 1.2 times as long.
    """
    if not hasattr(torch.optim, 'Muon'):
        raise SystemExit(f'training needs PyTorch 2.9 or later, this is {torch.__version__}')
    matrices, decayed, others = [], [], []
    for name, parameter in model.named_parameters():
        in_block = 'resblocks' in name and parameter.ndim == 2
        group = matrices if in_block else decayed if parameter.ndim >= 2 else others
        group.append(parameter)
    adamw = torch.optim.AdamW(
        [
            {'params': decayed, 'weight_decay': settings.weight_decay},
            {'params': others, 'weight_decay': 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    muon = torch.optim.Muon(
        matrices,
        lr=settings.matrix_learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn='match_rms_adamw',
    )
    return [adamw, muon]


def train(trainer: Trainer, folder: Path, minutes: float) -> None:
    """Train until the steps or the minutes (0 for no limit) are used up, saving now and then."""
    settings = trainer.settings
    earlier, begin = trainer.seconds, time.monotonic()
    saved, mean = begin, None
    bar = tqdm(total=settings.steps, initial=trainer.steps_done, unit='step', dynamic_ncols=True)
    while trainer.steps_done < settings.steps:
        trainer.seconds = earlier + time.monotonic() - begin
        # With a limit on time, the schedule follows whichever runs out first.
        progress = trainer.steps_done / settings.steps
        if minutes:
            progress = max(progress, trainer.seconds / (60 * minutes))
            if progress >= 1:
                break
        terms = trainer.step(progress)
        if mean is None:
            mean = terms
        mean = {name: 0.98 * mean[name] + 0.02 * value for name, value in terms.items()}
        bar.update()
        if trainer.steps_done % 10 == 0:
            shown = {name: f'{value:.3f}' for name, value in mean.items()}
            bar.set_postfix(shown | {'scale': f'{trainer.model.logit_scale.exp():.1f}'})
        if time.monotonic() - saved > SAVE_EVERY_S:
            trainer.save(folder)
            saved = time.monotonic()
    bar.close()
    trainer.save(folder)


def keep_memory() -> None:
    """Tell glibc to reuse large blocks: fresh pages cost more than the arithmetic on them."""
    # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h; other C libraries have no mallopt.
    trim_threshold, mmap_threshold = -1, -3
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, ctypes.c_int(2**31 - 1))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m cliptrase_ros.toybox.training.train',
        description='Train the toybox CLIP on rendered rooms, from captions alone.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('output', type=Path, help='folder for checkpoint and model; continued')
    for declared in settings_of(Settings):
        parser.add_argument(
            f'--{declared.name.replace("_", "-")}',
            type=declared.type,
            default=declared.default,
            choices=declared.choices or None,
            help=declared.doc,
        )
    parser.add_argument('--minutes', type=float, default=0.0, help='most minutes; 0 = no limit')
    parser.add_argument('--pool-folder', type=Path, default=Path('toybox_views'))
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0 = all')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    keep_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    if settings.pool:
        workers = options.threads or torch.get_num_threads()
        pool = views.load_pool(
            options.pool_folder, settings.pool, settings.view_size, settings.seed, workers
        )
        source = views.PoolSource(pool, settings.seed)
    else:
        source = views.FreshSource(settings.view_size, settings.seed, device)
    trainer = Trainer(settings, towers.read_config(), source, device)
    if trainer.resume(options.output):
        print(f'resuming at step {trainer.steps_done}')
    train(trainer, options.output, options.minutes)


if __name__ == '__main__':
    main()
