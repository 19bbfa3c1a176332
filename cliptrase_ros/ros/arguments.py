"""The command line of a node and its parameter files: what cannot be read, and what nobody reads.

Imports nothing that takes time.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml

_VALUES_ARE_YAML = (
    """values are read as YAML: write synonyms with '=', "road; person = pedestrian", and quote """
    """every entry of a list, "['road', 'no']", and text with ': ' or ' #' in it, "'a: b'\""""
)


def explain_refusal(error: Exception) -> str:
    """Say why `rclpy.init` refuses, and what to write instead."""
    said = re.sub(r', at \S+:\d+|^failed to initialize \w+: ', '', str(error)).strip()
    if type(error).__name__ == 'UnknownROSArgsError':
        return f'unknown arguments after --ros-args: {said}; parameters are given as -p NAME:=VALUE'
    if "remap rule: '" in said:
        return f'{said}; write -r FROM:=TO'
    if found := re.search("parameter override rule: '(.*)'", said, re.DOTALL):
        if ':=' not in found[1]:
            return f'{said}; write -p NAME:=VALUE'
        if found[1].endswith(':='):
            return f"""{said}; write {found[1]}"''" for an empty text"""
        return f'{said}; {_VALUES_ARE_YAML}'
    if found := re.search("params file: '--params-file (.*?)'", said, re.DOTALL):
        if not Path(found[1]).is_file():
            return f'there is no parameter file {found[1]}'
        return said if 'node name' in said else f'{said}; {_VALUES_ARE_YAML}'
    return said


def unread(node, arguments: Sequence[str]) -> Iterator[str]:
    """Say, a sentence each, what was given to a node and is not read by it.

    node: an rclpy Node that has declared its parameters. arguments: of its process.
    """
    stray, given = _apart(arguments)
    if stray:
        yield f'{" ".join(stray)} is not read: arguments of ROS come after --ros-args'
    name = node.get_fully_qualified_name()
    for flag, value in given:
        if flag == '--params-file':
            meant = _nodes_in_file(value)
            if not any(is_for(pattern, name) for pattern in meant):
                others = f' (it is for {", ".join(meant)})' if meant else ''
                yield f'{value} has nothing for the node {name}{others}, and is not read'
        elif meant := re.match('([^:=]+):[^:=]+:=', value):
            other = f'/{meant[1].lstrip("/")}'
            if not is_for(other, name):
                yield f'-p {value} is for the node {other}, not for {name}, and is not read'
    declared = node.list_parameters([], 0).names
    # rclpy has no other way to ask for them.
    for parameter in sorted(node._parameter_overrides.keys() - set(declared)):
        whole = parameter.partition('.')[0]
        if whole in declared:
            instead = f"': ' in the value of {whole!r} makes such names; quote it, or write '='"
        elif nearest := nearest_name(parameter, declared):
            instead = f'do you mean {nearest!r}?'
        else:
            instead = f'`ros2 param list {name}` has those there are'
        yield f'the parameter {parameter!r} is not read, there is none of that name: {instead}'


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Which of several names is meant by a misspelt one; None where a hint would mislead."""
    return next(iter(difflib.get_close_matches(name, names, 1, cutoff=0.75)), None)


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """What is none of ROS's arguments, and its parameters as (flag, value)."""
    stray, given = [], []
    is_ros = False
    for word, value in itertools.pairwise([*arguments, '']):
        if word == '--ros-args' or (is_ros and word == '--'):
            is_ros = word == '--ros-args'
        elif not is_ros:
            stray.append(word)
        elif word in ('-p', '--param', '--params-file'):
            given.append((word, value))
    return stray, given


def _nodes_in_file(path: str) -> list[str]:
    try:
        return sorted({pattern for pattern, _ in parameters_in_file(path)})
    except (OSError, ValueError, yaml.YAMLError):
        return ['/**']  # rcl could read it, and has


def parameters_in_file(path: str) -> list[tuple[str, dict]]:
    """What a parameter file has for each node, as (full name or pattern, parameters), in order.

    Values are texts as they are written. Raises OSError, ValueError, yaml.YAMLError.
    """
    return list(_by_node(yaml.load(Path(path).read_bytes(), yaml.BaseLoader)))


def _by_node(content: object, name: str = '') -> Iterator[tuple[str, dict]]:
    for key, inner in content.items() if isinstance(content, dict) else ():
        if key == 'ros__parameters':
            yield name, inner if isinstance(inner, dict) else {}
        else:
            yield from _by_node(inner, f'{name}/{key.strip("/")}')


def is_for(pattern: str, name: str) -> bool:
    """Whether a parameter file means a node of this full name."""
    # As rclpy does it: '*' stands for one part of a name, '**' for any number of them.
    regex = re.escape(pattern).replace(r'/\*', r'(/\w+)').replace(r'\*', '*')
    return bool(re.fullmatch(regex, name))
