"""Parameters of nodes, made from declared settings: descriptors, types, values."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from cliptrase_ros.ros.settings import PARAMETERS, NodeSettings, ParameterError, default_value
from cliptrase_ros.segmentation.settings import (
    ModelSettings,
    SegmentationSettings,
    Setting,
    settings_of,
)
from cliptrase_ros.segmentation.vocabulary import clean_phrase

#: How to write a value of a type, where YAML easily reads another.
_TYPE_HINTS = {
    Parameter.Type.DOUBLE: 'write a decimal point: 5.0, not 5',
    Parameter.Type.STRING: 'write it in quotes of its own: "\'no\'"',
    Parameter.Type.STRING_ARRAY: "write a list of strings: ['front', 'rear']",
}

_ENTRIES = "a list of strings, or one string with entries separated by ';'"


@dataclass(frozen=True)
class Parameters:
    """The values of every parameter of the segmentation node, checked and immutable.

    Attributes:
        by_name: Each value as it was set, with entries and sizes read.
    """

    by_name: Mapping[str, Any]
    node: NodeSettings
    segmentation: SegmentationSettings
    model: ModelSettings

    def changed(self, changes: Iterable[Parameter]) -> 'Parameters':
        """The values with some parameters set anew; names of no parameter here are ignored.

        Raises:
            ValueError: A change is unacceptable. Everything stays as it was.
        """
        new = {parameter.name: parameter for parameter in changes}
        read = {s.name: _read(s, new[s.name]) for s in PARAMETERS if s.name in new}
        return _parameters({**self.by_name, **read})


def declare_parameters(node: Node) -> Parameters:
    """Declare every parameter of the segmentation node, and read the values it starts with.

    Raises:
        ValueError: A value is of the wrong type, out of range or otherwise unacceptable.
    """
    return _parameters(declare_settings(node, PARAMETERS))


def declare_settings(node: Node, settings: Sequence[Setting]) -> dict[str, Any]:
    """Declare a parameter for each setting; returns the values the node is started with, by name.

    Raises:
        ParameterError: A value is of the wrong type or out of range.
    """
    values = {}
    for declared in settings:
        try:
            parameter = node.declare_parameter(
                declared.name, default_value(declared), _descriptor(declared)
            )
        except ParameterException as error:
            raise ParameterError(str(error)) from error
        if parameter.type_ == Parameter.Type.NOT_SET and declared.entry is not None:
            # In a list without entries rcl sees no value at all.
            parameter = Parameter(declared.name, value='')
        values[declared.name] = _read(declared, parameter)
    return values


def _parameters(by_name: Mapping[str, Any]) -> Parameters:
    """Hand every value to the dataclass that declares it, which checks it."""

    def values_of(declaration: type) -> dict[str, Any]:
        return {declared.name: by_name[declared.name] for declared in settings_of(declaration)}

    segmentation = SegmentationSettings(**values_of(SegmentationSettings) | {'stride': 0})
    # Set one after the other, in any order: the window never keeps the stride from being set.
    stride = min(by_name['stride'], segmentation.method.window)
    node = NodeSettings(**values_of(NodeSettings))
    values = Parameters(
        by_name,
        node,
        # With or without listeners: it is one small copy in the engine, and on CUDA every change
        # would be captured anew.
        replace(segmentation, stride=stride, scores=bool(node.score_topics)),
        ModelSettings(**values_of(ModelSettings)),
    )
    if values.segmentation.refinement == 'sam' and not values.model.sam_model:
        raise ParameterError(
            "'refinement' is 'sam', but the node was started without one: start it with "
            "'sam_model', the folder of a SAM"
        )
    return values


def _type_of(declared: Setting) -> Parameter.Type | None:
    """The type of a parameter; None where a list of strings or one string will do."""
    if declared.entry is not None:
        return None
    return Parameter.Type.from_parameter_value(default_value(declared))


def _descriptor(declared: Setting) -> ParameterDescriptor:
    """What tools show of a parameter and rclpy enforces."""
    descriptor = ParameterDescriptor(
        name=declared.name,
        description=declared.doc,
        additional_constraints=declared.constraints,
        read_only=not declared.live,
        # Types are held to here, not by rclpy, whose refusal names numbers instead of types.
        dynamic_typing=True,
    )
    kind = _type_of(declared)
    if kind is None:
        descriptor.additional_constraints = f'{_ENTRIES}; {declared.constraints}'
    else:
        descriptor.type = kind.value
    if declared.choices:
        descriptor.additional_constraints = declared.rule
    if declared.limits is not None:
        low, high = declared.limits
        if declared.also:
            # A range has no gaps.
            also = ', '.join(f'{value:g}' for value in declared.also)
            descriptor.additional_constraints = f'{also}, or {low:g} and more'
            low = min(declared.also)
        if kind == Parameter.Type.INTEGER:
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        else:
            limits = FloatingPointRange(from_value=float(low), to_value=float(high))
            descriptor.floating_point_range = [limits]
    return descriptor


def _read(declared: Setting, parameter: Parameter) -> Any:
    """The value of a parameter as its setting has it; ParameterError for one of another type."""
    wanted = _type_of(declared)
    hint = f' ({_TYPE_HINTS[wanted]})' if wanted in _TYPE_HINTS else ''
    if parameter.type_ == Parameter.Type.NOT_SET:
        raise ParameterError(f"'{declared.name}' is empty; give it a value{hint}")
    if declared.entry is not None:
        return tuple(map(declared.entry, _entries(declared.name, parameter.value)))
    if parameter.type_ != wanted:
        raise ParameterError(
            f"'{declared.name}' is {str(parameter.value)[:60]!r}, of type {parameter.type_.name}; "
            f'it must be of type {wanted.name}{hint}'
        )
    return tuple(parameter.value) if isinstance(parameter.value, list) else parameter.value


def _entries(name: str, value: object) -> tuple[str, ...]:
    """The entries of a list of strings, or of one string in which `;` stands between them."""
    if isinstance(value, str):
        if re.fullmatch(r'\s*\[.*\]\s*', value, re.DOTALL):
            raise ParameterError(
                f"'{name}' came as the single string {value[:60]!r}: a list in which only some "
                f'entries look like text arrives like that. {_quoting(name)}'
            )
        entries = tuple(value.split(';'))
        if not clean_phrase(entries[-1]):
            entries = entries[:-1]  # a trailing separator is no blank entry
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        # An empty list has no type of its own: it arrives as booleans or bytes.
        entries = tuple(value)
    else:
        raise _no_text(name, type(value).__name__)
    for entry in entries:
        if not isinstance(entry, str):
            raise _no_text(name, f'a list of {type(entry).__name__}')
    # A YAML list cannot be empty and keep its type: [''] is how one writes "none".
    return entries if any(entry.strip() for entry in entries) else ()


def _no_text(name: str, given: str) -> ParameterError:
    return ParameterError(
        f"'{name}' has to be {_ENTRIES}, not {given}: unquoted words such as 1, no or on are not "
        f'text. {_quoting(name)}'
    )


def _quoting(name: str) -> str:
    return (
        'Quote every entry, or give one string of several: '
        f'ros2 param set /cliptrase {name} "[\'road\', \'no\']", or "road; no"'
    )
