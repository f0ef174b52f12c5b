"""A trace of chosen steps, for TensorBoard or Perfetto, and the memory of a compiled step."""

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
          on: False in a process that writes none.
        """
        self._folder, (self._first, self._last) = workdir / 'profile', steps
        self._on = on and self._last > 0
        self._running = False

    def before(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Starts the trace before its first step; returns a context manager that names the step in the trace."""
        if self._on and not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        return jax.profiler.StepTraceAnnotation('train', step_num=step)

    def after(self, step: int, result: Any) -> None:
        """Ends the trace after its last step, once the devices have computed the result."""
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


def memory_usage(step: jax.stages.Compiled) -> dict[str, int]:
    """Reads the memory of a compiled step on each device from XLA's own plan.

    Args:
      step: compiled.

    Returns:
      Bytes: `state_and_batch` of its arguments, `temporary` of its buffers, `peak` of all at once; empty where the
      platform gives none.
    """
    analysis: Any = step.memory_analysis()
    if analysis is None:
        return {}
    return {
        'state_and_batch': analysis.argument_size_in_bytes,
        'temporary': analysis.temp_size_in_bytes,
        # A donated argument and the result in its place are one buffer.
        'peak': analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes,
    }
