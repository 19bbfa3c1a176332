"""`config/segment.yaml` and the table of parameters in docs/node.md: `make settings-docs`.

Both are made from the declarations of settings, in `cliptrase_ros/segmentation/settings.py` and
`cliptrase_ros/ros/settings.py`.
"""

import json
import re
import textwrap
from pathlib import Path

from cliptrase_ros.ros.settings import PARAMETERS, default_value
from cliptrase_ros.segmentation.settings import Setting

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / 'config' / 'segment.yaml'
PAGE = ROOT / 'docs' / 'node.md'
BEGIN, END = '<!-- begin of what make settings-docs writes -->', '<!-- end of it -->'
HEAD = """\
# Parameters of the segmentation node, at their defaults; docs/node.md says more.
# `make settings-docs` writes this file.
/**:
  ros__parameters:
"""


def main() -> None:
    """Rewrite the parameter file and the table."""
    FILE.write_text(parameter_file(), encoding='utf-8')
    PAGE.write_text(page(PAGE.read_text(encoding='utf-8')), encoding='utf-8')


def parameter_file() -> str:
    """The content of `config/segment.yaml`."""
    parts = [HEAD]
    for live, title in ((True, 'Can be set while the node runs.'), (False, 'Read once, at start.')):
        parts.append(f'    # {title}\n')
        parts += [_yaml(declared) for declared in PARAMETERS if declared.live == live]
    return '\n'.join(parts)


def _yaml(declared: Setting) -> str:
    rule = f' ({declared.rule})' if declared.rule else ''
    comment = textwrap.fill(f'{declared.doc.rstrip(".")}{rule}.', 94)
    value = default_value(declared)
    if isinstance(value, list) and len(value) > 1:
        text = ''.join(f'\n  - {_yaml_value(entry)}' for entry in value)
    else:
        text = f' {_yaml_value(value)}'
    return textwrap.indent(f'{textwrap.indent(comment, "# ")}\n{declared.name}:{text}\n', ' ' * 4)


def _yaml_value(value: object) -> str:
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, list):
        return f'[{", ".join(map(_yaml_value, value))}]'
    return json.dumps(value)


def page(text: str) -> str:
    """A page with the table of parameters between its two marks."""
    rows = ['| name | default | live | range | what |', '|---|---|---|---|---|']
    rows += [_row(declared) for declared in PARAMETERS]
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return '\n'.join([f'{before}{BEGIN}\n', *rows, f'\n{END}{after}'])


def _row(declared: Setting) -> str:
    value = default_value(declared)
    default = '; '.join(value) if isinstance(value, list) else str(value)
    default = default.lower() if isinstance(value, bool) else default
    choices = ', '.join(f'`{choice}`' for choice in declared.choices)
    cells = (
        f'`{declared.name}`',
        f'`{default}`' if default else '',
        'yes' if declared.live else 'no',
        choices or _code(declared.rule),
        _code(declared.doc),
    )
    return f'| {" | ".join(cells)} |'


def _code(text: str) -> str:
    """Markdown of what the declarations write in single quotes."""
    return re.sub(r"'([^']*)'", lambda quoted: f'`{quoted[1]}`' if quoted[1] else "`''`", text)


if __name__ == '__main__':
    main()
