"""What passes are made of. A pass imports from here and from `ir`, never from another pass."""
