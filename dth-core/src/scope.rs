//! Tasks with an owner: dropping the scope stops them all, so that a worker can be dropped whole, as a crash would.

use std::future::Future;
use tokio::task::{JoinError, JoinSet};

/// Owns tasks; aborts them when dropped.
#[derive(Debug, Default)]
pub struct TaskScope {
    tasks: JoinSet<()>,
}

impl TaskScope {
    /// A scope without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.reap();
        self.tasks.spawn(task);
    }

    fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            propagate(ended);
        }
    }

    /// Tasks that have not ended.
    pub fn len(&mut self) -> usize {
        self.reap();
        self.tasks.len()
    }

    /// Whether all tasks have ended.
    pub fn is_empty(&mut self) -> bool {
        self.len() == 0
    }

    /// Waits until one more task has ended; at once when there is none.
    ///
    /// Cancel safe. A panic of a task goes on in the caller.
    pub async fn join_next(&mut self) -> bool {
        self.tasks.join_next().await.map(propagate).is_some()
    }

    /// Waits until all tasks have ended.
    pub async fn join_all(&mut self) {
        while self.join_next().await {}
    }
}

fn propagate(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}
