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
    reason = re.sub(r', at \S+:\d+|^failed to initialize \w+: ', '', str(error)).strip()
    if type(error).__name__ == 'UnknownROSArgsError':
        return (
            f'unknown arguments after --ros-args: {reason}; parameters are given as -p NAME:=VALUE'
        )
    if "remap rule: '" in reason:
        return f'{reason}; write -r FROM:=TO'
    if found := re.search("parameter override rule: '(.*)'", reason, re.DOTALL):
        if ':=' not in found[1]:
            return f'{reason}; write -p NAME:=VALUE'
        if found[1].endswith(':='):
            return f"""{reason}; write {found[1]}"''" for an empty text"""
        return f'{reason}; {_VALUES_ARE_YAML}'
    if found := re.search("params file: '--params-file (.*?)'", reason, re.DOTALL):
        if not Path(found[1]).is_file():
            return f'there is no parameter file {found[1]}'
        return reason if 'node name' in reason else f'{reason}; {_VALUES_ARE_YAML}'
    return reason


def explain_unread_arguments(node, arguments: Sequence[str]) -> Iterator[str]:
    """Say, a sentence each, what was given to the process of a node and is not read by it.

    The node is rclpy's and has declared its parameters.
    """
    foreign, parameters = _split(arguments)
    if foreign:
        yield f'{" ".join(foreign)} is not read: arguments of ROS come after --ros-args'
    name = node.get_fully_qualified_name()
    for flag, value in parameters:
        if flag == '--params-file':
            patterns = _node_patterns_in_file(value)
            if not any(is_for(pattern, name) for pattern in patterns):
                others = f' (it is for {", ".join(patterns)})' if patterns else ''
                yield f'{value} has nothing for the node {name}{others}, and is not read'
        elif found := re.match('([^:=]+):[^:=]+:=', value):
            other = f'/{found[1].lstrip("/")}'
            if not is_for(other, name):
                yield f'-p {value} is for the node {other}, not for {name}, and is not read'
    declared = node.list_parameters([], 0).names
    # rclpy has no other way to ask for them.
    for parameter in sorted(node._parameter_overrides.keys() - set(declared)):
        whole = parameter.partition('.')[0]
        if whole in declared:
            hint = f"': ' in the value of {whole!r} makes such names; quote it, or write '='"
        elif nearest := nearest_name(parameter, declared):
            hint = f'do you mean {nearest!r}?'
        else:
            hint = f'`ros2 param list {name}` has those there are'
        yield f'the parameter {parameter!r} is not read, there is none of that name: {hint}'


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Return which of several names a misspelt one means; None where a hint would mislead."""
    return next(iter(difflib.get_close_matches(name, names, 1, cutoff=0.75)), None)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return what is none of ROS's arguments, and those that set parameters as (flag, value)."""
    foreign, parameters = [], []
    is_ros = False
    for argument, value in itertools.pairwise([*arguments, '']):
        if argument == '--ros-args' or (is_ros and argument == '--'):
            is_ros = argument == '--ros-args'
        elif not is_ros:
            foreign.append(argument)
        elif argument in ('-p', '--param', '--params-file'):
            parameters.append((argument, value))
    return foreign, parameters


def _node_patterns_in_file(path: str) -> list[str]:
    try:
        return sorted({pattern for pattern, _ in parameters_in_file(path)})
    except (OSError, ValueError, yaml.YAMLError):
        return ['/**']  # rcl could read it, and has


def parameters_in_file(path: str) -> list[tuple[str, dict]]:
    """Read a parameter file.

    Returns:
        (full name or pattern, parameters) of each node, in order; values are texts as written.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no text.
        yaml.YAMLError: It is no YAML.
    """
    return list(_by_node(yaml.load(Path(path).read_bytes(), yaml.BaseLoader)))


def _by_node(content: object, name: str = '') -> Iterator[tuple[str, dict]]:
    for key, inner in content.items() if isinstance(content, dict) else ():
        if key == 'ros__parameters':
            yield name, inner if isinstance(inner, dict) else {}
        else:
            yield from _by_node(inner, f'{name}/{key.strip("/")}')


def is_for(pattern: str, name: str) -> bool:
    """Return whether a node's name in a parameter file stands for this full name."""
    # As rclpy does it: '*' stands for one part of a name, '**' for any number of them.
    regex = re.escape(pattern).replace(r'/\*', r'(/\w+)').replace(r'\*', '*')
    return bool(re.fullmatch(regex, name))
