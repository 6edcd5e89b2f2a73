//! Figures of the process from `/proc/self`.
