//! The shell around the core: observes, calls `ha`, carries the plan out.

pub mod handle;
