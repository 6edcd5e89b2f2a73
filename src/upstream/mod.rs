//! The way to the pods: pools, connecting, sending, timeouts.
