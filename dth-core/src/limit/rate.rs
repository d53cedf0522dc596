//! Rates: so many bytes or requests a second, and no burst longer than a tenth of one.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// A rate shared by all that hold a clone.
#[derive(Debug, Clone)]
pub struct RateLimit {
    per_second: f64,
    free_at: Arc<Mutex<Option<Instant>>>,
}

const BURST: Duration = Duration::from_millis(100);

impl RateLimit {
    /// So many units a second; 0 is taken as 1.
    pub fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1) as f64, free_at: Arc::default() }
    }

    /// Waits until so many units may pass, in order of asking. Dropped while waiting, the units count as passed.
    pub async fn pass(&self, units: u64) {
        let now = Instant::now();
        let wait_until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let from = free_at.map_or(now, |at| at.max(now));
            *free_at = Some(from + Duration::from_secs_f64(units as f64 / self.per_second));
            from
        };
        if wait_until > now + BURST {
            tokio::time::sleep_until(wait_until - BURST).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_the_rate() {
        let rate = RateLimit::new(1_000);
        let begun = Instant::now();
        for _ in 0..100 {
            rate.pass(100).await;
        }
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(9_700) && took <= Duration::from_millis(10_100), "{took:?}");
    }
}
