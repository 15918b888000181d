"""Commands of `vla data` that inspect, copy and change stores."""
