"""Words for people: the same wherever lockd speaks."""


def duration(seconds: float) -> str:
    """Returns a length of time as people say it: `0.3s`, `12s`, `4m12s`, `3h05m`."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes == 0:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes}m{rest:02d}s"
    days, hours = divmod(hours, 24)
    if days == 0:
        return f"{hours}h{minutes:02d}m"
    return f"{days}d{hours:02d}h"
