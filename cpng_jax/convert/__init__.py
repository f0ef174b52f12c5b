"""From an ANN to a network that spikes, without training it: the conversions that the paper compares with."""
