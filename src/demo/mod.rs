//! A few invoice pods to try the proxy with.
