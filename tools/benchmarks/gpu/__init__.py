"""What results do on a GPU: prepared where the CPU is, measured where the device is."""
