"""Runs a sweep as jobs of a Hydra launcher, for example on a Slurm cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from shutil import which
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vla.commands.options import CONFIGS, bind
from vla.common.pip_install import install_command
from vla.errors import InputError


def launch(
    command: str, runs: Sequence[Sequence[str]], hydra_overrides: Sequence[str], function: Callable[..., Any]
) -> None:
    """Runs one job per run of the sweep, and waits for all of them.

    A launcher's `tasks_per_node` and `nodes` define the ranks that train one model together. Re-raises the exception
    of the first run that failed.

    Args:
        command: Name of the command.
        runs: Overrides of each run.
        hydra_overrides: Overrides of Hydra's own options, which select and configure the launcher.
        function: The function of the command.

    Raises:
        InputError: The launcher is unknown, or there is no Slurm on this machine.
    """
    from hydra._internal.callbacks import Callbacks

    with hydra.initialize_config_module(CONFIGS, version_base="1.3"):
        try:
            config = hydra.compose(command, list(hydra_overrides), return_hydra_config=True)
            context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
            launcher = Plugins.instance().instantiate_launcher(context, partial(_job, function), config)
        except (HydraException, OmegaConfBaseException) as error:
            reason = " ".join(str(error).partition("Config search path")[0].split())
            install = install_command("hydra-submitit-launcher")
            raise InputError(f"{reason}; to install the submitit launchers: {install}") from error
        if config.hydra.launcher._target_.endswith("SlurmLauncher") and not which("srun"):
            raise InputError("there is no srun on this machine: use a Slurm cluster, or hydra/launcher=submitit_local")
        for job in launcher.launch(runs, 0):
            job.return_value  # noqa: B018  raises the exception of the job


def _job(function: Callable[..., Any], config: DictConfig) -> None:
    if "submitit" in HydraConfig.get().launcher._target_:
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    bind(function, config)()
