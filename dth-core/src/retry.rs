//! Trying again: which errors, how often, how long in between. The engine retries; nothing below it does.

use crate::{
    env::{Env, random_below},
    error::{Error, Result, Retry},
};
use serde::{Deserialize, Serialize};
use std::{future::Future, time::Duration};

/// Exponential back-off with full jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Tries in all, at least 1.
    pub tries: u32,
    /// The first pause lasts at most so many milliseconds; each further one twice as long.
    pub base_ms: u64,
    /// No pause is longer, whatever a server asks for.
    pub cap_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { tries: 5, base_ms: 100, cap_ms: 20_000 }
    }
}

impl RetryPolicy {
    /// How long to wait before try `tried + 1`; `None` when the error is final or the tries are used up.
    pub fn pause(&self, error: &Error, tried: u32, env: &dyn Env) -> Option<Duration> {
        if tried >= self.tries {
            return None;
        }
        let cap = Duration::from_millis(self.cap_ms);
        match error.retry() {
            Retry::Never => None,
            Retry::After(wait) => Some(wait.saturating_add(self.jittered(1, env)).min(cap)),
            Retry::Backoff => Some(self.jittered(tried, env)),
        }
    }

    /// A pause of full jitter after `tried` tries.
    pub fn jittered(&self, tried: u32, env: &dyn Env) -> Duration {
        let most = self.base_ms.saturating_mul(1 << tried.saturating_sub(1).min(20)).min(self.cap_ms);
        Duration::from_millis(random_below(env, most + 1))
    }

    /// Repeats a call that is harmless to repeat (a read, or a write that names what it replaces).
    pub async fn run<T, F: Future<Output = Result<T>>>(&self, env: &dyn Env, mut call: impl FnMut() -> F) -> Result<T> {
        let mut tried = 0;
        loop {
            tried += 1;
            match call().await {
                Ok(value) => return Ok(value),
                Err(error) => match self.pause(&error, tried, env) {
                    Some(pause) => {
                        metrics::counter!("dth_retries_total", "op" => format!("{:?}", error.op())).increment(1);
                        tracing::debug!(error = %error.chain(), tried, ?pause, "trying again");
                        tokio::time::sleep(pause).await;
                    }
                    None => return Err(error),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        env::SystemEnv,
        error::{ErrorKind, Op},
    };

    #[test]
    fn final_errors_are_not_retried_and_pauses_are_bounded() {
        let policy = RetryPolicy { tries: 3, base_ms: 100, cap_ms: 150 };
        let error = |kind| Error::new(kind, Op::Read, "k");
        assert_eq!(policy.pause(&error(ErrorKind::Denied), 1, &SystemEnv), None);
        assert_eq!(policy.pause(&error(ErrorKind::Unavailable), 3, &SystemEnv), None);
        for tried in 1..3 {
            assert!(policy.pause(&error(ErrorKind::Unavailable), tried, &SystemEnv).unwrap() <= Duration::from_millis(150));
        }
        let after = error(ErrorKind::Throttled).with_retry(Retry::After(Duration::from_millis(120)));
        let pause = policy.pause(&after, 1, &SystemEnv).unwrap();
        assert!(pause >= Duration::from_millis(120) && pause <= Duration::from_millis(150));
    }
}
