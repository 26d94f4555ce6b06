"""mpqc beside other people's tools, on the same model, calibration and texts."""
