//! Tells people what they must know: jobs were given up, a finder failed, a run has ended.
//!
//! Notices are sent beside the work and never hold it up. They are a convenience, not a ledger: a process that is killed may
//! leave one unsent, while the dead letters and records that it speaks of are durable. Dead letters are gathered, so that ten
//! thousand of them are a few messages.

#[cfg(feature = "http")]
mod webhook;

#[cfg(feature = "http")]
pub use webhook::Webhook;

use crate::{
    env::{SharedEnv, SystemEnv},
    error::{Error, Result},
    object::ObjectKey,
    report::Report,
    retry::RetryPolicy,
    state::RunId,
};
use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Version of the JSON form. Fields are added, never renamed or removed, within one version.
pub const NOTICE_VERSION: u32 = 1;

/// Dead letters named in one notice.
const SAMPLES: usize = 10;
/// Characters of a reason.
const MAX_REASON: usize = 500;
/// Neighbours of the first dead letter are waited for so long.
const GATHER: Duration = Duration::from_secs(1);
/// Longest time for one try to send.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often sending is tried.
const RETRY: RetryPolicy = RetryPolicy { tries: 3, base_ms: 500, cap_ms: 5_000 };

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Happened {
    /// Jobs were given up since the last notice of this kind by the same process.
    DeadLetters {
        /// How many.
        count: u64,
        /// The first of them.
        samples: Vec<DeadLetterSample>,
    },
    /// A finder could not go on. Its run is kept, and the next start of a finder resumes it.
    FinderFailed {
        /// The run, where it was begun.
        run: RunId,
        /// Why.
        cause: String,
    },
    /// A run has ended, well or not.
    RunEnded {
        /// What it did.
        report: Box<Report>,
    },
    /// Nothing: somebody wanted to know whether notices arrive.
    Test,
}

/// One job that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetterSample {
    /// The object's key; `None` for a message that nobody can read.
    pub key: Option<ObjectKey>,
    /// Why.
    pub reason: String,
}

/// A message for people, or for programs by its JSON form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notice {
    /// Version of this form.
    pub version: u32,
    /// The task.
    pub task: String,
    /// When it was written.
    pub at: Timestamp,
    /// One line.
    pub subject: String,
    /// The whole, for people.
    pub text: String,
    /// The same for programs.
    #[serde(flatten)]
    pub happened: Happened,
}

impl Notice {
    /// Writes a notice.
    pub fn new(task: &str, at: Timestamp, happened: Happened) -> Self {
        let (what, rest) = match &happened {
            Happened::DeadLetters { count, samples } => {
                let told = samples.iter().map(|s| match &s.key {
                    Some(key) => format!("{key}: {}", s.reason),
                    None => s.reason.clone(),
                });
                let untold = count.saturating_sub(samples.len() as u64);
                let more = (untold > 0).then(|| format!("… and {untold} more"));
                let lines = told.chain(more).collect::<Vec<_>>().join("\n");
                let jobs = if *count == 1 { "1 job was".to_owned() } else { format!("{count} jobs were") };
                (format!("{jobs} given up"), format!("{lines}\n\nThey lie in the dead-letter queue: mend the cause, then redrive them."))
            }
            Happened::FinderFailed { run, cause } => {
                ("the finder failed".to_owned(), format!("{cause}\n\nRun {run} is kept: start the finder again to resume it."))
            }
            Happened::RunEnded { report } => {
                let how = match (report.is_success(), report.failed.objects) {
                    (true, _) => "is done".to_owned(),
                    (false, 0) => "has ended, and its report needs a look".to_owned(),
                    (false, failed) => format!("has ended with {failed} failed"),
                };
                (format!("run {} {how}", report.run.id), report.to_string())
            }
            Happened::Test => ("this is a test".to_owned(), "Nothing has happened: notices of this task arrive here.".to_owned()),
        };
        let subject = format!("{task}: {what}");
        Self { version: NOTICE_VERSION, task: task.to_owned(), at, text: format!("{subject}\n\n{rest}"), subject, happened }
    }
}

/// A way to tell people.
#[async_trait]
pub trait Notifier: fmt::Debug + Send + Sync + 'static {
    /// Sends a notice. It may arrive more than once. Called again while the error is one that passes.
    async fn notify(&self, notice: &Notice) -> Result<()>;
}

/// Writes notices to the log of the process.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogNotifier;

#[async_trait]
impl Notifier for LogNotifier {
    async fn notify(&self, notice: &Notice) -> Result<()> {
        match &notice.happened {
            Happened::RunEnded { report } if report.is_success() => tracing::info!(task = notice.task, "{}", notice.text),
            _ => tracing::error!(task = notice.task, "{}", notice.text),
        }
        Ok(())
    }
}

/// Whom the parts of a task tell. Clones share it; without notifiers it does nothing.
#[derive(Debug, Clone, Default)]
pub struct Alarms {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    task: String,
    notifiers: Vec<Arc<dyn Notifier>>,
    every: Duration,
    env: SharedEnv,
    gathered: Mutex<Gathered>,
    more: Notify,
    /// Held by whoever tells of dead letters just now.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Gathered {
    count: u64,
    samples: Vec<DeadLetterSample>,
    /// When the last notice of dead letters went out.
    told: Option<Instant>,
}

impl Alarms {
    /// Tells all of these. Dead letters are told of at once, and then at most every five minutes.
    pub fn new(task: impl Into<String>, notifiers: Vec<Arc<dyn Notifier>>) -> Self {
        let inner = Inner {
            task: task.into(),
            notifiers,
            every: Duration::from_secs(300),
            env: Arc::new(SystemEnv),
            gathered: Mutex::default(),
            more: Notify::new(),
            turn: tokio::sync::Mutex::default(),
        };
        Self { inner: (!inner.notifiers.is_empty()).then(|| Arc::new(inner)) }
    }

    /// Tells of dead letters at most so often. To be set before it is shared.
    pub fn with_every(mut self, every: Duration) -> Self {
        if let Some(inner) = self.inner.as_mut().and_then(Arc::get_mut) {
            inner.every = every;
        }
        self
    }

    /// Sets clock and randomness. To be set before it is shared.
    pub fn with_env(mut self, env: SharedEnv) -> Self {
        if let Some(inner) = self.inner.as_mut().and_then(Arc::get_mut) {
            inner.env = env;
        }
        self
    }

    /// Tells everybody; whether anybody took it. What cannot be sent is logged.
    pub async fn tell(&self, happened: Happened) -> bool {
        let Some(inner) = &self.inner else { return true };
        let notice = Notice::new(&inner.task, inner.env.now(), happened);
        let sent = inner.notifiers.iter().map(|notifier| inner.send(&**notifier, &notice));
        futures_util::future::join_all(sent).await.contains(&true)
    }

    /// Sends a test to each notifier, once; answers how each of them, by its debug form, took it.
    pub async fn test(&self) -> Vec<(String, Result<()>)> {
        let Some(inner) = &self.inner else { return Vec::new() };
        let notice = Notice::new(&inner.task, inner.env.now(), Happened::Test);
        let mut told = Vec::new();
        for notifier in &inner.notifiers {
            told.push((format!("{notifier:?}"), Inner::attempt(&**notifier, &notice).await));
        }
        told
    }

    /// Remembers a dead letter for the next notice.
    pub(crate) fn dead_letter(&self, key: Option<&ObjectKey>, reason: &str) {
        let Some(inner) = &self.inner else { return };
        let mut gathered = inner.gathered();
        gathered.count += 1;
        // Some more than are told: others may come while these are being sent.
        if gathered.samples.len() < 2 * SAMPLES {
            let reason = reason.chars().take(MAX_REASON).collect();
            gathered.samples.push(DeadLetterSample { key: key.cloned(), reason });
        }
        drop(gathered);
        inner.more.notify_one();
    }

    /// Tells of dead letters as they come; runs until it is dropped.
    pub(crate) async fn watch(&self) {
        let Some(inner) = &self.inner else { return };
        loop {
            inner.more.notified().await;
            let told = inner.gathered().told;
            let due = told.map_or(Duration::ZERO, |at| inner.every.saturating_sub(at.elapsed()));
            tokio::time::sleep(due.max(GATHER)).await;
            self.flush().await;
        }
    }

    /// Tells of the dead letters gathered so far. Dropped in the middle, or when nobody takes it, it leaves them to the next call.
    pub(crate) async fn flush(&self) {
        let Some(inner) = &self.inner else { return };
        let _turn = inner.turn.lock().await;
        let (count, mut samples) = {
            let gathered = inner.gathered();
            (gathered.count, gathered.samples.clone())
        };
        if count == 0 {
            return;
        }
        let told = samples.len();
        samples.truncate(SAMPLES);
        let taken = self.tell(Happened::DeadLetters { count, samples }).await;
        let mut gathered = inner.gathered();
        gathered.told = Some(Instant::now());
        if !taken {
            inner.more.notify_one();
            return;
        }
        gathered.count -= count;
        gathered.samples.drain(..told);
    }
}

impl Inner {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn attempt(notifier: &dyn Notifier, notice: &Notice) -> Result<()> {
        match tokio::time::timeout(PATIENCE, notifier.notify(notice)).await {
            Ok(sent) => sent,
            Err(_) => Err(unsent("no answer in time")),
        }
    }

    async fn send(&self, notifier: &dyn Notifier, notice: &Notice) -> bool {
        let sent = RETRY.run(&*self.env, || Self::attempt(notifier, notice)).await;
        if let Err(error) = &sent {
            tracing::error!(?notifier, subject = notice.subject, error = %error.chain(), "a notice could not be sent");
        }
        sent.is_ok()
    }
}

fn unsent(why: &str) -> Error {
    Error::new(crate::error::ErrorKind::Unavailable, crate::error::Op::Notify, "notice").with_source(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        env::Env,
        error::{ErrorKind, Op},
        state::Run,
    };
    use std::fmt::Write as _;

    #[derive(Debug, Default)]
    struct Told {
        notices: Mutex<Vec<Notice>>,
        failures: Mutex<u32>,
    }

    #[async_trait]
    impl Notifier for Told {
        async fn notify(&self, notice: &Notice) -> Result<()> {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(Error::new(ErrorKind::Unavailable, Op::Notify, "told"));
            }
            self.notices.lock().unwrap().push(notice.clone());
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_of_dead_letters_are_a_few_notices() {
        let told = Arc::new(Told { failures: Mutex::new(2), ..Told::default() });
        let alarms = Alarms::new("photos", vec![told.clone()]);
        let watch = alarms.clone();
        let mut scope = crate::scope::TaskScope::new();
        scope.spawn(async move { watch.watch().await });
        for n in 0..5000 {
            alarms.dead_letter(Some(&format!("k{n}").as_str().into()), "denied");
            if n % 500 == 0 {
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(400)).await;
        let notices = told.notices.lock().unwrap().clone();
        let counts: Vec<u64> = notices
            .iter()
            .map(|n| match &n.happened {
                Happened::DeadLetters { count, samples } => {
                    assert!(samples.len() as u64 == (*count).min(SAMPLES as u64));
                    *count
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!((counts.len(), counts[0], counts.iter().sum::<u64>()), (2, 1, 5000), "{counts:?}");
        assert!(notices[1].text.contains("k1: denied") && notices[1].text.contains("more"), "{}", notices[1].text);
    }

    /// Whoever is told is away for a while: what happened meanwhile is in a later notice.
    #[tokio::test(start_paused = true)]
    async fn dead_letters_that_nobody_could_be_told_of_are_told_later() {
        let told = Arc::new(Told { failures: Mutex::new(RETRY.tries), ..Told::default() });
        let alarms = Alarms::new("photos", vec![told.clone()]);
        let watch = alarms.clone();
        let mut scope = crate::scope::TaskScope::new();
        scope.spawn(async move { watch.watch().await });
        alarms.dead_letter(None, "denied");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(told.notices.lock().unwrap().is_empty());
        tokio::time::sleep(Duration::from_secs(300)).await;
        let notices = told.notices.lock().unwrap().clone();
        assert!(matches!(&notices[..], [Notice { happened: Happened::DeadLetters { count: 1, .. }, .. }]), "{notices:?}");
    }

    /// What is written to the log, for those who watch it.
    #[tokio::test]
    async fn notices_are_written_to_the_log() {
        let (log, written) = (Arc::new(Mutex::new(String::new())), Arc::new(LogNotifier));
        let _guard = tracing::subscriber::set_default(Keeper(Arc::clone(&log)));
        let alarms = Alarms::new("photos", vec![written]);
        alarms.tell(Happened::FinderFailed { run: RunId::new("r"), cause: "no such bucket".into() }).await;
        alarms.tell(Happened::RunEnded { report: Box::new(Report::new(Run::new(RunId::new("r2"), SystemEnv.now()))) }).await;
        let log = log.lock().unwrap().clone();
        for text in ["ERROR", "photos: the finder failed", "no such bucket", "run r2"] {
            assert!(log.contains(text), "{text} in {log}");
        }
    }

    /// Keeps the texts of events.
    struct Keeper(Arc<Mutex<String>>);

    impl tracing::Subscriber for Keeper {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            struct Text<'a>(&'a mut String);
            impl tracing::field::Visit for Text<'_> {
                fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
                    let _ = write!(self.0, "{field}={value:?} ");
                }
            }
            let mut log = self.0.lock().unwrap();
            let _ = write!(log, "{} ", event.metadata().level());
            event.record(&mut Text(&mut log));
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_notifier_that_fails_keeps_nobody_else_from_being_told() {
        let (broken, good) = (Arc::new(Told { failures: Mutex::new(99), ..Told::default() }), Arc::new(Told::default()));
        let alarms = Alarms::new("t", vec![broken.clone(), good.clone()]);
        alarms.tell(Happened::FinderFailed { run: RunId::new("r"), cause: "denied".into() }).await;
        assert_eq!((broken.notices.lock().unwrap().len(), good.notices.lock().unwrap().len()), (0, 1));
        // Without anybody to tell it is nothing.
        Alarms::default().tell(Happened::FinderFailed { run: RunId::new("r"), cause: "x".into() }).await;
    }

    #[test]
    fn the_json_form_has_its_fields() {
        let run = Run::new(RunId::new("r1"), SystemEnv.now());
        let notice = Notice::new("t", SystemEnv.now(), Happened::RunEnded { report: Box::new(Report::new(run)) });
        let json = serde_json::to_value(&notice).unwrap();
        for field in ["version", "task", "at", "subject", "text", "kind", "report"] {
            assert!(json.get(field).is_some(), "{field} in {json}");
        }
        assert_eq!((json["version"].as_u64(), json["kind"].as_str()), (Some(1), Some("run_ended")));
    }
}
