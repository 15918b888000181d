"""`vla completion SHELL`: a script by which the shell completes commands, their options and paths."""

from __future__ import annotations

from vla.commands.arguments import keys_of
from vla.commands.table import COMMANDS
from vla.errors import unknown

BASH = """\
_vla() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands} --help --version" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [[ "$current" == *=* ]]; then
    COMPREPLY=($(compgen -f -- "${{current#*=}}"))
    [[ "$COMP_WORDBREAKS" == *=* ]] || COMPREPLY=("${{COMPREPLY[@]/#/${{current%%=*}}=}}")
  elif [ "${{COMP_WORDS[COMP_CWORD-1]}}" = "=" ]; then
    COMPREPLY=($(compgen -f -- "$current"))
  elif [ "$current" = "=" ]; then
    COMPREPLY=($(compgen -f))
  else
    COMPREPLY=($(compgen -W "$words --help" -- "$current") $(compgen -f -- "$current"))
    [[ "${{COMPREPLY[0]-}}" == *= ]] && compopt -o nospace
  fi
}}
complete -o filenames -F _vla vla
"""
SCRIPTS = ("bash", "zsh", "fish")


def completion(*, shell: str) -> None:
    """Prints the completion script of a shell.

    Args:
        shell: bash, zsh or fish.

    Raises:
        InputError: there is no script for this shell.
    """
    if shell not in SCRIPTS:
        raise unknown("shell", shell, SCRIPTS)
    print(_fish() if shell == "fish" else _bash(zsh=shell == "zsh"), end="")


def _bash(zsh: bool) -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(_options(name))}" ;;' for name in COMMANDS)
    script = BASH.format(commands=" ".join(COMMANDS), cases=cases)
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if zsh else script


def _fish() -> str:
    lines = ["complete -c vla -n __fish_use_subcommand -f"]
    for name, command in COMMANDS.items():
        summary = command.summary.replace("'", r"\'")
        lines.append(f"complete -c vla -n __fish_use_subcommand -f -a {name} -d '{summary}'")
        options = " ".join(_options(name))
        lines.append(f"complete -c vla -n '__fish_seen_subcommand_from {name}' -a '{options}'")
    return "\n".join(lines) + "\n"


def _options(command: str) -> list[str]:
    return [f"{key}=" for key in sorted(keys_of(command))]
