//! Time and chance come from outside, so that a failed simulation can be repeated to the bit.
//!
//! `tokio::time` is the monotonic clock (tests pause it); the wall clock, randomness and ids come from an [`Env`].

use jiff::Timestamp;
use std::{fmt, sync::Arc};

/// Wall clock and randomness.
pub trait Env: fmt::Debug + Send + Sync + 'static {
    /// The time of day.
    fn now(&self) -> Timestamp;

    /// A random number.
    fn random(&self) -> u64;
}

/// A shared [`Env`].
pub type SharedEnv = Arc<dyn Env>;

/// A random id of 128 bits, in hexadecimal.
pub fn random_id(env: &dyn Env) -> String {
    format!("{:016x}{:016x}", env.random(), env.random())
}

/// A random number below `bound`; 0 when the bound is 0.
pub fn random_below(env: &dyn Env, bound: u64) -> u64 {
    ((u128::from(env.random()) * u128::from(bound)) >> 64) as u64
}

/// The real clock and the operating system's randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEnv;

impl Env for SystemEnv {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system")]
    fn random(&self) -> u64 {
        getrandom::u64().expect("the operating system has a random source")
    }
}

/// The environment of a simulation: a seeded generator, and a wall clock that follows tokio's paused time.
#[cfg(any(test, feature = "conformance"))]
#[derive(Debug)]
pub struct SeededEnv {
    state: std::sync::atomic::AtomicU64,
    begun: tokio::time::Instant,
}

#[cfg(any(test, feature = "conformance"))]
impl SeededEnv {
    /// Equal seeds give equal runs. Must be called inside a tokio runtime.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x2545_F491_4F6C_DD1D).into(), begun: tokio::time::Instant::now() }
    }
}

#[cfg(any(test, feature = "conformance"))]
impl Env for SeededEnv {
    fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.begun.elapsed().as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(1_700_000_000_000 + elapsed).unwrap_or(Timestamp::MAX)
    }

    /// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn random(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.state.fetch_add(STEP, std::sync::atomic::Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
