//! Queue and state in one SQLite file, for any number of processes on one machine.
//!
//! WAL mode, `synchronous=NORMAL`: a crash of a process loses nothing; a power loss may roll the last commits back, of queue
//! and state together, which the engine takes for duplicates. Every writer begins with `BEGIN IMMEDIATE`, so that it waits
//! for its turn instead of failing when it has read already.

mod error;
mod queue;
mod store;

use dth_core::{
    env::{SharedEnv, SystemEnv},
    error::{Error, ErrorKind, Op, Result},
};
use error::classify;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Notify;

/// Version of the tables, in `PRAGMA user_version`.
const SCHEMA_VERSION: i64 = 5;

/// What brings a file of each older version to the next one; a file is brought up when it is opened.
const MIGRATIONS: [(i64, &str); 4] = [
    (
        1,
        "ALTER TABLE pack ADD COLUMN run TEXT;
         CREATE INDEX pack_run ON pack (run);
         DROP INDEX message_visible;
         CREATE INDEX message_visible ON message (visible_at, id, leased);",
    ),
    (
        2,
        "ALTER TABLE pack ADD COLUMN claimed INTEGER NOT NULL DEFAULT 0;
         -- Packs of files of the first version do not say of which run they are, which may be open.
         UPDATE pack SET claimed = (unixepoch() + 30 * 86400) * 1000;
         CREATE INDEX pack_of_event ON pack (claimed) WHERE run IS NULL;",
    ),
    (
        3,
        "CREATE TABLE note (
           name TEXT PRIMARY KEY,
           text TEXT NOT NULL,
           version INTEGER NOT NULL,
           written INTEGER NOT NULL
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX note_written ON note (written);",
    ),
    (4, "CREATE INDEX record_uploads ON record (key) WHERE instr(more, '\"uploads_since\":') > 0;"),
];

/// How long a writer waits for another process.
const PATIENCE: Duration = Duration::from_secs(30);

/// A queue and a state store in one file. Clones share the connection.
#[derive(Clone)]
pub struct Sqlite {
    connection: Arc<Mutex<Connection>>,
    path: Arc<PathBuf>,
    env: SharedEnv,
    /// Messages were sent by this process.
    sent: Arc<Notify>,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sqlite({})", self.path.display())
    }
}

impl Sqlite {
    /// Opens the file; makes it when it is not there.
    ///
    /// `Invalid` when the path cannot be opened, is no SQLite file, lies where WAL does not work (a network drive), or was
    /// written by a newer version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with_env(path, Arc::new(SystemEnv))
    }

    /// As [`open`](Self::open), with a clock from outside.
    pub fn open_with_env(path: impl AsRef<Path>, env: SharedEnv) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let failed = |e: rusqlite::Error| Error::new(ErrorKind::Invalid, Op::Connect, path.display().to_string()).with_source(e);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
        connection.busy_timeout(PATIENCE).map_err(failed)?;
        let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(failed)?;
        if mode != "wal" {
            return Err(Error::new(ErrorKind::Invalid, Op::Connect, path.display().to_string())
                .with_source(format!("journal mode `{mode}` instead of `wal`: put the file on a local disk")));
        }
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(64);
        migrate(&mut connection).map_err(|e| match e {
            Migration::Sqlite(e) => failed(e),
            Migration::Newer(found) => Error::new(ErrorKind::Invalid, Op::Connect, path.display().to_string())
                .with_source(format!("its tables have version {found}, this program knows {SCHEMA_VERSION}: update the program")),
        })?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), path: Arc::new(path), env, sent: Arc::new(Notify::new()) })
    }

    fn now(&self) -> i64 {
        self.env.now().as_millisecond()
    }

    /// Runs a transaction on a thread that may wait.
    async fn write<T, F>(&self, op: Op, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    {
        self.on_thread(op, TransactionBehavior::Immediate, work).await
    }

    /// Runs reads that see one state of the file.
    async fn read<T, F>(&self, op: Op, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    {
        self.on_thread(op, TransactionBehavior::Deferred, work).await
    }

    async fn on_thread<T, F>(&self, op: Op, behavior: TransactionBehavior, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || {
            let mut connection = connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let transaction = connection.transaction_with_behavior(behavior)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        });
        let target = || self.path.display().to_string();
        match done.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::Sqlite(error))) => Err(classify(op, target(), error)),
            Ok(Err(Failure::Engine(error))) => Err(*error),
            Err(error) => Err(Error::new(ErrorKind::Internal, op, target()).with_source(error)),
        }
    }
}

/// Why a transaction was rolled back.
enum Failure {
    Sqlite(rusqlite::Error),
    Engine(Box<Error>),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(Box::new(error))
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::from(Error::new(ErrorKind::Corrupt, Op::LoadState, "a row of the state file").with_source(error))
    }
}

enum Migration {
    Sqlite(rusqlite::Error),
    Newer(i64),
}

impl From<rusqlite::Error> for Migration {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn migrate(connection: &mut Connection) -> Result<(), Migration> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match found {
        0 => {
            transaction.execute_batch(include_str!("schema.sql"))?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        newer if newer > SCHEMA_VERSION => return Err(Migration::Newer(newer)),
        found => {
            for (_, step) in MIGRATIONS.iter().filter(|(from, _)| *from >= found) {
                transaction.execute_batch(step)?;
            }
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_file_is_refused_with_the_way_out() {
        let path = std::env::temp_dir().join(format!("dth-newer-{}.db", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = Sqlite::open(&path).unwrap_err();
        assert!(error.chain().contains("update the program"), "{}", error.chain());
        std::fs::write(&path, b"this is no database, but long enough to be looked at").unwrap();
        assert_eq!(Sqlite::open(&path).unwrap_err().kind(), ErrorKind::Invalid);
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
    }
}
