//! How many requests an endpoint gets at once: slow start, then additive increase and multiplicative decrease.
//!
//! It grows only while all permits are in use and answers come about as fast as the fastest did: on a long path it doubles
//! each round trip, on a machine whose own processor is the limit it stays small.

use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Bounds of the adaptation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveSettings {
    /// Requests at once to begin with.
    pub start: u32,
    /// Never more.
    pub max: u32,
}

impl Default for AdaptiveSettings {
    fn default() -> Self {
        Self { start: 24, max: 384 }
    }
}

/// The limit of one endpoint.
#[derive(Debug, Clone)]
pub struct AdaptiveLimit {
    permits: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    max: u32,
    limit: u32,
    /// Permits to swallow instead of giving back.
    debt: u32,
    slow_start: bool,
    successes: u32,
    /// Answers, and refusals, since it was last lowered.
    answers: u32,
    refusals: u32,
    fastest: Option<Duration>,
    decreased: Option<Instant>,
}

/// The right to one request.
#[derive(Debug)]
pub struct AdaptivePermit {
    permit: Option<OwnedSemaphorePermit>,
    limit: AdaptiveLimit,
    begun: Instant,
}

/// One refusal among so many answers is no sign of overload.
const SHARE: u64 = 20;

/// Answers up to this much slower than the fastest are no sign of a queue.
const SLACK: Duration = Duration::from_millis(1);

impl AdaptiveLimit {
    /// A limit that starts as set.
    pub fn new(settings: AdaptiveSettings) -> Self {
        let max = settings.max.max(1);
        let limit = settings.start.clamp(1, max);
        let state = State { max, limit, debt: 0, slow_start: true, successes: 0, answers: 0, refusals: 0, fastest: None, decreased: None };
        Self { permits: Arc::new(Semaphore::new(limit as usize)), state: Arc::new(Mutex::new(state)) }
    }

    /// Waits for the right to one request. Cancel safe.
    pub async fn acquire(&self) -> AdaptivePermit {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        AdaptivePermit { permit: Some(permit), limit: self.clone(), begun: Instant::now() }
    }

    /// Requests allowed at once.
    pub fn limit(&self) -> u32 {
        self.lock().limit
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl AdaptivePermit {
    /// Tells that the first answer came in good order.
    pub fn answered(&self) {
        let took = self.begun.elapsed();
        let mut state = self.limit.lock();
        state.answers = state.answers.saturating_add(1);
        let fastest = state.fastest.map_or(took, |f| f.min(took));
        state.fastest = Some(fastest);
        // Most permits are in use: those that just were added are not yet.
        let busy = self.limit.permits.available_permits() <= state.limit as usize / 2;
        if !busy || took > fastest * 2 + SLACK || state.limit >= state.max {
            return;
        }
        state.successes += 1;
        if state.slow_start || state.successes >= state.limit {
            state.successes = 0;
            state.limit += 1;
            if state.debt > 0 {
                state.debt -= 1;
            } else {
                self.limit.permits.add_permits(1);
            }
        }
    }

    /// Tells that the endpoint asked to slow down, or did not answer in time. Counts once per burst; a refusal among many answers is
    /// none: stores that are not overloaded have some as well.
    pub fn throttled(&self) {
        let mut state = self.limit.lock();
        if state.decreased.is_some_and(|at| at >= self.begun) {
            return;
        }
        state.refusals += 1;
        if state.refusals == 1 || u64::from(state.refusals) * SHARE <= u64::from(state.answers) {
            return;
        }
        (state.answers, state.refusals) = (0, 0);
        state.decreased = Some(Instant::now());
        state.slow_start = false;
        state.successes = 0;
        let lower = (state.limit / 2).max(1);
        state.debt += state.limit - lower;
        state.limit = lower;
        metrics::counter!("dth_concurrency_decreases_total").increment(1);
    }
}

impl Drop for AdaptivePermit {
    fn drop(&mut self) {
        let mut state = self.limit.lock();
        if state.debt > 0 {
            state.debt -= 1;
            if let Some(permit) = self.permit.take() {
                permit.forget();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn round(limit: &AdaptiveLimit, latency: Duration, throttle: bool) {
        let now = limit.limit();
        let mut permits = Vec::new();
        for _ in 0..now {
            permits.push(limit.acquire().await);
        }
        tokio::time::sleep(latency).await;
        for permit in &permits {
            if throttle { permit.throttled() } else { permit.answered() }
        }
    }

    /// T15: backs off once per burst, and recovers.
    #[tokio::test(start_paused = true)]
    async fn halves_per_burst_and_recovers() {
        let limit = AdaptiveLimit::new(AdaptiveSettings { start: 8, max: 64 });
        let latency = Duration::from_millis(150);
        for expected in [16, 32, 64, 64] {
            round(&limit, latency, false).await;
            assert_eq!(limit.limit(), expected);
        }
        round(&limit, latency, true).await;
        assert_eq!(limit.limit(), 32);
        round(&limit, latency, false).await;
        assert_eq!(limit.limit(), 33, "additive after the first decrease");
    }

    /// On a path of 150 ms, hundreds are in flight within a second.
    #[tokio::test(start_paused = true)]
    async fn reaches_hundreds_within_a_second_on_a_long_path() {
        let limit = AdaptiveLimit::new(AdaptiveSettings::default());
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            round(&limit, Duration::from_millis(150), false).await;
        }
        assert!(limit.limit() >= 256, "{}", limit.limit());
    }

    /// Of a hundred requests one is refused, whatever the load: that does not lower it for ever.
    #[tokio::test(start_paused = true)]
    async fn rare_refusals_are_no_overload() {
        let limit = AdaptiveLimit::new(AdaptiveSettings { start: 16, max: 256 });
        for number in 0..2000u32 {
            let permits = [limit.acquire().await, limit.acquire().await];
            let held: Vec<_> = (2..limit.limit()).filter_map(|_| futures_util::FutureExt::now_or_never(limit.acquire())).collect();
            tokio::time::sleep(Duration::from_millis(20)).await;
            if number % 100 == 99 {
                permits[0].throttled();
            } else {
                permits[0].answered();
            }
            drop(held);
        }
        assert!(limit.limit() > 200, "{}", limit.limit());
    }

    #[tokio::test(start_paused = true)]
    async fn slower_answers_stop_the_growth() {
        let limit = AdaptiveLimit::new(AdaptiveSettings { start: 8, max: 64 });
        round(&limit, Duration::from_millis(1), false).await;
        let before = limit.limit();
        round(&limit, Duration::from_millis(20), false).await;
        assert_eq!(limit.limit(), before);
    }
}
