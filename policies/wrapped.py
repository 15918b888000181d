"""What a policy that adapts another has of it."""

from __future__ import annotations

from typing import Any

from vla.policies.history import history_of
from vla.policies.policy import Policy, takes_prefix


class WrappedPolicy:
    """Passes on what does not depend on the robot; `policy` is the one that is adapted."""

    policy: Policy

    @property
    def model(self) -> Any:
        """The policy's, where it has one."""
        return getattr(self.policy, "model", None)

    @property
    def takes_prefix(self) -> bool:
        """The policy's (`PrefixPolicy`)."""
        return takes_prefix(self.policy)

    @property
    def history(self) -> tuple[float, ...]:
        """The policy's (`HistoryPolicy`)."""
        return history_of(self.policy)

    def reset(self) -> None:
        self.policy.reset()
