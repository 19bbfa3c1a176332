"""Settings are declared once: what is written from the declarations is up to date and checked."""

import argparse
import runpy
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from cliptrase_ros.commands.options import add_settings, model_settings, segmentation_settings
from cliptrase_ros.ros.settings import PARAMETERS, NodeSettings, default_value
from cliptrase_ros.segmentation.settings import ModelSettings, SegmentationSettings, settings_of

ROOT = Path(__file__).resolve().parent.parent
DECLARATIONS = (NodeSettings, SegmentationSettings, ModelSettings)


@pytest.fixture(scope='module')
def docs():
    return runpy.run_path(str(ROOT / 'tools' / 'settings_docs.py'))


def test_parameter_file_and_table_are_those_of_the_declarations(docs):
    """Otherwise: `make settings-docs`."""
    assert docs['FILE'].read_text() == docs['parameter_file']()
    text = docs['PAGE'].read_text()
    assert text == docs['page'](text)


def test_every_name_is_declared_once():
    names = [declared.name for declared in PARAMETERS]
    assert len(names) == len(set(names))
    assert set(names) | {'image_prior', 'scores'} == {
        f.name for d in DECLARATIONS for f in fields(d)
    }


@pytest.mark.parametrize('declared', PARAMETERS, ids=lambda declared: declared.name)
def test_a_declaration_is_complete(declared):
    assert declared.doc.endswith('.') and len(declared.doc) > 20
    assert type(declared.default) is declared.type or declared.type not in (bool, int, float, str)
    declared.check(declared.default)
    if declared.limits is not None:
        low, high = declared.limits
        for value in (low - 1, high + 1, float('nan')):
            if value not in declared.also:
                with pytest.raises(ValueError, match=f'{declared.name} is .* to '):
                    declared.check(value)
    if declared.choices:
        with pytest.raises(ValueError, match=f'{declared.name} is .* one of '):
            declared.check('something else')


def test_defaults_of_a_command_are_those_of_the_declarations():
    parser = argparse.ArgumentParser()
    for declaration in (ModelSettings, SegmentationSettings):
        add_settings(parser, declaration)
    arguments = parser.parse_args([])
    assert model_settings(arguments) == ModelSettings()
    assert segmentation_settings(arguments) == SegmentationSettings()
    assert asdict(ModelSettings()).keys() <= vars(arguments).keys()


def test_options_of_a_command_are_read_by_name():
    parser = argparse.ArgumentParser()
    add_settings(parser, ModelSettings, without=('threads',))
    add_settings(parser, SegmentationSettings, only=('window',), window={'default': 64})
    arguments = parser.parse_args(['--cache-dir', 'here'])
    assert set(vars(arguments)) == {s.name for s in settings_of(ModelSettings)} - {'threads'} | {
        'window'
    }
    assert model_settings(arguments) == ModelSettings(cache_dir='here')
    assert segmentation_settings(arguments, smoothing=0.5) == SegmentationSettings(
        window=64, smoothing=0.5
    )


def test_default_values_of_parameters():
    defaults = {declared.name: default_value(declared) for declared in PARAMETERS}
    assert defaults['cameras'] == ['camera'] and defaults['transport'] == 'raw'
    assert defaults['warm_up_sizes'] == '' and len(defaults['background']) == 5
    others = {('image_prior', False), ('scores', False)}
    assert asdict(SegmentationSettings()).items() - others <= defaults.items()
