"""Who used how much of which device? Windows and holds in, device totals and accounts out. No I/O."""
