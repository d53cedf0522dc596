//! Decisions that need no I/O: part layouts, comparison, cost.

pub mod compare;
pub mod cost;
pub mod parts;
