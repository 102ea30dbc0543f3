"""The words for numbers and times in everything that lockd prints."""


def counted(number: int, what: str) -> str:
    """Returns a number of things: `1 session`, `2 sessions`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def duration(seconds: float) -> str:
    """Returns a time span: `0.4 s`, `12 s`, `4m12s`, `3h05m`, `2d4h`."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second} s"


def exact_duration(seconds: float) -> str:
    """Returns a time span to the millisecond, as it was set: `1.5 s`, `1m30.25s`.

    From one hour on, the result is that of `duration`.
    """
    seconds = round(seconds, 3)
    if seconds < 60:
        return f"{seconds:g} s"
    if seconds < 3600 and seconds % 1:
        return f"{int(seconds // 60)}m{round(seconds % 60, 3):g}s"
    return duration(seconds)
