//! Bounds on what is in flight: bytes in memory, requests per endpoint, rates.

mod adaptive;
mod budget;
mod rate;

pub use adaptive::{AdaptiveLimit, AdaptivePermit, AdaptiveSettings};
pub use budget::{BudgetPermit, MemoryBudget};
pub use rate::RateLimit;
