"""Action heads, which represent, learn and decode action chunks on a backbone."""
