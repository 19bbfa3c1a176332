"""The diagnostics of running nodes as a table for the terminal; knows messages by fields only."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

#: A report is stale after so many seconds; the node reports once a second.
STALE_S = 3.0

_ENGINE, _CAMERA = ': engine', ': camera '
_LEVELS = {0: ('ok', 'green'), 1: ('warning', 'yellow'), 2: ('error', 'red'), 3: ('stale', 'red')}


@dataclass(frozen=True)
class Status:
    """Fields of one diagnostic_msgs/DiagnosticStatus.

    Attributes:
        level: 0 ok, 1 warning, 2 error, 3 stale.
    """

    level: int
    message: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """What a node reported last, its cameras by name."""

    engine: Status
    cameras: Mapping[str, Status]
    at_s: float


class Panel:
    """The latest report of every segmentation node heard of."""

    def __init__(self):
        # By name and process, because two nodes may have one name by mistake.
        self._reports: dict[tuple[str, str], Report] = {}

    @property
    def nodes(self) -> list[str]:
        """Full names of the nodes heard of, without the leading slash."""
        return sorted(name for name, _ in self._reports)

    def update(self, array, now_s: float) -> bool:
        """Take in what concerns segmentation nodes; returns whether anything does.

        Args:
            array: Fields of diagnostic_msgs/DiagnosticArray.
            now_s: Of any clock that runs forwards.
        """
        statuses = {status.name: _read(status) for status in array.status}
        # Only the engine's report tells a segmentation node: other nodes have cameras, too.
        nodes = {
            name.removesuffix(_ENGINE)
            for name, status in statuses.items()
            if name.endswith(_ENGINE) and 'vocabulary_version' in status.values
        }
        for node in nodes:
            engine, prefix = statuses[f'{node}{_ENGINE}'], f'{node}{_CAMERA}'
            cameras = {
                name.removeprefix(prefix): status
                for name, status in statuses.items()
                if name.startswith(prefix)
            }
            # A node that was started again takes the place of the one that fell silent.
            for key, old in list(self._reports.items()):
                if key[0] == node and now_s - old.at_s > STALE_S:
                    del self._reports[key]
            key = node, engine.values.get('process', '')
            self._reports[key] = Report(engine, cameras, now_s)
        return bool(nodes)

    def render(self, now_s: float) -> RenderableType:
        """Return what rich prints: a table for each node, or what is being waited for."""
        if not self._reports:
            return Text('waiting for /diagnostics of a segmentation node ...', style='dim')
        return Group(*(self._table(*key, now_s) for key in sorted(self._reports)))

    def _table(self, node: str, process: str, now_s: float) -> Table:
        report = self._reports[node, process]
        silent_s = now_s - report.at_s
        shown = f'{node} in {process}' if self.nodes.count(node) > 1 else node
        table = Table(
            title=_title(shown, report.engine, silent_s),
            title_justify='left',
            caption=_caption(report.engine, report.cameras),
            caption_justify='left',
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column('camera', no_wrap=True)
        for head in ('in /s', 'out /s', 'latency ms', 'work ms', 'dropped', 'refused', 'failed'):
            table.add_column(head, justify='right', no_wrap=True)
        table.add_column('state', no_wrap=True)
        for name, status in sorted(report.cameras.items()):
            values = status.values
            table.add_row(
                Text(name),
                values.get('received_hz', ''),
                values.get('labelled_hz', ''),
                _mean_and_max(values, 'latency'),
                _mean_and_max(values, 'processing'),
                _sum(values, 'dropped_busy', 'dropped_rate'),
                values.get('refused', ''),
                values.get('failed', ''),
                Text(*_LEVELS.get(status.level, _LEVELS[3])),
                style='dim' if silent_s > STALE_S else '',
            )
        return table


def _read(status) -> Status:
    level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
    return Status(level, status.message, {pair.key: pair.value for pair in status.values})


def _title(node: str, engine: Status, silent_s: float) -> Text:
    word, style = _LEVELS.get(engine.level, _LEVELS[3])
    title = Text(f'/{node}  ')
    title.append(f'{word}: {engine.message}', style=style)
    if silent_s > STALE_S:
        title.append(f'  no report for {silent_s:.0f} s', style='red')
    return title


def _caption(engine: Status, cameras: Mapping[str, Status]) -> Text:
    values = engine.values
    # As text: what others wrote must not be taken for markup.
    caption = Text(
        f'{values.get("model", "")} on {values.get("device", "")}, '
        f'vocabulary {values["vocabulary_version"]}'
    )
    if pending := values.get('vocabulary_pending'):
        caption.append(f', preparing {pending}', style='yellow')
    if failure := values.get('vocabulary_failure'):
        caption.append(f', failed: {failure}', style='red')
    for name, status in sorted(cameras.items()):
        if status.level != 0 or status.values.get('subscribed') == 'False':
            style = _LEVELS.get(status.level, _LEVELS[3])[1]
            caption.append(f'\n{name}: {status.message}', style=style)
    return caption


def _mean_and_max(values: Mapping[str, str], name: str) -> str:
    mean, largest = values.get(f'{name}_ms_mean'), values.get(f'{name}_ms_max')
    return f'{_rounded(mean)} ({_rounded(largest)})' if mean and largest else ''


def _rounded(number: str) -> str:
    try:
        return f'{float(number):.0f}'
    except ValueError:
        return number


def _sum(values: Mapping[str, str], *names: str) -> str:
    try:
        return str(sum(int(values[name]) for name in names))
    except (KeyError, ValueError):
        return ''
