"""Where a trained network looks: class-activation maps and effective receptive fields, as pictures and numbers."""
