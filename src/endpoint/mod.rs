//! Endpoints: addresses of pods, sets of them, and their health.
