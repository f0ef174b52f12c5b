"""A trace of chosen steps, for TensorBoard or Perfetto."""

import pathlib
from typing import Any

import jax


class Profile:
    """Inside a `with`, traces the steps of an interval into `workdir/profile`."""

    def __init__(self, workdir: pathlib.Path, steps: tuple[int, int], *, on: bool = True) -> None:
        """Sets the interval.

        Args:
          workdir: folder of the run.
          steps: first and last step of the trace; (0, 0) for none.
          on: False for a process that writes none, since another does.
        """
        self._folder, (self._first, self._last) = workdir / 'profile', steps
        self._on = on and self._last > 0
        self._running = False

    def before(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Starts the trace if it is time to; the result marks the step in it, used in a `with`."""
        if self._on and not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        return jax.profiler.StepTraceAnnotation('train', step_num=step)

    def after(self, step: int, result: Any) -> None:
        """Ends the trace if this was its last step, whose result is awaited then."""
        if self._running and step >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends the trace early, if one is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    def __enter__(self) -> 'Profile':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
