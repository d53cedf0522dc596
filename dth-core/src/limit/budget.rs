//! A memory budget in bytes. Whoever holds object bytes holds a permit for them.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// More bytes than this are counted in KiB: a permit holds at most `u32::MAX` units.
const IN_BYTES: u64 = 1 << 31;

/// A number of bytes shared by all transfers.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    units: Arc<Semaphore>,
    total: u32,
    unit: u64,
}

/// Bytes taken from the budget; given back when dropped.
#[derive(Debug)]
pub struct BudgetPermit {
    _permit: OwnedSemaphorePermit,
}

impl MemoryBudget {
    /// A budget of so many bytes, at least one; above 2 GiB in whole KiB, and at most 4 TiB.
    pub fn new(bytes: u64) -> Self {
        let unit = if bytes < IN_BYTES { 1 } else { 1 << 10 };
        let total = (bytes / unit).clamp(1, u64::from(u32::MAX)) as u32;
        Self { units: Arc::new(Semaphore::new(total as usize)), total, unit }
    }

    /// Waits for so many bytes, in order of asking; more than all there is waits for all.
    ///
    /// Cancel safe.
    pub async fn acquire(&self, bytes: u64) -> BudgetPermit {
        let units = bytes.div_ceil(self.unit).min(u64::from(self.total)) as u32;
        let permit = Arc::clone(&self.units).acquire_many_owned(units).await.expect("the semaphore is never closed");
        metrics::gauge!("dth_memory_in_flight_bytes").set(self.in_flight() as f64);
        BudgetPermit { _permit: permit }
    }

    /// Bytes taken now.
    pub fn in_flight(&self) -> u64 {
        (u64::from(self.total) - self.units.available_permits() as u64) * self.unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn bounds_and_returns() {
        for small in [MemoryBudget::new(0), MemoryBudget::new(7)] {
            let all = small.acquire(9).await;
            assert_eq!(small.in_flight(), u64::from(small.total), "counted in bytes");
            drop(all);
        }
        let large = MemoryBudget::new(3 << 30);
        let one = large.acquire(1).await;
        assert_eq!(large.in_flight(), 1 << 10, "counted in KiB");
        drop(one);
        let budget = MemoryBudget::new(1 << 20);
        let half = budget.acquire(512 << 10).await;
        assert_eq!(budget.in_flight(), 512 << 10);
        assert!(budget.acquire(u64::MAX).now_or_never().is_none(), "more than there is waits for all");
        drop(half);
        drop(budget.acquire(u64::MAX).await);
        assert_eq!(budget.in_flight(), 0);
    }
}
