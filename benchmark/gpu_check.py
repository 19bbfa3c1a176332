"""Says whether the engine is right on this machine's GPU, and how fast: `make gpu-check`.

`python benchmark/gpu_check.py` needs no ROS, no rosbags and no network, but PyTorch with CUDA,
open_clip, OpenCV, Pillow, NumPy and tqdm, and pytest for its last part. `--dry` runs the same code
on a CPU with a tiny model. `gpu_parts.py` has the parts.

Each part runs whatever became of those before it, in a process that is started anew when a part
ends it, hangs, loses the GPU, or fails to capture a graph. The report is written again after each
part. The exit status is 0 if every check passed, 1 if one failed, and 3 if the whole was stopped
after eight minutes with none failed. How long anything takes fails nothing.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from parts import run_parts, run_to_the_end

ROOT = Path(__file__).resolve().parent.parent

# Of all parts together.
_LIMIT_S = 480.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check."""
    description, _, _ = __doc__.partition('\n')
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--dry', action='store_true', help='on a CPU, with a tiny model')
    parser.add_argument(
        '--json',
        type=Path,
        default=Path('gpu_check.json'),
        metavar='FILE',
        help='where the report goes (default: %(default)s)',
    )
    parser.add_argument('--only', nargs='+', metavar='PART', help='parts to run (default: all)')
    # One of the processes of a check, and when that began.
    parser.add_argument('--begun', help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.begun:
        return _run_here(options)
    begun = datetime.now(timezone.utc).isoformat()
    command = [sys.executable, __file__, '--begun', begun, '--json', str(options.json)]
    command += ['--dry'] * options.dry + (['--only', *options.only] if options.only else [])
    return run_to_the_end(command, options.json, begun, _LIMIT_S)


def _run_here(options: argparse.Namespace) -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / 'test')]
    import gpu_parts
    import torch

    parts = gpu_parts.PARTS
    unknown = set(options.only or ()) - {part.name for part in parts}
    if unknown:
        names = ', '.join(part.name for part in parts)
        print(f'--only: there is no part {", ".join(sorted(unknown))}; there are: {names}')
        return 2
    if not options.dry and not torch.cuda.is_available():
        print('PyTorch finds no CUDA device here; --dry runs the same code on a CPU')
        return 2
    gpu_parts.set_up(is_dry=options.dry)
    wanted = [part for part in parts if not options.only or part.name in options.only]
    return run_parts(options.json, options.begun, wanted, gpu_parts.is_usable)


if __name__ == '__main__':
    sys.exit(main())
