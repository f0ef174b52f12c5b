"""What sets the width beta of the surrogate gradients: one file a rule, each the same pair (init, update)."""
