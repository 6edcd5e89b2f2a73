//! Picking an endpoint: one file a policy. Pure.
