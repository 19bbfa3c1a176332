"""The commands of `cliptrase`: a module each, with `add(commands)` and `run(arguments)`.

`add` adds the command's parser to argparse's subparsers and sets `run`, which returns the exit
status or raises `CommandError`. Whatever takes long to import is imported in `run`.
"""
