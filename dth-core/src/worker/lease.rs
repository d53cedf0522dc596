//! Keeps a delivery hidden while its work goes on.

use crate::{
    error::ErrorKind,
    proof::{Bug, wrong},
    queue::{Queue, Receipt},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Extends from the moment of receipt, at every third of the lease. Returns when the lease is lost: the message belongs to
/// somebody else then.
pub(super) async fn keep(queue: &dyn Queue, receipt: &Receipt, lease: Duration) {
    let mut safe_until = Instant::now() + lease;
    let mut pause = lease / 3;
    loop {
        sleep(if wrong(Bug::NoLeaseExtension) { Duration::MAX } else { pause }).await;
        let asked = Instant::now();
        match tokio::time::timeout_at(safe_until.max(asked), queue.extend(receipt, lease)).await {
            Ok(Ok(())) => {
                safe_until = asked + lease;
                pause = lease / 3;
            }
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => return,
            Ok(Err(error)) => {
                tracing::warn!(error = %error.chain(), "could not extend the lease");
                pause = lease / 20;
            }
            Err(_) => return,
        }
        if Instant::now() >= safe_until {
            return;
        }
    }
}
