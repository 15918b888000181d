"""The runs of a sweep as jobs of one of Hydra's launchers: a Slurm cluster's, for instance."""

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


def launch(command: str, runs: Sequence[Sequence[str]], where: Sequence[str], function: Callable[..., Any]) -> None:
    """Waits for a job for each of `runs` of `command`, started as the overrides `where` of Hydra's own options say.

    A launcher's `tasks_per_node` and `nodes` are ranks that train one model together. Raises InputError for a launcher
    that there is not, and what the first run that failed raised.
    """
    from hydra._internal.callbacks import Callbacks

    with hydra.initialize_config_module(CONFIGS, version_base="1.3"):
        try:
            config = hydra.compose(command, list(where), return_hydra_config=True)
            context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
            launcher = Plugins.instance().instantiate_launcher(context, partial(_job, function), config)
        except (HydraException, OmegaConfBaseException) as error:
            told = " ".join(str(error).partition("Config search path")[0].split())
            raise InputError(f"{told}; submitit's come by: {install_command('hydra-submitit-launcher')}") from error
        if config.hydra.launcher._target_.endswith("SlurmLauncher") and not which("srun"):
            raise InputError("there is no srun here: start this on a Slurm cluster, or take submitit_local")
        for job in launcher.launch(runs, 0):
            job.return_value  # noqa: B018  raises what the job did


def _job(function: Callable[..., Any], config: DictConfig) -> None:
    if "submitit" in HydraConfig.get().launcher._target_:
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    bind(function, config)()
