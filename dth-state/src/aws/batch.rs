//! Calls that come in at about the same time go out as one batch request.

use dth_core::{
    error::{Error, Result},
    queue::Receipt,
};
use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::oneshot;

/// Entries of one request.
const MOST: usize = 10;
/// So long a call waits for company. Nothing waits on an acknowledgement or an extension.
const GATHER: Duration = Duration::from_millis(5);

/// One change of a message that is handed out.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) receipt: Receipt,
    /// For how long it is to be hidden; means nothing where it is deleted.
    pub(super) hide: Duration,
}

/// Changes that wait for the next request. Each caller waits for its turn, and the one that has it sends for all.
///
/// No task of its own: a caller that is dropped in the middle leaves the others to send their changes again, which is
/// harmless for changes of this kind.
#[derive(Debug, Default)]
pub(super) struct Batch {
    waiting: Mutex<Vec<(Change, oneshot::Sender<Result<()>>)>>,
    turn: tokio::sync::Mutex<()>,
}

impl Batch {
    fn waiting(&self) -> MutexGuard<'_, Vec<(Change, oneshot::Sender<Result<()>>)>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds a change; `send` makes the request for a batch of numbered ones.
    pub(super) async fn run<F>(&self, change: Change, send: impl Fn(Vec<(Change, usize)>) -> F) -> Result<()>
    where
        F: Future<Output = Vec<(usize, Result<()>)>>,
    {
        loop {
            let (told, mut answer) = oneshot::channel();
            self.waiting().push((change.clone(), told));
            loop {
                let _turn = tokio::select! {
                    biased;
                    answer = &mut answer => match answer {
                        Ok(answer) => return answer,
                        // Whoever was sending it is gone.
                        Err(_) => break,
                    },
                    turn = self.turn.lock() => turn,
                };
                match answer.try_recv() {
                    Ok(answer) => return answer,
                    Err(oneshot::error::TryRecvError::Closed) => break,
                    Err(oneshot::error::TryRecvError::Empty) => {}
                }
                tokio::time::sleep(GATHER).await;
                self.send_some(&send).await;
            }
        }
    }

    async fn send_some<F>(&self, send: &impl Fn(Vec<(Change, usize)>) -> F)
    where
        F: Future<Output = Vec<(usize, Result<()>)>>,
    {
        let mut told = Vec::new();
        let mut changes = Vec::new();
        {
            let mut waiting = self.waiting();
            let some = waiting.len().min(MOST);
            for (change, sender) in waiting.drain(..some).filter(|(_, sender)| !sender.is_closed()) {
                changes.push((change, told.len()));
                told.push(Some(sender));
            }
        }
        if changes.is_empty() {
            return;
        }
        let answers: Vec<(usize, Result<(), Error>)> = send(changes).await;
        for (number, answer) in answers {
            if let Some(sender) = told.get_mut(number).and_then(Option::take) {
                // Nobody waits for it any more.
                let _ = sender.send(answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    fn change(n: usize) -> Change {
        Change { receipt: Receipt(n.to_string().into()), hide: Duration::ZERO }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_at_the_same_time_share_a_request() {
        let (batch, requests) = (Batch::default(), AtomicUsize::new(0));
        let send = |changes: Vec<(Change, usize)>| {
            requests.fetch_add(1, Relaxed);
            assert!(changes.len() <= MOST);
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                changes.into_iter().map(|(_, n)| (n, Ok(()))).collect()
            }
        };
        let done = join_all((0..25).map(|n| batch.run(change(n), send))).await;
        assert!(done.iter().all(Result::is_ok));
        assert_eq!(requests.load(Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_is_dropped_leaves_nobody_waiting() {
        let batch = Batch::default();
        let never = |_| std::future::pending();
        let dropped = tokio::time::timeout(Duration::from_secs(1), batch.run(change(0), never));
        let other = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            batch.run(change(1), |changes| async move { changes.into_iter().map(|(_, n)| (n, Ok(()))).collect() }).await
        };
        let (dropped, other) = tokio::join!(dropped, tokio::time::timeout(Duration::from_secs(10), other));
        assert!(dropped.is_err());
        other.unwrap().unwrap();
    }
}
