"""Metrics of the policy server, in Prometheus's text format."""

from __future__ import annotations

from collections import Counter


class Metrics:
    """The counters of a server, updated by the event loop alone."""

    def __init__(self) -> None:
        self.clients = 0
        self.answers: Counter[str] = Counter(chunk=0, none=0, input_error=0, failure=0)
        self.replaced = 0
        self.refused = 0
        self.seconds = 0.0
        self.inferences = 0

    def text(self) -> str:
        """The content of /metrics."""
        rows: list[tuple[str, str, str, dict[str, float]]] = [
            ("clients", "gauge", "robots connected", {"": self.clients}),
            (
                "answers_total",
                "counter",
                "answers by outcome",
                {f'{{outcome="{outcome}"}}': count for outcome, count in self.answers.items()},
            ),
            ("replaced_total", "counter", "observations dropped for a newer one", {"": self.replaced}),
            ("refused_total", "counter", "connections refused: key or number of clients", {"": self.refused}),
            (
                "inference_seconds",
                "summary",
                "time the policy took",
                {"_sum": self.seconds, "_count": self.inferences},
            ),
        ]
        lines = []
        for name, kind, description, values in rows:
            lines += [f"# HELP vla_serve_{name} {description}", f"# TYPE vla_serve_{name} {kind}"]
            lines += [f"vla_serve_{name}{label} {value}" for label, value in values.items()]
        return "\n".join(lines) + "\n"
