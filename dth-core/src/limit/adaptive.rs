//! How many requests an endpoint gets at once: slow start, then additive increase and multiplicative decrease.
//!
//! It grows only while all permits are in use and answers come about as fast as the fastest did, and never beyond what this machine
//! could make use of: on a long path it grows two to six times each round trip, on a short one it stays small. Each request more
//! is a connection more, which costs memory long after it was of use.

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
        Self { start: 32, max: 480 }
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
    start: u32,
    max: u32,
    limit: u32,
    /// Permits to swallow instead of giving back.
    debt: u32,
    slow_start: bool,
    successes: u32,
    /// Answers, and refusals, of late.
    answers: u32,
    refusals: u32,
    path: Path,
    /// Requests a second that this machine can make, at most.
    rate: f64,
    decreased: Option<Instant>,
}

/// The right to one request.
#[derive(Debug)]
pub struct AdaptivePermit {
    permit: Option<OwnedSemaphorePermit>,
    limit: AdaptiveLimit,
    begun: Instant,
}

/// How long an answer takes that waits for nobody.
#[derive(Debug, Default)]
struct Path {
    /// The fastest answer there was.
    fastest: Option<Duration>,
    /// Of the first answers together, and how many they are: they had the endpoint for themselves, unless a listing had told of a long path.
    first: (Duration, u32),
    /// The fastest of the last whole window, and of the one under way, with its answers: paths change.
    window: Duration,
    current: Option<Duration>,
    answers: u32,
}

impl Path {
    const FIRST: u32 = 24;
    const WINDOW: u32 = 256;

    /// Takes note of an answer; whether it came about as fast as the fastest.
    fn answered(&mut self, took: Duration) -> bool {
        if self.first.1 < Self::FIRST {
            self.first = (self.first.0 + took, self.first.1 + 1);
        }
        let fastest = self.current.map_or(took, |fastest| fastest.min(took));
        self.answers += 1;
        if self.answers < Self::WINDOW {
            self.current = Some(fastest);
        } else {
            (self.window, self.current, self.answers) = (fastest, None, 0);
        }
        let fastest = self.fastest.map_or(took, |fastest| fastest.min(took));
        self.fastest = Some(fastest);
        took <= fastest * 2 + SLACK
    }

    /// Whether the last answer was the one with which the path is known.
    fn is_known_now(&self) -> bool {
        self.window.is_zero() && self.answers == Self::FIRST
    }

    /// The mean of the first answers rather than the fastest of them: stores differ much from answer to answer.
    fn takes(&self) -> Duration {
        self.window.max(self.first.0 / self.first.1.max(1))
    }
}

/// Requests a second that a core can make of one endpoint, at most: an object of 10 KiB takes some 100 microseconds of it.
const RATE: f64 = 3000.0;

impl State {
    /// More requests at once would not get more done, by Little's law.
    fn most(&self) -> u32 {
        self.useful(self.path.takes())
    }

    /// On a path of this length.
    fn useful(&self, path: Duration) -> u32 {
        let useful = path.as_secs_f64() * self.rate;
        self.max.min(self.start.max(useful as u32))
    }

    fn lower(&mut self, to: u32) {
        self.debt += self.limit - to;
        self.limit = to;
    }
}

/// Requests at once that an answer may add.
const STRIDE: u32 = 16;

/// One refusal among so many answers is no sign of overload.
const SHARE: u32 = 20;

/// Among the last so many, about: what was long ago does not excuse an overload now.
const MEMORY: u32 = 256;

/// Answers up to this much slower than the fastest are no sign of a queue.
const SLACK: Duration = Duration::from_millis(1);

impl AdaptiveLimit {
    /// A limit that starts as set.
    pub fn new(settings: AdaptiveSettings) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::at_rate(settings, RATE * cores as f64)
    }

    fn at_rate(settings: AdaptiveSettings, rate: f64) -> Self {
        let max = settings.max.max(1);
        let start = settings.start.clamp(1, max);
        let state = State {
            start,
            max,
            limit: start,
            debt: 0,
            slow_start: true,
            successes: 0,
            answers: 0,
            refusals: 0,
            path: Path::default(),
            rate,
            decreased: None,
        };
        Self { permits: Arc::new(Semaphore::new(start as usize)), state: Arc::new(Mutex::new(state)) }
    }

    /// Tells how long a request of another kind took on the same path. Until there are answers to go by, or refusals, a long one is begun
    /// with more requests at once: a quarter of what will be of use, or a whole round trip is spent on learning that.
    pub(crate) fn expect(&self, took: Duration) {
        let mut state = self.lock();
        let start = state.useful(took) / 4;
        let unknown = state.path.fastest.is_none() && state.slow_start;
        if unknown && start > state.limit {
            self.permits.add_permits((start - state.limit) as usize);
            state.limit = start;
        }
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
        state.answers += 1;
        if state.answers >= MEMORY {
            (state.answers, state.refusals) = (state.answers / 2, state.refusals / 2);
        }
        let fast = state.path.answered(took);
        // Most permits are in use: those that just were added are not yet.
        let busy = self.limit.permits.available_permits() <= state.limit as usize / 2;
        let most = state.most();
        if state.path.is_known_now() && state.limit > most {
            // It was expected to be longer.
            state.lower(most);
        }
        if !busy || !fast || state.limit >= most {
            return;
        }
        state.successes += 1;
        if state.slow_start || state.successes >= state.limit {
            state.successes = 0;
            // Far from what is of use, each round trip counts: the first makes nearly six times as many of 32 where 480 are of use, not twice.
            let more = if state.slow_start { (most / state.limit).clamp(1, STRIDE).min(most - state.limit) } else { 1 };
            let paid = state.debt.min(more);
            state.limit += more;
            state.debt -= paid;
            self.limit.permits.add_permits((more - paid) as usize);
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
        if state.refusals == 1 || state.refusals * SHARE <= state.answers {
            return;
        }
        (state.answers, state.refusals) = (0, 0);
        state.decreased = Some(Instant::now());
        state.slow_start = false;
        state.successes = 0;
        let half = (state.limit / 2).max(1);
        state.lower(half);
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

    fn limit(start: u32, max: u32) -> AdaptiveLimit {
        AdaptiveLimit::at_rate(AdaptiveSettings { start, max }, 10_000.0)
    }

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
        let limit = limit(8, 64);
        let latency = Duration::from_millis(150);
        for expected in [20, 41, 64, 64] {
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
        let limit = AdaptiveLimit::at_rate(AdaptiveSettings::default(), 10_000.0);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            round(&limit, Duration::from_millis(150), false).await;
        }
        assert!(limit.limit() >= 256, "{}", limit.limit());
    }

    /// Of a hundred requests one is refused, whatever the load: that does not lower it for ever.
    #[tokio::test(start_paused = true)]
    async fn rare_refusals_are_no_overload() {
        let limit = AdaptiveLimit::at_rate(AdaptiveSettings { start: 16, max: 256 }, 1e6);
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

    /// However long all went well: an endpoint that refuses half of all is asked less at once.
    #[tokio::test(start_paused = true)]
    async fn overload_is_seen_at_any_time() {
        let limit = limit(64, 64);
        for _ in 0..1000 {
            round(&limit, Duration::from_millis(20), false).await;
        }
        for number in 0..64 {
            let permit = limit.acquire().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            if number % 2 == 0 { permit.throttled() } else { permit.answered() }
        }
        assert!(limit.limit() < 8, "{}", limit.limit());
    }

    /// A listing tells that the path is long, before the first object is asked for; one that was only slow is not believed for long.
    #[tokio::test(start_paused = true)]
    async fn a_path_that_is_known_to_be_long_begins_with_more() {
        let long = limit(32, 512);
        long.expect(Duration::from_millis(20));
        assert_eq!(long.limit(), 50);
        long.expect(Duration::from_millis(150));
        assert_eq!(long.limit(), 128);
        round(&long, Duration::from_millis(150), false).await;
        assert!(long.limit() > 256, "{}", long.limit());
        let known = limit(32, 512);
        known.acquire().await.answered();
        known.expect(Duration::from_millis(150));
        assert_eq!(known.limit(), 32, "there is an answer to go by");
        let refused = limit(32, 512);
        round(&refused, Duration::from_millis(1), true).await;
        refused.expect(Duration::from_millis(150));
        assert_eq!(refused.limit(), 16, "it has asked for less");
        let short = limit(32, 512);
        short.expect(Duration::from_millis(150));
        round(&short, Duration::from_millis(1), false).await;
        round(&short, Duration::from_millis(1), false).await;
        assert_eq!((short.limit(), short.permits.available_permits()), (32, 32));
    }

    #[tokio::test(start_paused = true)]
    async fn slower_answers_stop_the_growth() {
        let limit = limit(8, 64);
        round(&limit, Duration::from_millis(1), false).await;
        let before = limit.limit();
        round(&limit, Duration::from_millis(20), false).await;
        assert_eq!(limit.limit(), before);
    }

    /// What nobody could make use of is not opened, be all answers as fast as can be.
    #[tokio::test(start_paused = true)]
    async fn a_short_path_needs_few() {
        for (millis, expected) in [(1, 24), (20, 200), (150, 384)] {
            let limit = limit(24, 384);
            for _ in 0..50 {
                round(&limit, Duration::from_millis(millis), false).await;
            }
            assert_eq!(limit.limit(), expected, "{millis} ms");
            round(&limit, Duration::from_millis(millis), true).await;
            assert_eq!(limit.limit(), expected / 2);
            for _ in 0..expected {
                round(&limit, Duration::from_millis(millis), false).await;
            }
            assert_eq!(limit.limit(), expected, "again, at {millis} ms");
        }
    }

    /// A path that becomes longer needs more; one fast answer at the beginning is no short path.
    #[tokio::test(start_paused = true)]
    async fn what_is_needed_follows_the_path() {
        let limit = limit(24, 384);
        let permit = limit.acquire().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        permit.answered();
        drop(permit);
        for _ in 0..50 {
            round(&limit, Duration::from_millis(15), false).await;
        }
        assert_eq!(limit.limit(), 150);
        for _ in 0..50 {
            round(&limit, Duration::from_millis(20), false).await;
        }
        assert_eq!(limit.limit(), 200);
    }
}
