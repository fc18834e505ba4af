"""Results that are kept from run to run, under keys that tell every change."""
