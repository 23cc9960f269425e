"""The second pass: which spaces allow signs, scales, rotations and phases, what to fold for it, and the proof."""
