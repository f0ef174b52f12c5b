"""From a trained ANN to a spiking network: thresholds, and what makes up for the time that there is not."""
