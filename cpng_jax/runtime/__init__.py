"""What a run is to the machine: configuration, workdir, checkpoints, metrics, signals, processes, devices."""
