//! What the data path reads: one compiled, immutable configuration.
