"""`tercet verify`: a checkpoint in Tercet and in transformers, side by side."""
