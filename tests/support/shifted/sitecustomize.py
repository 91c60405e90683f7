"""For tests: a process with this folder on its PYTHONPATH has a clock that is off by SHIFT_S seconds."""

import datetime as dt
import os
import time

_shift = float(os.environ.get("SHIFT_S", "0"))
_time, _datetime = time.time, dt.datetime


class _Shifted(_datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        """The wrong time."""
        return _datetime.now(tz) + dt.timedelta(seconds=_shift)


time.time = lambda: _time() + _shift
dt.datetime = _Shifted  # type: ignore[misc]  # for this process
