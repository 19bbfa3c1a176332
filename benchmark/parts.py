"""A check in parts that goes through all of them, whatever becomes of one.

A part may fail, raise, hang, or end its process; the report tells, and the next one runs.
"""

import faulthandler
import json
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

#: Exit status of a check that was stopped before it failed.
STOPPED = 3


@dataclass(frozen=True)
class Part:
    """One part of the check; after `limit_s`, seconds, it counts as hanging.

    Attributes:
        run: Makes checks by the `Checks` it is given, and returns figures, which JSON can hold.
    """

    run: Callable[['Checks'], dict]
    limit_s: float

    @property
    def name(self) -> str:
        """As the report calls it."""
        return self.run.__name__


@dataclass
class Checks:
    """What a part is given.

    Attributes:
        report: Of all parts, for figures that belong to the whole.
        write: Writes the report so far, for a part that may not come to its end.
        failures: What was not as it has to be.
    """

    report: dict
    write: Callable[[], None] = lambda: None
    failures: list[str] = field(default_factory=list)

    def __call__(self, passed: bool, what: str) -> None:
        """Count a failure, unless it passed; `what` says what is wrong."""
        if not passed:
            self.failures.append(what)


def run_to_the_end(command: Sequence[str], path: Path, begun: str, limit_s: float) -> int:
    """Run a command that calls `run_parts` until no part is left.

    Args:
        path: Of the report; this and `begun` are what the command gives to `run_parts`.
        limit_s: After so long, seconds, the part that runs is ended, and the report goes without
            those that are left.

    Returns:
        The exit status: 1 if a check failed, `STOPPED` if none did but parts are left; that of the
        command if it failed before any part.
    """
    end = time.monotonic() + limit_s
    count, in_time = -1, True
    while True:
        try:
            status = subprocess.run(command, timeout=end - time.monotonic()).returncode
        except subprocess.TimeoutExpired:
            in_time = False
            print(f'stopped after {limit_s:.0f} s; what is not in the report was not run')
            _remove_unfinished(path, begun)
            break
        if status == 0:
            break
        parts = read_report(path, begun)['parts']
        if len(parts) <= count or not parts:
            # It failed outside any part, for want of a GPU or a module, and has said so.
            return status
        count = len(parts)
    parts = read_report(path, begun)['parts']
    failed = [name for name, part in parts.items() if not part['passed']]
    print(f'{len(parts) - len(failed)} of {len(parts)} parts passed; the report is {path}')
    for name in failed:
        print(f'{name}:', *parts[name]['failures'], sep='\n  ')
    if failed:
        return 1
    return 0 if in_time else STOPPED


def run_parts(
    path: Path, begun: str, parts: Sequence[Part], is_usable: Callable[[], bool] = lambda: True
) -> int:
    """Run those parts that the report does not have yet.

    Args:
        path: Of the report.
        begun: When the check began, which tells its report from an earlier one.
        is_usable: Whether parts can go on in this process.

    Returns:
        0 when all have been run, whatever they found; otherwise the others are to be run in another
        process.
    """
    report = read_report(path, begun)
    for part in parts:
        if part.name in report['parts']:
            continue
        # This is what the report says if the part ends the process.
        result = {'passed': False, 'failures': ['it did not come to an end']}
        report['parts'][part.name] = result
        _write(path, report)
        print(f'{part.name} ...', flush=True)
        checks = Checks(report, partial(_write, path, report))
        begin = time.monotonic()
        # Ends the process even where a call into CUDA never returns.
        faulthandler.dump_traceback_later(part.limit_s, exit=True)
        try:
            result['figures'] = part.run(checks)
        except Exception as error:
            traceback.print_exc()
            checks.failures.append(f'{type(error).__name__}: {error}'[:500])
        finally:
            faulthandler.cancel_dump_traceback_later()
        result |= {
            'passed': not checks.failures,
            'failures': checks.failures,
            'seconds': round(time.monotonic() - begin, 1),
        }
        _write(path, report)
        outcome = 'passed' if result['passed'] else 'FAILED: ' + '; '.join(checks.failures)
        print(f'{part.name} {outcome} ({result["seconds"]} s)', flush=True)
        if not is_usable():
            return 1
    return 0


def read_report(path: Path, begun: str) -> dict:
    """The report so far; an empty one if there is none, or another check's."""
    if path.exists():
        report = json.loads(path.read_text(encoding='utf-8'))
        if report.get('begun') == begun:
            return report
    return {'begun': begun, 'parts': {}}


def _remove_unfinished(path: Path, begun: str) -> None:
    """Take the part that was running out of the report: it has neither passed nor failed."""
    report = read_report(path, begun)
    if report['parts'] and 'seconds' not in list(report['parts'].values())[-1]:
        report['parts'].popitem()
        _write(path, report)


def _write(path: Path, report: dict) -> None:
    part = path.with_name(path.name + '.part')
    part.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
    part.replace(path)
