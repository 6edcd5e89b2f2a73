//! Rate limiting core: token buckets in a bounded, sharded store. Pure but for the store's locks.
