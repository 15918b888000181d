"""Base class of policies that adapt another policy."""

from __future__ import annotations

from typing import Any

from vla.policies.history import history_of
from vla.policies.policy import Policy, takes_prefix


class WrappedPolicy:
    """Forwards the properties of the adapted `policy` that do not depend on the robot."""

    policy: Policy

    @property
    def model(self) -> Any:
        """The policy's model, or None."""
        return getattr(self.policy, "model", None)

    @property
    def takes_prefix(self) -> bool:
        """See `PrefixPolicy`."""
        return takes_prefix(self.policy)

    @property
    def history(self) -> tuple[float, ...]:
        """See `HistoryPolicy`."""
        return history_of(self.policy)

    def reset(self) -> None:
        """Resets the policy."""
        self.policy.reset()
