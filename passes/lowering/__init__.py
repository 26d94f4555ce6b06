"""How stored units become nodes of a target: what lowering passes are made of."""
