//! Any backend, with faults: errors before and after the effect, latency, late effects of requests given up, truncated and
//! flipped bytes, frozen callers. All chance comes from one seed.

use crate::{
    checksum::Checksum,
    env::{Env, random_below},
    error::{Error, ErrorKind, Op, Result, Retry},
    index::{Index, IndexCapability, ListPage, ListRequest},
    object::{Attributes, ETag, Entry, ObjectInfo, ObjectKey, Tags, VersionId},
    queue::{DeadLetter, Delivery, Depth, Message, Queue, QueueCapability, Receipt},
    scope::TaskScope,
    sink::{Body, Condition, OpenUpload, Part, Placed, PutOptions, Sink, SinkCapability, UploadId, Written},
    source::{CopyOrigin, Family, Read, ReadOptions, Restore, Restoring, Source, SourceCapability},
    state::{
        Advance, Claim, Committed, Fence, Note, Origin, OutboxPack, PackId, Record, RecordQuery, RecordWrite, Run, RunId, RunState, Shard,
        StateStore,
    },
    versions::VersionsPage,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    ops::{Range, RangeInclusive},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

/// Chances out of 1,000 for each call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Fails without effect.
    pub before: u64,
    /// Takes effect, and the answer is lost.
    pub after: u64,
    /// Fails now, takes effect up to a minute later.
    pub late: u64,
    /// Takes up to two minutes.
    pub spike: u64,
    /// A read ends early.
    pub truncate: u64,
    /// A read has a wrong bit.
    pub flip: u64,
    /// A written body has a wrong bit: for sinks that verify what they are sent.
    pub flip_up: u64,
    /// An entry of a batch is refused.
    pub entry: u64,
    /// A message is delivered twice.
    pub duplicate: u64,
    /// Ordinary latency in milliseconds, at most.
    pub latency: u64,
}

/// What befalls one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// Fails without effect.
    Before,
    /// Takes effect, and the answer is lost.
    After,
    /// Fails now, takes effect a minute later.
    Late,
    /// The caller dies before the call has an effect.
    CrashBefore,
    /// The caller dies after the call took effect.
    CrashAfter,
    /// The caller sleeps for two minutes before the call has an effect.
    Freeze,
}

impl Strike {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Before, Self::After, Self::Late, Self::CrashBefore, Self::CrashAfter, Self::Freeze];
}

/// Where faults come from, shared by all wrappers of a simulation; it also sees what callers hold and do.
#[derive(Debug)]
pub struct Weather {
    env: Arc<dyn Env>,
    state: Mutex<State>,
    crash: Notify,
    watch: Option<DeleteWatch>,
}

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    script: BTreeMap<u64, Strike>,
    op_script: BTreeMap<(u64, u64), Strike>,
    op_calls: BTreeMap<u64, u64>,
    slow: BTreeMap<u32, u64>,
    crashed: Vec<u32>,
    frozen: BTreeMap<u32, Instant>,
    injected: BTreeMap<&'static str, u64>,
    late: TaskScope,
    trace: u64,
    calls: u64,
    log: Option<Vec<String>>,
    /// Bytes of object bodies that callers hold, each with the most that it ever held.
    held: BTreeMap<u32, (Arc<AtomicU64>, u64)>,
    /// Messages that a caller works on, by body.
    open: BTreeMap<String, Receipt>,
    /// Keys that a caller was told to be absent.
    absent: BTreeSet<(u32, ObjectKey)>,
}

/// Sees calls of a delete: the key, and a question that tells whether its caller was ever told that some key is absent.
type OnDelete = dyn Fn(&ObjectKey, &dyn Fn(&ObjectKey) -> bool) + Send + Sync;

struct DeleteWatch(Box<OnDelete>);

impl fmt::Debug for DeleteWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeleteWatch")
    }
}

thread_local! {
    /// Whether a request goes on that its caller has given up.
    static AFTERLIFE: Cell<bool> = const { Cell::new(false) };
}

/// Bytes that count as held as long as they live.
struct Held {
    bytes: Bytes,
    gauge: Arc<AtomicU64>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.fetch_sub(self.bytes.len() as u64, Relaxed);
    }
}

impl Weather {
    /// Weather from this environment's randomness.
    pub fn new(env: Arc<dyn Env>, faults: Faults) -> Self {
        Self { env, state: Mutex::new(State { faults, ..State::default() }), crash: Notify::new(), watch: None }
    }

    /// Shows every call of a delete to `watch`.
    pub fn with_delete_watch(mut self, watch: Box<OnDelete>) -> Self {
        self.watch = Some(DeleteWatch(watch));
        self
    }

    /// Keeps a line of every call from now on.
    pub fn keep_log(&self) {
        self.lock().log = Some(Vec::new());
    }

    /// Adds a line to the log, if one is kept.
    pub fn tell(&self, line: impl FnOnce() -> String) {
        let now = self.env.now();
        if let Some(log) = &mut self.lock().log {
            log.push(format!("{now:.3} {}", line()));
        }
    }

    /// The lines so far.
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone().unwrap_or_default()
    }

    /// Lets these calls, counted from 1 over all callers, be struck.
    pub fn script(&self, strikes: impl IntoIterator<Item = (u64, Strike)>) {
        self.lock().script.extend(strikes);
    }

    /// Lets the `nth` call of an operation be struck, counted from 1 over all callers.
    pub fn script_op(&self, op: Op, nth: u64, strike: Strike) {
        self.lock().op_script.insert((op as u64, nth), strike);
    }

    /// Gives one caller a latency of its own, in milliseconds at most.
    pub fn slow(&self, actor: u32, latency: u64) {
        self.lock().slow.insert(actor, latency);
    }

    /// Waits until one of these callers has died by a strike: its calls do not return any more.
    pub async fn death_among(&self, actors: Range<u32>) -> u32 {
        loop {
            let mut died = std::pin::pin!(self.crash.notified());
            died.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(at) = state.crashed.iter().position(|actor| actors.contains(actor)) {
                    return state.crashed.remove(at);
                }
            }
            died.await;
        }
    }

    /// The most bytes of object bodies that a caller held at once.
    pub fn most_held(&self) -> BTreeMap<u32, u64> {
        self.lock().held.iter().map(|(actor, (_, most))| (*actor, *most)).collect()
    }

    fn hold(&self, actor: u32, bytes: Bytes) -> Bytes {
        if AFTERLIFE.get() {
            return bytes;
        }
        let mut state = self.lock();
        let (gauge, most) = state.held.entry(actor).or_default();
        let now = gauge.fetch_add(bytes.len() as u64, Relaxed) + bytes.len() as u64;
        *most = now.max(*most);
        Bytes::from_owner(Held { bytes, gauge: Arc::clone(gauge) })
    }

    /// A body as it travels: what the caller holds stays the caller's.
    fn sent(self: &Arc<Self>, body: Body) -> Body {
        let len = body.len();
        let mut at = None;
        let mut wrong = 0;
        if len > 0 && self.strikes(|f| f.flip_up, "bit flipped on its way up") {
            at = Some(random_below(&*self.env, len) as usize);
            wrong = 1 + random_below(&*self.env, 255) as u8;
        }
        let mut copy = move |chunk: &Bytes| {
            let mut bytes = chunk.to_vec();
            at = match at {
                Some(at) if at < bytes.len() => {
                    bytes[at] ^= wrong;
                    None
                }
                Some(at) => Some(at - bytes.len()),
                None => None,
            };
            Bytes::from(bytes)
        };
        match body {
            Body::Bytes(chunks) => Body::Bytes(chunks.iter().map(copy).collect()),
            Body::Stream { len, stream } => Body::Stream { len, stream: stream.map(move |c| c.map(|c| copy(&c))).boxed() },
        }
    }

    fn closed(&self, receipt: &Receipt) {
        self.lock().open.retain(|_, open| open != receipt);
    }

    /// The caller is gone: nothing ever comes back to it.
    async fn die<T>(&self, actor: u32) -> T {
        self.lock().crashed.push(actor);
        self.crash.notify_waiters();
        std::future::pending().await
    }

    /// Changes the faults; `Faults::default()` heals everything.
    pub fn set(&self, faults: Faults) {
        let mut state = self.lock();
        state.faults = faults;
        if faults == Faults::default() {
            state.frozen.clear();
            state.slow.clear();
        }
    }

    /// Stops an actor for a while: its calls wait.
    pub fn freeze(&self, actor: u32, time: Duration) {
        let mut state = self.lock();
        state.frozen.insert(actor, Instant::now() + time);
        *state.injected.entry("freeze").or_default() += 1;
    }

    /// Notes that something happened, for the counters of a simulation.
    pub fn note(&self, what: &'static str) {
        *self.lock().injected.entry(what).or_default() += 1;
    }

    /// What was injected, by kind.
    pub fn injected(&self) -> BTreeMap<&'static str, u64> {
        self.lock().injected.clone()
    }

    /// A hash over the order and kind of all calls: equal seeds must give equal traces.
    pub fn trace(&self) -> (u64, u64) {
        let state = self.lock();
        (state.trace, state.calls)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn strikes(&self, chance: impl Fn(&Faults) -> u64, what: &'static str) -> bool {
        let chance = chance(&self.lock().faults);
        let strikes = chance > 0 && random_below(&*self.env, 1000) < chance;
        if strikes {
            self.note(what);
        }
        strikes
    }

    async fn travel(&self, actor: u32) {
        let most = {
            let state = self.lock();
            state.slow.get(&actor).copied().unwrap_or(state.faults.latency)
        };
        if most > 0 {
            sleep(Duration::from_millis(1 + random_below(&*self.env, most))).await;
        }
    }

    async fn call<T, F>(self: &Arc<Self>, actor: u32, op: Op, effect: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let frozen = self.lock().frozen.get(&actor).copied();
        if let Some(until) = frozen {
            sleep_until(until).await;
        }
        self.travel(actor).await;
        if self.strikes(|f| f.spike, "spike") {
            sleep(Duration::from_millis(random_below(&*self.env, 120_000))).await;
        }
        let strike = {
            let mut state = self.lock();
            state.calls += 1;
            state.trace = (state.trace.rotate_left(5) ^ (op as u64 + 1 + (u64::from(actor) << 8))).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let calls = state.calls;
            let nth = state.op_calls.entry(op as u64).or_default();
            *nth += 1;
            let nth = *nth;
            state.script.remove(&calls).or_else(|| state.op_script.remove(&(op as u64, nth)))
        };
        let lost = |applied| Error::new(ErrorKind::Unavailable, op, "chaos").with_maybe_applied(applied).with_retry(Retry::Backoff);
        match strike {
            Some(Strike::CrashBefore) => return self.die(actor).await,
            Some(Strike::Freeze) => {
                self.freeze(actor, Duration::from_secs(120));
                sleep(Duration::from_secs(120)).await;
            }
            _ => {}
        }
        if strike == Some(Strike::Before) || self.strikes(|f| f.before, "error before") {
            let kind = if random_below(&*self.env, 2) == 0 { ErrorKind::Throttled } else { ErrorKind::Unavailable };
            return Err(Error::new(kind, op, "chaos"));
        }
        if strike == Some(Strike::Late) {
            self.note("late effect");
        }
        if strike == Some(Strike::Late) || self.strikes(|f| f.late, "late effect") {
            let delay = Duration::from_millis(random_below(&*self.env, 60_000));
            let weather = Arc::downgrade(self);
            self.lock().late.spawn(async move {
                sleep(delay).await;
                if let Some(weather) = weather.upgrade() {
                    weather.tell(|| format!("caller {actor}: {op:?}: takes effect, long given up"));
                }
                let mut effect = std::pin::pin!(effect);
                // What it reads is on the wire, not with a caller.
                let _ = std::future::poll_fn(|cx| {
                    AFTERLIFE.set(true);
                    let polled = effect.as_mut().poll(cx);
                    AFTERLIFE.set(false);
                    polled
                })
                .await;
            });
            return Err(lost(true));
        }
        let answer = effect.await;
        self.tell(|| {
            let came = answer.as_ref().map_or_else(crate::error::Error::chain, |_| "done".into());
            format!("caller {actor}: {op:?}: {came}")
        });
        if strike == Some(Strike::CrashAfter) {
            return self.die(actor).await;
        }
        self.travel(actor).await;
        if strike == Some(Strike::After) && answer.is_ok() {
            return Err(lost(true));
        }
        if answer.is_ok() && self.strikes(|f| f.after, "answer lost") {
            return Err(lost(true));
        }
        answer
    }
}

/// A backend as one actor sees it in this weather.
pub struct Chaos<T: ?Sized> {
    inner: Arc<T>,
    weather: Arc<Weather>,
    actor: u32,
}

impl<T: ?Sized> Chaos<T> {
    /// Wraps a backend.
    pub fn new(inner: Arc<T>, weather: Arc<Weather>, actor: u32) -> Self {
        Self { inner, weather, actor }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Chaos<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Chaos").field(&self.inner).finish()
    }
}

/// Runs a method of the wrapped backend on owned arguments, so that it can take effect after its caller is gone.
macro_rules! pass {
    ($self:ident, $op:ident, |$inner:ident| $effect:expr) => {{
        let $inner = Arc::clone(&$self.inner);
        $self.weather.call($self.actor, Op::$op, async move { $effect.await }).await
    }};
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Index + ?Sized> Index for Chaos<T> {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn index_capability(&self) -> IndexCapability {
        self.inner.index_capability()
    }
    fn carries(&self, key: &ObjectKey) -> bool {
        self.inner.carries(key)
    }
    fn covers(&self, key: &ObjectKey) -> bool {
        self.inner.covers(key)
    }
    async fn find(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Entry>>> {
        let keys = keys.to_vec();
        pass!(self, Head, |inner| inner.find(&keys))
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let request = request.clone();
        pass!(self, List, |inner| inner.list(&request))
    }
    async fn versions(&self, request: &ListRequest) -> Result<VersionsPage> {
        let request = request.clone();
        pass!(self, List, |inner| inner.versions(&request))
    }
    async fn keeps_versions(&self) -> Result<bool> {
        self.inner.keeps_versions().await
    }
    async fn head(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<ObjectInfo> {
        let (asked, version) = (key.clone(), version.cloned());
        let info = pass!(self, Head, |inner| inner.head(&asked, version.as_ref()));
        if matches!(&info, Err(error) if error.kind() == ErrorKind::NotFound) {
            self.weather.lock().absent.insert((self.actor, key.clone()));
        }
        info
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Source + ?Sized> Source for Chaos<T> {
    fn source_capability(&self) -> SourceCapability {
        self.inner.source_capability()
    }
    async fn read(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Read> {
        let (key, options) = (key.clone(), options.clone());
        let mut read: Read = pass!(self, Read, |inner| inner.read(&key, &options))?;
        let len = read.range.end - read.range.start;
        let (weather, actor) = (Arc::clone(&self.weather), self.actor);
        if len > 0 && self.weather.strikes(|f| f.truncate, "body truncated") {
            let keep = random_below(&*self.weather.env, len) as usize;
            let mut left = keep;
            let cut = read.body.map(move |chunk| {
                chunk.map(|c| {
                    let take = left.min(c.len());
                    left -= take;
                    c.slice(..take)
                })
            });
            read.body = cut.boxed();
        } else if len > 0 && self.weather.strikes(|f| f.flip, "bit flipped") {
            let mut at = random_below(&*self.weather.env, len) as usize;
            let mut open = true;
            // Any wrong byte: the same wrong bit twice in a tiny part would look like damage at the source.
            let wrong = 1 + random_below(&*self.weather.env, 255) as u8;
            let flipped = read.body.map(move |chunk| {
                chunk.map(|c| {
                    if !open || at >= c.len() {
                        at = at.saturating_sub(c.len());
                        return c;
                    }
                    open = false;
                    let mut bytes = c.to_vec();
                    bytes[at] ^= wrong;
                    Bytes::from(bytes)
                })
            });
            read.body = flipped.boxed();
        }
        read.body = read.body.map(move |chunk| chunk.map(|c| weather.hold(actor, c))).boxed();
        Ok(read)
    }
    async fn children(&self, entry: &Entry) -> Result<Family> {
        let entry = entry.clone();
        pass!(self, Children, |inner| inner.children(&entry))
    }
    async fn restore(&self, key: &ObjectKey, version: Option<&VersionId>, restore: &Restore) -> Result<Restoring> {
        let (key, version, restore) = (key.clone(), version.cloned(), restore.clone());
        pass!(self, Restore, |inner| inner.restore(&key, version.as_ref(), &restore))
    }
    async fn tags(&self, key: &ObjectKey, version: Option<&VersionId>) -> Result<Tags> {
        let (key, version) = (key.clone(), version.cloned());
        pass!(self, Tags, |inner| inner.tags(&key, version.as_ref()))
    }
    fn copy_origin(&self, key: &ObjectKey, version: Option<&VersionId>) -> Option<CopyOrigin> {
        self.inner.copy_origin(key, version)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Sink + ?Sized> Sink for Chaos<T> {
    fn sink_capability(&self) -> SinkCapability {
        self.inner.sink_capability()
    }
    fn not_carried(&self, attributes: &Attributes) -> Vec<String> {
        self.inner.not_carried(attributes)
    }
    async fn put(&self, key: &ObjectKey, body: Body, options: &PutOptions) -> Result<Written> {
        let (key, options, body) = (key.clone(), options.clone(), self.weather.sent(body));
        pass!(self, Put, |inner| inner.put(&key, body, &options))
    }
    async fn settle(&self, key: &ObjectKey, etag: &ETag) -> Result<()> {
        self.inner.settle(key, etag).await
    }
    async fn place(&self, key: &ObjectKey, child: &Entry) -> Result<Placed> {
        let (key, child) = (key.clone(), child.clone());
        pass!(self, Place, |inner| inner.place(&key, &child))
    }
    async fn delete(&self, key: &ObjectKey, condition: &Condition) -> Result<()> {
        if let Some(watch) = &self.weather.watch {
            let told = std::mem::take(&mut self.weather.lock().absent);
            (watch.0)(key, &|source| told.contains(&(self.actor, source.clone())));
            self.weather.lock().absent.extend(told);
        }
        let (key, condition) = (key.clone(), condition.clone());
        pass!(self, Delete, |inner| inner.delete(&key, &condition))
    }
    async fn create_upload(&self, key: &ObjectKey, options: &PutOptions) -> Result<UploadId> {
        let (key, options) = (key.clone(), options.clone());
        pass!(self, CreateUpload, |inner| inner.create_upload(&key, &options))
    }
    async fn put_part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: Body, sum: Option<&Checksum>) -> Result<Part> {
        let (key, upload, sum, body) = (key.clone(), upload.clone(), sum.cloned(), self.weather.sent(body));
        pass!(self, PutPart, |inner| inner.put_part(&key, &upload, number, body, sum.as_ref()))
    }
    async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<Part>> {
        let (key, upload) = (key.clone(), upload.clone());
        pass!(self, ListParts, |inner| inner.list_parts(&key, &upload))
    }
    async fn list_uploads(&self, prefix: &str, token: Option<&str>) -> Result<(Vec<OpenUpload>, Option<String>)> {
        let (prefix, token) = (prefix.to_owned(), token.map(str::to_owned));
        pass!(self, ListUploads, |inner| inner.list_uploads(&prefix, token.as_deref()))
    }
    async fn complete_upload(&self, key: &ObjectKey, upload: &UploadId, parts: &[Part], options: &PutOptions) -> Result<Written> {
        let (key, upload, parts, options) = (key.clone(), upload.clone(), parts.to_vec(), options.clone());
        pass!(self, CompleteUpload, |inner| inner.complete_upload(&key, &upload, &parts, &options))
    }
    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let (key, upload) = (key.clone(), upload.clone());
        pass!(self, AbortUpload, |inner| inner.abort_upload(&key, &upload))
    }
    async fn put_tags(&self, key: &ObjectKey, tags: &Tags) -> Result<()> {
        let (key, tags) = (key.clone(), tags.clone());
        pass!(self, Tags, |inner| inner.put_tags(&key, &tags))
    }
    fn can_copy(&self, origin: &CopyOrigin) -> bool {
        self.inner.can_copy(origin)
    }
    async fn copy(&self, origin: &CopyOrigin, source: &crate::object::ETag, key: &ObjectKey, options: &PutOptions) -> Result<Written> {
        let (origin, source, key, options) = (origin.clone(), source.clone(), key.clone(), options.clone());
        pass!(self, Copy, |inner| inner.copy(&origin, &source, &key, &options))
    }
    async fn copy_part(
        &self,
        origin: &CopyOrigin,
        source: &crate::object::ETag,
        range: std::ops::Range<u64>,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
    ) -> Result<Part> {
        let (origin, source, key, upload) = (origin.clone(), source.clone(), key.clone(), upload.clone());
        pass!(self, CopyPart, |inner| inner.copy_part(&origin, &source, range, &key, &upload, number))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Queue + ?Sized> Queue for Chaos<T> {
    fn capability(&self) -> QueueCapability {
        // What was asked for takes effect, whoever is gone meanwhile.
        QueueCapability { receive_is_cancel_safe: false, ..self.inner.capability() }
    }
    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        let mut refused = Vec::new();
        let mut taken = Vec::new();
        for message in messages {
            let refuse = self.weather.strikes(|f| f.entry, "batch entry refused");
            refused.push(refuse);
            if !refuse {
                taken.push(message.clone());
            }
        }
        let results = pass!(self, Send, |inner| inner.send(&taken))?;
        let mut results = results.into_iter();
        let refusal = || Err(Error::new(ErrorKind::Throttled, Op::Send, "chaos"));
        Ok(refused.into_iter().map(|refuse| if refuse { refusal() } else { results.next().unwrap_or_else(refusal) }).collect())
    }
    async fn receive(&self, max: usize, lease: Duration, wait: Duration) -> Result<Vec<Delivery>> {
        let deliveries = pass!(self, Receive, |inner| inner.receive(max, lease, wait))?;
        for delivery in &deliveries {
            let again = self.weather.lock().open.insert(delivery.body.clone(), delivery.receipt.clone()).is_some();
            if again {
                self.weather.note("two workers on one message");
            }
            if self.weather.strikes(|f| f.duplicate, "duplicate delivery") {
                // The queue forgets that it handed the message out: somebody else gets it too.
                let _ = self.inner.release(&delivery.receipt, Duration::ZERO).await;
            }
        }
        Ok(deliveries)
    }
    async fn extend(&self, receipt: &Receipt, lease: Duration) -> Result<()> {
        let receipt = receipt.clone();
        pass!(self, Extend, |inner| inner.extend(&receipt, lease))
    }
    async fn ack(&self, receipt: &Receipt) -> Result<()> {
        self.weather.closed(receipt);
        let receipt = receipt.clone();
        pass!(self, Ack, |inner| inner.ack(&receipt))
    }
    async fn release(&self, receipt: &Receipt, delay: Duration) -> Result<()> {
        self.weather.closed(receipt);
        let receipt = receipt.clone();
        pass!(self, Release, |inner| inner.release(&receipt, delay))
    }
    async fn dead_letter(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        self.weather.closed(&delivery.receipt);
        let (delivery, reason) = (delivery.clone(), reason.to_owned());
        pass!(self, DeadLetter, |inner| inner.dead_letter(&delivery, &reason))
    }
    async fn depth(&self) -> Result<Depth> {
        pass!(self, Depth, |inner| inner.depth())
    }
    async fn dead_letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>> {
        let after = after.map(str::to_owned);
        pass!(self, DeadLetter, |inner| inner.dead_letters(after.as_deref(), max))
    }
    async fn redrive(&self, id: &str, body: &str) -> Result<()> {
        let (id, body) = (id.to_owned(), body.to_owned());
        pass!(self, Send, |inner| inner.redrive(&id, &body))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: StateStore + ?Sized> StateStore for Chaos<T> {
    async fn records(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Record>>> {
        let keys = keys.to_vec();
        pass!(self, LoadState, |inner| inner.records(&keys))
    }
    async fn query(&self, query: &RecordQuery, max: usize) -> Result<Vec<Record>> {
        let query = query.clone();
        pass!(self, LoadState, |inner| inner.query(&query, max))
    }
    async fn may_have_begun_uploads(&self) -> Result<bool> {
        pass!(self, LoadState, |inner| inner.may_have_begun_uploads())
    }
    async fn claim(&self, pack: &PackId, run: Option<&RunId>, incarnation: u64, jobs: &[(ObjectKey, Option<Origin>)]) -> Result<Claim> {
        let (pack, run, jobs) = (pack.clone(), run.cloned(), jobs.to_vec());
        pass!(self, SaveState, |inner| inner.claim(&pack, run.as_ref(), incarnation, &jobs))
    }
    async fn commit(&self, fence: &Fence, writes: &[RecordWrite]) -> Result<Committed> {
        let (fence, writes) = (fence.clone(), writes.to_vec());
        pass!(self, SaveState, |inner| inner.commit(&fence, &writes))
    }
    async fn save_parts(&self, upload: &UploadId, parts: &[Part]) -> Result<()> {
        let (upload, parts) = (upload.clone(), parts.to_vec());
        pass!(self, SaveState, |inner| inner.save_parts(&upload, &parts))
    }
    async fn parts(&self, upload: &UploadId, numbers: RangeInclusive<u32>) -> Result<Vec<Part>> {
        let upload = upload.clone();
        pass!(self, LoadState, |inner| inner.parts(&upload, numbers.clone()))
    }
    async fn parts_complete(&self, upload: &UploadId, saved: &[u32], total: u32) -> Result<bool> {
        let (upload, saved) = (upload.clone(), saved.to_vec());
        pass!(self, SaveState, |inner| inner.parts_complete(&upload, &saved, total))
    }
    async fn forget_parts(&self, upload: &UploadId) -> Result<()> {
        let upload = upload.clone();
        pass!(self, SaveState, |inner| inner.forget_parts(&upload))
    }
    async fn note(&self, name: &str) -> Result<Option<Note>> {
        let name = name.to_owned();
        pass!(self, LoadState, |inner| inner.note(&name))
    }
    async fn save_note(&self, name: &str, text: &str, replaces: u64) -> Result<bool> {
        let (name, text) = (name.to_owned(), text.to_owned());
        pass!(self, SaveState, |inner| inner.save_note(&name, &text, replaces))
    }
    async fn start_run(&self, run: &Run, shards: &[Shard]) -> Result<()> {
        let (run, shards) = (run.clone(), shards.to_vec());
        pass!(self, SaveState, |inner| inner.start_run(&run, &shards))
    }
    async fn run(&self, run: &RunId) -> Result<Run> {
        let run = run.clone();
        pass!(self, LoadState, |inner| inner.run(&run))
    }
    async fn runs(&self, max: usize) -> Result<Vec<Run>> {
        pass!(self, LoadState, |inner| inner.runs(max))
    }
    async fn move_run(&self, run: &RunId, from: RunState, to: RunState, now: Timestamp) -> Result<()> {
        let run = run.clone();
        pass!(self, SaveState, |inner| inner.move_run(&run, from, to, now))
    }
    async fn shards(&self, run: &RunId) -> Result<Vec<Shard>> {
        let run = run.clone();
        pass!(self, LoadState, |inner| inner.shards(&run))
    }
    async fn advance(&self, run: &RunId, step: &Advance) -> Result<()> {
        let (run, step) = (run.clone(), step.clone());
        pass!(self, SaveState, |inner| inner.advance(&run, &step))
    }
    async fn outbox(&self, run: &RunId, max: usize) -> Result<Vec<OutboxPack>> {
        let run = run.clone();
        pass!(self, LoadState, |inner| inner.outbox(&run, max))
    }
    async fn release_held(&self, run: &RunId, go: bool) -> Result<u64> {
        let run = run.clone();
        pass!(self, SaveState, |inner| inner.release_held(&run, go))
    }
    async fn forget_runs(&self, ended_before: Timestamp) -> Result<u64> {
        pass!(self, SaveState, |inner| inner.forget_runs(ended_before))
    }
}
