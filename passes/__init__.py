"""Graph-rewriting passes: one file a pass, pure numerics in numerics/."""
