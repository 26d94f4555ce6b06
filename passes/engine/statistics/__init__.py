"""What calibration sees: moments, Hessians, couplings, and the file that holds them."""
