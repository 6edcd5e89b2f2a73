//! Active health checks: tasks that probe endpoints and tell their health.
