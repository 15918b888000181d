"""The command line: `vla COMMAND [KEY=VALUE ...]`.

Each command is a function with explicit keyword arguments; its options are the keys of its file in configs/.
No slow module is imported before a command runs, so `vla --help` is fast.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files

from vla import __version__
from vla.commands.arguments import parse
from vla.commands.table import COMMANDS, Command
from vla.common.full_disk import explaining_full_disk
from vla.common.plugins import installed
from vla.errors import Failure, InputError, unknown

__all__ = ["COMMANDS", "Command", "main", "parse"]

USAGE = "usage: vla COMMAND [KEY=VALUE ...]     vla COMMAND --help"
SYSTEM_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG)
"""File errors that are reported in one line without a traceback: the operating system refuses an operation."""


def overview() -> str:
    """The text that `vla --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join((USAGE, "", *lines, "", "`vla COMMAND --help` shows a command's options and examples."))


def help_of(name: str) -> str:
    """The text that `vla NAME --help` prints: purpose, examples, and the options with their defaults."""
    command = COMMANDS[name]
    options = (files("vla.configs") / f"{name}.yaml").read_text()
    positional = (f"[{o[1:].upper()} ...]" if o.startswith("*") else o.upper() for o in command.positional)
    head = " ".join(("usage: vla", name, *positional, "[KEY=VALUE ...]"))
    return "\n".join(
        (
            f"{head}\n\n{command.description}\n\nExamples:",
            *(f"  {example}" for example in command.examples),
            "\nOptions (also --KEY VALUE):",
            *(f"  {line}".rstrip() for line in options.splitlines()),
            *_installed_plugins(command),
            "\n  -m      run every combination of the values given as KEY=A,B,C",
            "  --cfg   print the composed options and stop",
        )
    )


def _installed_plugins(command: Command) -> list[str]:
    """The lines of the help that name the plug-ins of installed packages; nothing of them is imported."""
    found = {option: list(installed(group)) for option, group in command.plugins.items()}
    lines = [f"  {option}={', '.join(names)}" for option, names in found.items() if names]
    return ["\nPlug-ins of installed packages:", *lines] if lines else []


def execute(name: str, arguments: Sequence[str]) -> None:
    """Runs one command, or every run of a sweep: in order, or by a Hydra launcher if Hydra options are set."""
    overrides, flags = parse(name, arguments)
    if "help" in flags:
        print(help_of(name))
        return
    from vla.commands import options  # Hydra takes a third of a second to import.

    hydra_overrides = [override for override in overrides if override.startswith(("hydra/", "hydra."))]
    if hydra_overrides and "multirun" not in flags:
        raise InputError(f"{hydra_overrides[0]} applies to the runs of a sweep: add -m")
    overrides = [override for override in overrides if override not in hydra_overrides]
    runs = options.sweep(name, overrides) if "multirun" in flags else [overrides]
    configs = [options.compose(name, run) for run in runs]
    options.check_outputs_differ(configs)
    if "cfg" in flags:
        print("\n---\n".join(options.as_text(config) for config in configs))
        return
    if check := COMMANDS[name].check:
        from vla.commands import checks

        for config in configs:
            options.check_known(name, config)
            for function in filter(None, (COMMANDS[name].function, COMMANDS[name].options_of)):
                options.check_types(function, config)
        derived = [getattr(checks, check)(**options.values_of(config)) or [] for config in configs]
        runs = [[*run, *extra] for run, extra in zip(runs, derived, strict=True)]
        configs = [options.compose(name, run) for run in runs] if any(derived) else configs
    module, _, function = COMMANDS[name].function.partition(":")
    target = getattr(import_module(module), function)
    if hydra_overrides:
        from vla.commands.launch import launch

        launch(name, runs, hydra_overrides, target)
        return
    for number, (run, config) in enumerate(zip(runs, configs, strict=True), start=1):
        if len(runs) > 1:
            print(f"[{number}/{len(runs)}] {' '.join(run)}", flush=True)
        options.bind(target, config)()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the `vla` command.

    Returns:
        The exit code: 0 done, 1 failed, 2 invalid input (one line on stderr), 130 interrupted; `vla deploy` has more
        (`vla.errors.EXIT_CODES`).
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if name in ("-h", "--help"):
            print(overview())
        elif name == "--version":
            print(f"vla {__version__}")
        elif name in COMMANDS:
            with explaining_full_disk():
                execute(name, rest)
        else:
            raise unknown("command", name, COMMANDS)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, Failure, OSError) as error:
        if isinstance(error, OSError) and error.errno not in SYSTEM_ERRORS:
            raise
        print(f"vla{f' {name}' if name in COMMANDS else ''}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.code if isinstance(error, Failure) else 2
    except KeyboardInterrupt:
        print(f"vla {name}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
