"""Hours of a robot in minutes: `make soak MINUTES=30 FUZZ=10000`.

The node labels three cameras of different sizes, rates and encodings, whose stamps loop, while the
vocabulary changes every second and the method in every third, and three more cameras send what
fuzzing gives: images, compressed images, serialized bytes; values of parameters are fuzzed as well.
Every process is real and talks over DDS. At the end a summary says what was checked; the status is
1 if anything did not hold.
"""

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

import fuzzing
import numpy as np
from cameras import CAMERAS, FUZZED
from cliptrase_ros.msg import ClassMasks, Vocabulary
from processes import (
    Failure,
    Observer,
    cameras,
    end,
    observer,
    resources,
    segment_node,
    stop_cameras,
)
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from tqdm import tqdm

NAMES = (*CAMERAS, *FUZZED)
BASELINE = {
    'rate': 20.0,
    'resolution': 64,
    'min_confidence': 0.0,
    'smoothing': 0.0,  # before the preset, which it may keep from being set
    'preset': 'robot',
    'refinement': 'none',
    'window': -1,
    'background': ['ceiling', 'door'],
}
#: What labels are made by in every third second, in turn, with the baseline between.
METHODS = (
    {'preset': 'sc_clip'},
    {'preset': 'sc_clip', 'window': 64, 'refinement': 'pamr'},
    {'preset': 'plus', 'refinement': 'edges', 'smoothing': 0.5},
    {'preset': 'paper', 'refinement': 'pamr'},
    {'preset': 'sc_clip', 'window': 0, 'refinement': 'edges'},
)
WORDS = ('ball', 'box', 'cone', 'cylinder', 'wall', 'floor', 'red ball', 'blue box', 'green cone')
#: Memory, threads and files count from here, seconds after the first labels. The most elongated
#: images, which need most memory, come before: what is kept after them is no growth.
WARM_S = 60.0
#: A run whose fifths are shorter tells nothing of its memory, seconds.
SHORTEST_S = 30.0
#: A camera without a label for so long, seconds, and for so many labels of others, is starved.
STARVED_S = 10.0
STARVED_TURNS = 50
#: Most relative growth of memory.
MAX_GROWTH = 0.01
#: The same in runs of fewer minutes. oneDNN keeps a little for each new size of image, less and
#: less; there that still goes on while memory counts.
SHORT_MIN, MAX_GROWTH_IN_SHORT = 20.0, 0.02


class Watch:
    """What the node publishes: labels, the masks that say their version, vocabularies."""

    def __init__(self, node: Observer):
        self.vocabularies: dict[int, dict[int, str]] = {}
        self.labels = dict.fromkeys(NAMES, 0)
        self.checked = 0
        self.faults: list[str] = []
        self.longest_gap_s = dict.fromkeys(CAMERAS, 0.0)
        self._last_at: dict[str, tuple[float, int]] = {}
        self._labels: dict[str, set[int]] = {}
        self._masks: dict[str, ClassMasks] = {}
        self._seen: set[str] = set()
        self._version = dict.fromkeys(CAMERAS, 0)
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(Vocabulary, '/cliptrase/vocabulary', self._on_vocabulary, latched)
        for name in NAMES:
            self._listen(node, name)

    def _listen(self, node: Observer, name: str) -> None:
        def on_label(image: Image) -> None:
            self._on_label(name, image)

        def on_masks(masks: ClassMasks) -> None:
            self._masks[masks.header.frame_id] = masks
            self._match(name, masks.header.frame_id)

        node.create_subscription(Image, f'/cliptrase/{name}/label', on_label, 100)
        if name in CAMERAS:
            node.create_subscription(ClassMasks, f'/cliptrase/{name}/masks', on_masks, 100)

    def _on_vocabulary(self, vocabulary: Vocabulary) -> None:
        if vocabulary.version in self.vocabularies:
            self.faults.append(f'version {vocabulary.version} was announced twice')
        self.vocabularies[vocabulary.version] = {c.id: c.name for c in vocabulary.classes}

    def _on_label(self, name: str, image: Image) -> None:
        self.labels[name] += 1
        if name not in CAMERAS:
            return
        self._last_at[name] = self.check_gap(name)
        frame = image.header.frame_id
        if frame in self._seen:
            self.faults.append(f'{frame} was labelled twice')
        self._seen.add(frame)
        width, height, *_ = CAMERAS[name]
        wanted = width, height, width, 'mono8'
        if (image.width, image.height, image.step, image.encoding) != wanted:
            self.faults.append(f'{frame}: a label image of another size or encoding')
        self._labels[frame] = set(np.unique(np.frombuffer(image.data, np.uint8)).tolist())
        self._match(name, frame)

    def check_gap(self, name: str) -> tuple[float, int]:
        """Note a camera that was not served for too long; returns now and the others' labels."""
        now, others = time.monotonic(), sum(self.labels.values()) - self.labels[name]
        last_at, others_then = self._last_at.get(name, (now, others))
        gap_s = now - last_at
        self.longest_gap_s[name] = max(self.longest_gap_s[name], gap_s)
        # A machine that stands still is not the node's fault.
        if gap_s > STARVED_S and others - others_then > STARVED_TURNS:
            self.faults.append(f'{name} was starved for {gap_s:.1f} s')
        return now, others

    def _match(self, name: str, frame: str) -> None:
        """Compare label and masks of a frame, once both are there."""
        if frame not in self._labels or frame not in self._masks:
            return
        ids, masks = self._labels.pop(frame), self._masks.pop(frame)
        version = masks.vocabulary_version
        known = self.vocabularies.get(version)
        if known is None:
            self.faults.append(f'{frame}: vocabulary {version} was not announced before')
        elif ids - {255} != {m.class_id for m in masks.masks}:
            self.faults.append(f'{frame}: label and masks have different classes')
        elif any(known.get(m.class_id) != m.class_name for m in masks.masks):
            self.faults.append(f'{frame}: classes of another vocabulary than {version}')
        elif version < self._version[name]:
            self.faults.append(f'{frame}: vocabulary {version} after {self._version[name]}')
        self._version[name] = max(self._version[name], version)
        self.checked += 1


def main() -> int:
    """Run it, print a summary, write it where asked; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=5.0)
    parser.add_argument('--fuzz', type=int, default=10_000, help='mutated messages')
    parser.add_argument('--fuzz-parameters', type=int, default=500, help='mutated values')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--model', default='toybox')
    parser.add_argument('--json', type=Path, metavar='FILE')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = soak(arguments, Path(folder))
        except Failure as failure:
            print(f'soak: {failure}', file=sys.stderr)
            return 1
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + '\n')
    return 1 if report['faults'] else 0


def soak(arguments: argparse.Namespace, folder: Path) -> dict:
    """Run every process, watch, and report."""
    seconds = 60.0 * arguments.minutes
    reliable = {
        f'qos_overrides./{name}/{topic}.subscription.{policy}': value
        for name, topic in FUZZED.items()
        for policy, value in (('reliability', 'reliable'), ('depth', 1000))
    }
    parameters = {
        **BASELINE,
        **reliable,
        'cameras': list(NAMES),
        'transport': ['compressed' if 'compressed' in FUZZED.get(n, '') else 'raw' for n in NAMES],
        'model': arguments.model,
        'vocabulary': list(WORDS[:4]),
    }
    fuzz = ('--fuzz', arguments.fuzz, '--seconds', 0.8 * seconds, '--seed', arguments.seed)
    log = folder / 'node.log'
    with (
        observer() as watcher,
        segment_node(log, parameters, folder) as node,
    ):
        watch = Watch(watcher)
        watcher.wait_until_active(node)
        with cameras(folder / 'cameras.log', *fuzz) as sender:
            watcher.wait_for(lambda: all(watch.labels[n] for n in CAMERAS), 'labels of each camera')
            trend, answers = _drive(watcher, watch, node, sender, seconds, arguments)
            sent = stop_cameras(sender)
            counts = _settle(watcher, sent)
            sender.wait(timeout=60)
        ended_s = end(node, log)
    return _report(arguments, watch, trend, answers, sent, counts, ended_s)


def _drive(watcher, watch, node, sender, seconds, arguments) -> tuple[list[dict], dict]:
    """Change words and method every second and fuzz parameters between; sample the resources."""
    rng = random.Random(arguments.seed)
    trend, answers = [], {'seconds': [], 'accepted': 0, 'refused': 0, 'vocabularies': 0}
    begin = time.monotonic()
    fuzzed = 0
    with tqdm(total=round(seconds), unit='s', desc='soak', mininterval=5.0) as bar:
        while (elapsed := time.monotonic() - begin) < seconds:
            for name, running in (('node', node), ('camera process', sender)):
                if running.poll() is not None:
                    raise Failure(f'the {name} ended with status {running.returncode}')
            due = arguments.fuzz_parameters * min(1.0, elapsed / (0.8 * seconds))
            while fuzzed < due:
                _fuzz_parameter(watcher, rng, answers)
                fuzzed += 1
            words = rng.sample(WORDS, rng.randint(1, len(WORDS)))
            turn, is_other = divmod(answers['vocabularies'], 3)
            method = {} if is_other else METHODS[turn % len(METHODS)]
            # From the baseline to any method: from one to another smoothing may be in the way.
            for values in (BASELINE, {**method, 'vocabulary': words}):
                results, took_s = watcher.set_parameters(**values)
                if not all(result.successful for result in results):
                    raise Failure(f'one of {values} was refused: {results}')
                answers['seconds'].append(took_s)
            answers['vocabularies'] += 1
            trend.append({'at_s': elapsed, **resources(node.pid)})
            bar.update(round(elapsed) - bar.n)
            watcher.spin(max(0.0, begin + elapsed + 1.0 - time.monotonic()))
    # Also one that is never served again.
    for name in CAMERAS:
        watch.check_gap(name)
    return trend, answers


def _fuzz_parameter(watcher: Observer, rng: random.Random, answers: dict) -> None:
    name, value = fuzzing.parameter(rng)
    (result,), took_s = watcher.set_parameters(**{name: value})
    answers['seconds'].append(took_s)
    answers['accepted' if result.successful else 'refused'] += 1
    if not result.successful and not result.reason:
        raise Failure(f'{name} = {value!r:.60} was refused without a reason')
    if result.successful and name in BASELINE:
        watcher.set_parameters(**{name: BASELINE[name]})


def _counts(watcher: Observer) -> dict[str, dict[str, int]]:
    """What the diagnostics count of each camera."""
    keys = ('received', 'labelled', 'refused', 'failed')
    dropped = ('dropped_busy', 'dropped_rate', 'dropped_unwanted')
    return {
        name: {key: int(watcher.reports[f'camera {name}'][key]) for key in (*keys, *dropped)}
        for name in NAMES
    }


def _accounted_for(counts: dict[str, int]) -> int:
    """How many of the images that one camera received have met some end."""
    return sum(counts.values()) - counts['received']


def _settle(watcher: Observer, sent: dict) -> dict[str, dict[str, int]]:
    """Wait until every image is accounted for, and return the counts of each camera."""

    def is_settled() -> bool:
        counts = _counts(watcher)
        return all(c['received'] == _accounted_for(c) for c in counts.values()) and all(
            counts[n]['received'] == sent[n]['sent'] for n in ('fuzzed', 'packed')
        )

    # If that does not happen, the report tells which were not.
    with contextlib.suppress(Failure):
        watcher.wait_for(is_settled, 'every image to be accounted for', 30.0)
    return _counts(watcher)


def _report(arguments, watch, trend, answers, sent, counts, ended_s) -> dict:
    faults = list(watch.faults)
    for name, of_camera in counts.items():
        received, accounted_for = of_camera['received'], _accounted_for(of_camera)
        if received != accounted_for:
            faults.append(f'{name}: {received} images received, {accounted_for} accounted for')
    for name in ('fuzzed', 'packed'):
        received = counts[name]['received']
        if received != sent[name]['sent']:
            faults.append(f'{name}: {sent[name]["sent"]} sent, {received} received')
    if counts['fuzzed']['refused'] != sent['fuzzed']['refused']:
        faults.append(f'fuzzed: {sent["fuzzed"]["refused"]} bad images, not as many refused')
    if counts['packed']['refused'] < sent['packed']['refused']:
        faults.append(f'packed: {sent["packed"]["refused"]} bad images, fewer refused')
    growth = _growth(trend)
    most = MAX_GROWTH if arguments.minutes >= SHORT_MIN else MAX_GROWTH_IN_SHORT
    if growth is not None and growth['memory'] > most:
        faults.append(f'memory grew by {100 * growth["memory"]:.1f} % after the first minute')
    for what in ('threads', 'files'):
        if growth is not None and growth[what] > 0:
            faults.append(f'{growth[what]:.0f} more {what} than after the first minute')
    answered_ms = np.array(answers['seconds']) * 1e3
    return {
        'minutes': arguments.minutes,
        'label_images': watch.labels,
        'checked_against_their_vocabulary': watch.checked,
        'vocabularies': len(watch.vocabularies),
        'longest_gap_s': {name: round(gap, 2) for name, gap in watch.longest_gap_s.items()},
        'fuzzed_messages': sum(sent[name]['sent'] for name in FUZZED),
        'fuzzed_parameters': {key: answers[key] for key in ('accepted', 'refused')},
        'fuzzed_refused': {name: counts[name]['refused'] for name in FUZZED},
        'accounts': counts,
        'parameter_answer_ms': {
            'p50': round(float(np.percentile(answered_ms, 50)), 1),
            'p99': round(float(np.percentile(answered_ms, 99)), 1),
        },
        'memory_mb': _each_minute(trend),
        'growth_after_first_minute': growth,
        'threads': [trend[0]['threads'], trend[-1]['threads']],
        'files': [trend[0]['files'], trend[-1]['files']],
        'sigint_to_end_s': round(ended_s, 2),
        'faults': faults,
    }


def _each_minute(trend: list[dict]) -> list[list[float]]:
    """Least and most memory of every minute, MB."""
    minutes = groupby(trend, lambda sample: sample['at_s'] // 60)
    memory = [[sample['memory_mb'] for sample in samples] for _, samples in minutes]
    return [[round(min(of_minute), 1), round(max(of_minute), 1)] for of_minute in memory]


def _growth(trend: list[dict]) -> dict[str, float] | None:
    """Growth from the first to the last fifth of what comes after the first minute.

    Of memory it is that of the least, relative: what one method has needed goes back to the system
    after some ten seconds, while others label. In the last fifth no image is fuzzed any more. None
    for a run that is too short to tell.
    """
    fifth_s = (trend[-1]['at_s'] - WARM_S) / 5
    if fifth_s < SHORTEST_S:
        return None
    first = [s for s in trend if 0.0 <= s['at_s'] - WARM_S < fifth_s]
    last = [s for s in trend if s['at_s'] >= trend[-1]['at_s'] - fifth_s]
    before, after = (min(s['memory_mb'] for s in samples) for samples in (first, last))
    changes = {
        key: statistics.median(s[key] for s in last) - statistics.median(s[key] for s in first)
        for key in ('threads', 'files')
    }
    return {'memory': round(after / before - 1.0, 5), **changes}


if __name__ == '__main__':
    sys.exit(main())
