//! Sockets in: listeners, cores, connections, drain.
