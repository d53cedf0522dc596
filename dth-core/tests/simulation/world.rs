//! One schedule: a world, its weather, what happens in it, and what must hold always and at the end.

use dth_core::{
    checksum::{Algorithm, Checksum},
    env::{Env, SeededEnv, SharedEnv, random_below},
    finder::{Finder, FinderSettings},
    job::EventSettings,
    key_map::KeyMap,
    limit::AdaptiveSettings,
    memory::{Change, MemoryQueue, MemoryState, MemoryStore, MemoryStoreSettings},
    object::{ETag, EtagKind, ObjectKey},
    proof::{Branch, take_reached},
    queue::{Message, Queue},
    retry::RetryPolicy,
    scope::TaskScope,
    sink::Sink,
    source::Source,
    state::{RecordQuery, RunId, RunState, StateStore, Status},
    sweep::sweep,
    transfer::TransferSettings,
    worker::{Worker, WorkerSettings},
    wrap::chaos::{Chaos, Faults, Weather},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Kinds that must strike at least once in a run of some hundred schedules.
pub(crate) const KINDS: [&str; 28] = [
    "error before",
    "answer lost",
    "late effect",
    "spike",
    "body truncated",
    "bit flipped",
    "bit flipped on its way up",
    "batch entry refused",
    "duplicate delivery",
    "freeze",
    "worker crash",
    "finder crash",
    "overwrite",
    "overwrite unseen",
    "delete",
    "multipart source",
    "opaque etags",
    "sink without parts",
    "calm",
    "nothing but versions",
    "destination filled before",
    "few keys, all the time",
    "reads not pinned",
    "the same bytes again",
    "copies inside the store",
    "giants",
    "deletion told",
    "images",
];

pub(crate) const KEYS: [&str; 12] = ["a", "a/b", "ab", "big", "big.bak", "x/../y", "z//", "é\n%2F+", "é\u{301}", "lead", "q r", "🦀"];
pub(crate) const SIZES: [usize; 12] = [0, 1, 7, 8, 9, 16, 17, 24, 25, 31, 40, 64];
const POISON: [&str; 3] = ["{not json", r#"{"v":99}"#, r#"{"key":"outside/the/task"}"#];
/// Every so many seeds, from which one on.
pub(crate) const HOT: (u64, u64) = (16, 14);
/// The same for images.
pub(crate) const IMAGES: (u64, u64) = (16, 10);
/// The same for sources that ignore conditions on reads.
pub(crate) const UNPINNED: (u64, u64) = (16, 15);
pub(crate) const WORKERS: u32 = 3;
pub(crate) const FINDER: u32 = 9;
/// Bytes that a worker may hold.
const MEMORY: u64 = 16;

/// Between which backends the engine works; the objects themselves lie in memory stores, where invariants see them change.
pub(crate) trait Fabric {
    fn source(&self, store: &MemoryStore) -> Arc<dyn Source>;
    fn sink(&self, store: &MemoryStore) -> Arc<dyn Sink>;
    /// Takes away what these backends cannot be like.
    fn adapt(&self, _: &mut Options) {}
    /// Ends the faults of its own.
    fn heal(&self) {}
    /// Bytes that a worker may hold.
    fn may_hold(&self) -> u64 {
        MEMORY
    }
}

/// The memory stores themselves.
pub(crate) struct InMemory;

impl Fabric for InMemory {
    fn source(&self, store: &MemoryStore) -> Arc<dyn Source> {
        Arc::new(store.clone())
    }

    fn sink(&self, store: &MemoryStore) -> Arc<dyn Sink> {
        Arc::new(store.clone())
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) faults: Faults,
    pub(crate) opaque_source: bool,
    pub(crate) opaque_sink: bool,
    pub(crate) source_sums: bool,
    pub(crate) sink_sums: bool,
    /// A sink like a directory: no parts, no conditions, no checksums of its own.
    pub(crate) bare_sink: bool,
    /// No faults, crashes or freezes: only latency, and a source that changes.
    pub(crate) calm: bool,
    /// Part of the destination is there before the first run.
    pub(crate) filled: bool,
    /// Two keys that change all the time, under workers that sleep too long.
    pub(crate) hot: bool,
    /// A source that ignores conditions on reads.
    pub(crate) unpinned: bool,
    /// Both sides are one store, which copies objects of at most so many bytes at once; 0: it refuses to.
    pub(crate) inside: Option<u64>,
    /// The parts of objects of so many bytes are jobs of their own.
    pub(crate) giants: Option<u64>,
    /// Two registries: objects are roots that name their children, and etags are digests.
    pub(crate) images: bool,
}

impl Options {
    /// Drawn from the seed.
    pub(crate) fn general(env: &dyn Env, seed: u64) -> Self {
        let pick = |most: u64| if random_below(env, 2) == 0 { random_below(env, most + 1) } else { 0 };
        let faults = Faults {
            before: pick(150),
            after: pick(80),
            late: pick(30),
            spike: pick(20),
            truncate: pick(50),
            flip: pick(30),
            flip_up: pick(30),
            entry: pick(500),
            duplicate: pick(100),
            latency: if random_below(env, 4) == 0 { 8_000 } else { 40 },
        };
        let mut options = Self {
            faults,
            opaque_source: random_below(env, 4) == 0,
            opaque_sink: random_below(env, 4) == 0,
            source_sums: random_below(env, 3) > 0,
            sink_sums: random_below(env, 3) > 0,
            bare_sink: seed % 8 == 3,
            calm: seed % 16 == 8,
            filled: seed % 4 == 2,
            hot: seed % HOT.0 == HOT.1,
            unpinned: seed % UNPINNED.0 == UNPINNED.1,
            inside: (seed % 16 == 4).then_some([16, 16, 64, 0][(seed / 16 % 4) as usize]),
            giants: (seed % 8 == 1 || seed % 16 == 6).then_some(17),
            images: seed % IMAGES.0 == IMAGES.1,
        };
        if options.images {
            (options.opaque_source, options.opaque_sink, options.source_sums, options.sink_sums, options.filled) =
                (false, false, true, true, false);
        }
        // Nothing but its version tells what an object of this source is: wrong bits could be seen by nobody, but reads and
        // uploads must still be of one version.
        let only_versions = seed % 8 == 7;
        if only_versions {
            (options.opaque_source, options.source_sums, options.faults.flip) = (true, false, 0);
        } else if options.opaque_source {
            options.source_sums = true;
        }
        if options.opaque_sink {
            options.sink_sums = true;
        }
        if options.bare_sink {
            (options.opaque_sink, options.sink_sums) = (true, false);
        }
        if !options.sink_sums {
            options.faults.flip_up = 0;
        }
        if options.calm {
            options.faults = Faults { latency: 8_000, ..Faults::default() };
        }
        options
    }

    fn only_versions(&self) -> bool {
        self.opaque_source && !self.source_sums
    }
}

pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) injected: BTreeMap<&'static str, u64>,
    pub(crate) reached: BTreeMap<Branch, u64>,
    pub(crate) trace: (u64, u64),
    pub(crate) options: Options,
    /// Every call, when `DTH_SHOW` is set.
    pub(crate) log: Vec<String>,
}

type History = Arc<Mutex<BTreeMap<ObjectKey, Vec<(Vec<u8>, ETag)>>>>;
type Violations = Arc<Mutex<Vec<String>>>;

pub(crate) struct World<'a> {
    pub(crate) env: SharedEnv,
    pub(crate) weather: Arc<Weather>,
    fabric: &'a dyn Fabric,
    pub(crate) options: Options,
    pub(crate) source: MemoryStore,
    pub(crate) sink: MemoryStore,
    queue: Arc<MemoryQueue>,
    state: Arc<MemoryState>,
    history: History,
    violations: Violations,
    regressions: Arc<Mutex<u64>>,
    /// Keys whose last change at the destination was the removal of an empty object.
    emptied: Arc<Mutex<BTreeSet<ObjectKey>>>,
    events: std::sync::atomic::AtomicUsize,
    keys: KeyMap,
}

/// Lines of a root that name keys.
fn named_children(body: &[u8]) -> Vec<ObjectKey> {
    let text = String::from_utf8_lossy(body);
    text.lines().filter(|line| line.starts_with("c0/") || line.starts_with("c1/")).map(ObjectKey::from).collect()
}

impl<'a> World<'a> {
    pub(crate) fn new(env: SharedEnv, options: Options, fabric: &'a dyn Fabric) -> Self {
        let (unpinned, images) = (options.unpinned, options.images);
        let links = images && random_below(&*env, 2) == 0;
        let max_copy = options.inside.unwrap_or(0);
        let store = |name: &str, opaque, sums, bare: bool| {
            let default = MemoryStoreSettings::default();
            MemoryStore::new(MemoryStoreSettings {
                conditions: !bare,
                read_conditions: !unpinned,
                multipart: default.multipart.filter(|_| !bare && !images),
                children: images.then_some(named_children),
                looked_up: images,
                links,
                name: name.into(),
                page: 3,
                chunk: 3,
                max_copy,
                etag: if images {
                    EtagKind::Digest
                } else if opaque {
                    EtagKind::Opaque
                } else {
                    EtagKind::Md5
                },
                checksums: if images {
                    &[Algorithm::Sha256]
                } else if sums {
                    &[Algorithm::Md5, Algorithm::Crc64Nvme]
                } else {
                    &[]
                },
                ..default
            })
        };
        let source = store("source", options.opaque_source, options.source_sums, false);
        let sink = store("sink", options.opaque_sink, options.sink_sums, options.bare_sink);
        let sink = if options.inside.is_some() { sink.beside(&source) } else { sink };
        let violations = Violations::default();
        let keys = KeyMap::new("copy");
        let (at_source, map, found) = (source.clone(), keys.clone(), Arc::clone(&violations));
        let weather = Weather::new(Arc::clone(&env), options.faults).with_delete_watch(Box::new(move |key, told_absent| {
            let Some(key) = map.to_source(key) else { return };
            if at_source.get(&key).is_some() && !told_absent(&key) {
                found.lock().unwrap().push(format!("I5: {key:?} is deleted without a look at the source, which holds it"));
            }
        }));
        let world = Self {
            weather: Arc::new(weather),
            fabric,
            source,
            sink,
            queue: Arc::new(MemoryQueue::new()),
            state: Arc::new(MemoryState::new()),
            history: History::default(),
            violations,
            regressions: Arc::default(),
            emptied: Arc::default(),
            events: std::sync::atomic::AtomicUsize::default(),
            keys,
            env,
            options,
        };
        if std::env::var_os("DTH_SHOW").is_some() {
            world.weather.keep_log();
        }
        let o = &world.options;
        let notes = [
            (o.opaque_source || o.opaque_sink, "opaque etags"),
            (o.bare_sink, "sink without parts"),
            (o.calm, "calm"),
            (o.only_versions(), "nothing but versions"),
            (o.filled, "destination filled before"),
            (o.hot, "few keys, all the time"),
            (o.unpinned, "reads not pinned"),
            (o.inside.is_some(), "copies inside the store"),
            (o.giants.is_some(), "giants"),
            (o.images, "images"),
        ];
        notes.iter().filter(|(is, _)| *is).for_each(|(_, text)| world.weather.note(text));
        world
    }

    pub(crate) fn chance(&self, bound: u64) -> u64 {
        random_below(&*self.env, bound)
    }

    fn names(&self) -> &'static [&'static str] {
        if self.options.hot { &["a", "big"] } else { &KEYS }
    }

    fn key(&self) -> ObjectKey {
        let names = self.names();
        format!("t/{}", names[self.chance(names.len() as u64) as usize]).into()
    }

    fn size(&self) -> usize {
        SIZES[self.chance(SIZES.len() as u64) as usize]
    }

    pub(crate) fn write_source(&self, key: &ObjectKey, size: usize) {
        let body = self.random_bytes(size);
        self.write_bytes(key, if self.options.images { self.image(&body) } else { body });
    }

    fn random_bytes(&self, size: usize) -> Vec<u8> {
        let mut body = vec![0; size];
        for chunk in body.chunks_mut(8) {
            chunk.copy_from_slice(&self.env.random().to_le_bytes()[..chunk.len()]);
        }
        body
    }

    /// The bytes of a root, with its children at the source: layers, some of them in a manifest between; some that others share.
    fn image(&self, body: &[u8]) -> Vec<u8> {
        let layer = || {
            let bytes = if self.chance(2) == 0 { vec![self.chance(3) as u8; 20] } else { self.random_bytes(self.size()) };
            self.child(bytes)
        };
        let mut names: Vec<String> = (0..self.chance(3)).map(|_| layer()).collect();
        if self.chance(3) == 0 {
            names.push(self.child(layer().into_bytes()));
        }
        let unique = body.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        names.push(format!("#{unique}"));
        names.join("\n").into_bytes()
    }

    /// Some content, under one of the keys that it may have.
    fn child(&self, body: Vec<u8>) -> String {
        let sum = Checksum::of(Algorithm::Sha256, &[body.clone().into()]).to_hex();
        let key = ObjectKey::from(format!("c{}/{}", self.chance(2), &sum[..16]));
        if self.source.get(&key).is_none() {
            let etag = self.source.insert(key.clone(), body.clone());
            self.history.lock().unwrap().entry(key.clone()).or_default().push((body, etag));
        }
        key.as_str().to_owned()
    }

    pub(crate) fn write_bytes(&self, key: &ObjectKey, body: Vec<u8>) {
        let size = body.len();
        // A plain MD5 etag cannot be checked over ranges: where nothing else is offered, `transport only` is the promise.
        let images = self.options.images;
        let must = !images && size > if self.options.sink_sums { 24 } else { 8 } && !self.options.source_sums;
        let etag = if must || (!images && size > 8 && self.chance(2) == 0) {
            self.weather.note("multipart source");
            let part = [5, 8, 9][self.chance(3) as usize];
            self.source.insert_parts(key.clone(), body.clone(), part)
        } else {
            self.source.insert(key.clone(), body.clone())
        };
        self.weather.tell(|| format!("source: {key} is now {etag}, {size} bytes"));
        self.history.lock().unwrap().entry(key.clone()).or_default().push((body, etag));
    }

    /// As another tool, or an earlier run, left it.
    fn fill_destination(&self) {
        for key in self.names() {
            let key: ObjectKey = format!("t/{key}").into();
            match self.chance(4) {
                // Extra, or an old version.
                0 => {
                    self.write_source(&key, self.size());
                    let old = self.source.get(&key).unwrap();
                    self.sink.insert(self.keys.to_destination(&key), old.body.clone());
                    self.source.remove(&key);
                    if self.chance(2) == 0 {
                        self.write_source(&key, if self.chance(2) == 0 { old.body.len() } else { self.size() });
                    }
                }
                1 => {
                    if let Some(now) = self.source.get(&key) {
                        let there = self.keys.to_destination(&key);
                        if self.chance(2) == 0 {
                            self.sink.insert(there, now.body.clone());
                        } else {
                            self.sink.insert_parts(there, now.body.clone(), 5);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    pub(crate) fn violation(&self, text: String) {
        self.violations.lock().unwrap().push(text);
    }

    pub(crate) fn worker(&self, actor: u32, delay: Duration) -> TaskScope {
        let weather = || Arc::clone(&self.weather);
        let small = AdaptiveSettings { start: 3, max: 8 };
        let settings = WorkerSettings {
            packs: 2,
            jobs_per_pack: 3,
            commit_batch: 2,
            max_attempts: 60,
            max_delay_seconds: 20,
            events: EventSettings { deletes: true, bucket: None },
            giant_threshold: self.options.giants.unwrap_or(0),
            giant_parts: 2,
            transfer: TransferSettings {
                hold_max: 8,
                stream_min: 6,
                single_max: 24,
                part_size: 8,
                parts_in_flight: 3,
                memory: MEMORY,
                retry: RetryPolicy { tries: 3, base_ms: 100, cap_ms: 5_000 },
                source_concurrency: small,
                sink_concurrency: small,
                ..TransferSettings::default()
            },
            ..WorkerSettings::default()
        };
        let worker = Worker::builder(
            Arc::new(Chaos::new(self.fabric.source(&self.source), weather(), actor)),
            Arc::new(Chaos::new(self.fabric.sink(&self.sink), weather(), actor)),
            Arc::new(Chaos::new(Arc::clone(&self.queue), weather(), actor)),
            Arc::new(Chaos::new(Arc::clone(&self.state), weather(), actor)),
        )
        .with_env(Arc::clone(&self.env))
        .with_keys(self.keys.clone())
        .with_settings(settings)
        .with_selection(Self::selection())
        .build()
        .unwrap();
        let mut scope = TaskScope::new();
        scope.spawn(async move {
            sleep(delay).await;
            worker.run(CancellationToken::new()).await;
        });
        scope
    }

    fn finder(&self) -> Finder {
        Finder::builder(
            Arc::new(Chaos::new(self.fabric.source(&self.source), Arc::clone(&self.weather), FINDER)),
            Arc::new(Chaos::new(self.fabric.sink(&self.sink), Arc::clone(&self.weather), FINDER)),
            Arc::new(Chaos::new(Arc::clone(&self.queue), Arc::clone(&self.weather), FINDER)),
            Arc::new(Chaos::new(Arc::clone(&self.state), Arc::clone(&self.weather), FINDER)),
        )
        .with_env(Arc::clone(&self.env))
        .with_keys(self.keys.clone())
        .with_settings(FinderSettings {
            shards: 3,
            split_after_pages: 1,
            pack_jobs: 4,
            delete_extra: true,
            retry: RetryPolicy { tries: 6, base_ms: 100, cap_ms: 5_000 },
            ..Self::selection()
        })
        .build()
        .unwrap()
    }

    /// What is the task's.
    fn selection() -> FinderSettings {
        FinderSettings { prefix: "t/".into(), ..FinderSettings::default() }
    }

    /// A run whose finder may die on the way and is started again.
    pub(crate) async fn find(&self, crashes: u64) -> RunId {
        let id = loop {
            let finder = self.finder();
            tokio::select! {
                biased;
                started = finder.start() => match started {
                    Ok(id) => break id,
                    Err(_) => sleep(Duration::from_secs(1)).await,
                },
                () = self.finder_died() => {}
            }
        };
        for left in (0..1000).rev() {
            let finder = self.finder();
            let stop = CancellationToken::new();
            let life = if left > 0 && self.chance(1000) < crashes { self.chance(2_000) } else { 3_600_000 };
            let life = async {
                tokio::select! { () = sleep(Duration::from_millis(life)) => {}, () = self.finder_died() => {} }
            };
            tokio::select! {
                biased;
                found = finder.resume(&id, &stop) => match found {
                    Ok(run) if run.state != RunState::Finding => return id,
                    Ok(_) => unreachable!("nobody stopped it"),
                    Err(_) => sleep(Duration::from_secs(1)).await,
                },
                () = life => self.weather.note("finder crash"),
            }
        }
        unreachable!("the last finder lives")
    }

    /// Waits until a script strikes the finder dead.
    async fn finder_died(&self) {
        self.weather.death_among(FINDER..FINDER + 1).await;
    }

    /// Puts a new worker in the place of each that a script strikes dead.
    pub(crate) async fn keep_alive(&self, workers: &Mutex<Vec<TaskScope>>) {
        loop {
            let actor = self.weather.death_among(0..WORKERS).await;
            self.weather.note("worker crash");
            workers.lock().unwrap()[actor as usize] = self.worker(actor, Duration::from_secs(1));
        }
    }

    async fn drain(&self) {
        let begun = Instant::now();
        while self.queue.depth().await.unwrap().pending() > 0 {
            sleep(Duration::from_secs(5)).await;
            if begun.elapsed() > Duration::from_secs(7200) {
                self.violation(format!("I10: the queue did not drain: {:?}", self.queue.depth().await));
                return;
            }
        }
    }

    /// Tells of what just happened to a key, in one of the forms that are known; events overtake each other.
    pub(crate) async fn event(&self, key: &ObjectKey) {
        let number = self.events.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let deleted = self.source.get(key).is_none();
        let sequencer = format!("{:012X}", 0x00AB_0000_0000 + number);
        let body = if number.is_multiple_of(2) {
            let event = if deleted { "delete" } else { "create" };
            serde_json::json!({ "key": key.as_str(), "size": 1, "sequencer": sequencer, "event": event })
        } else {
            let name = if deleted { "ObjectRemoved:Delete" } else { "ObjectCreated:Put" };
            let encoded = key.as_str().bytes().fold(String::new(), |text, b| format!("{text}%{b:02x}"));
            let object = serde_json::json!({ "key": encoded, "size": 1, "sequencer": sequencer });
            serde_json::json!({ "Records": [{ "eventName": name, "s3": { "bucket": { "name": "b" }, "object": object } }] })
        };
        let late = Duration::from_millis(if number.is_multiple_of(3) { self.chance(40_000) } else { 0 });
        self.queue.send(&[Message { body: body.to_string(), delay: late }]).await.unwrap().pop().unwrap().unwrap();
    }

    fn differing(&self) -> Vec<ObjectKey> {
        let (source, sink) = (self.source.snapshot(), self.sink.snapshot());
        let mut differing: Vec<_> = source
            .iter()
            .filter(|(key, _)| key.as_str().starts_with("t/"))
            .filter(|(key, object)| sink.get(&self.keys.to_destination(key)).is_none_or(|d| d.body != object.body))
            .map(|(key, _)| key.clone())
            .collect();
        differing.extend(sink.keys().filter_map(|k| self.keys.to_source(k)).filter(|k| !source.contains_key(k)));
        differing
    }

    /// A late deletion cannot tell an empty object from the one that it was meant for: their etags are equal.
    fn may_be_deleted_late(&self, key: &ObjectKey) -> bool {
        let empty = self.source.get(key).is_some_and(|object| object.body.is_empty());
        empty && self.emptied.lock().unwrap().contains(key) && self.weather.injected().contains_key("late effect")
    }

    pub(crate) async fn poison(&self) {
        for body in POISON {
            self.queue.send(&[Message { body: body.into(), delay: Duration::ZERO }]).await.unwrap().pop().unwrap().unwrap();
        }
    }

    /// It heals; what the queue accepted must be done by the workers alone, or be dead. Then one more pass, and all is equal.
    pub(crate) async fn heal_and_judge(&self, silent: &BTreeSet<ObjectKey>, poisoned: bool) -> Vec<String> {
        // A frozen caller's slow call, given up, has taken effect by now: nothing could tell it from a new one where a sink
        // has no conditions.
        sleep(Duration::from_secs(310)).await;
        self.weather.set(Faults::default());
        self.fabric.heal();
        self.drain().await;
        for key in self.differing() {
            // Without conditional writes a late one of a dead worker can bring an older version back until the next run.
            // And a late one on condition that nothing is there brings a deleted object back anywhere: no store tells that absence
            // from the first one.
            let came_back = self.source.get(&key).is_none() && self.weather.injected().contains_key("late effect");
            if !self.options.bare_sink && !silent.contains(&key) && !came_back && !self.may_be_deleted_late(&key) {
                self.violation(format!("I6: lost before the finder's pass: {key:?}"));
            }
        }
        let run = self.find(0).await;
        self.drain().await;
        for key in self.differing() {
            let record = self.state.records(std::slice::from_ref(&key)).await.unwrap();
            let (there, here) = (self.sink.get(&self.keys.to_destination(&key)), self.source.get(&key));
            self.violation(format!("I6: differs at the end: {key:?}: {here:?} / {there:?} / {record:?}"));
        }
        self.judge(&run, poisoned).await;
        // Without conditional writes a late one can land; the pass above must have mended it.
        if *self.regressions.lock().unwrap() > 0 && !self.options.bare_sink {
            self.violation("I2: an older version replaced a newer one".into());
        }
        for (actor, most) in self.weather.most_held() {
            if most > self.fabric.may_hold() {
                self.violation(format!("I3: worker {actor} held {most} bytes of objects, of {} allowed", self.fabric.may_hold()));
            }
        }
        if self.options.calm && self.weather.injected().contains_key("two workers on one message") {
            self.violation("I4: two live workers on one message, and nothing had failed".into());
        }
        self.violations.lock().unwrap().clone()
    }

    /// I1, I2 and I5, at every instant at which something changes.
    pub(crate) fn watch(&self) {
        let (history, violations, count) = (Arc::clone(&self.history), Arc::clone(&self.violations), Arc::clone(&self.regressions));
        // What stood at each key, one after the other, with its place in the history of the source.
        let stood: Mutex<BTreeMap<ObjectKey, Vec<(usize, ETag)>>> = Mutex::default();
        let (keys, source, conditional) = (self.keys.clone(), self.source.clone(), !self.options.bare_sink);
        let (weather, emptied) = (Arc::clone(&self.weather), Arc::clone(&self.emptied));
        let landed: Mutex<BTreeSet<ObjectKey>> = Mutex::default();
        let images = self.options.images;
        self.sink.watch(Box::new(move |key, change| {
            weather.tell(|| match change {
                Change::Published(object) => format!("destination: {key} is now {}", object.etag),
                Change::Removed(_) => format!("destination: {key} is removed"),
            });
            let Some(source_key) = keys.to_source(key) else { return };
            match change {
                Change::Removed(object) if object.body.is_empty() => emptied.lock().unwrap().insert(source_key.clone()),
                _ => emptied.lock().unwrap().remove(&source_key),
            };
            let object = match change {
                Change::Published(object) => object,
                Change::Removed(object) => {
                    // A late write on condition that nothing is there can bring an old version back after a deletion: no store
                    // tells that absence from the first one. It replaces nothing, and the next pass mends it.
                    stood.lock().unwrap().remove(key);
                    let current = source.get(&source_key).is_some_and(|s| s.body == object.body && !s.body.is_empty());
                    if current && conditional {
                        violations.lock().unwrap().push(format!("I5: the very version of {key:?} was deleted that the source holds"));
                    }
                    return;
                }
            };
            if images {
                let mut landed = landed.lock().unwrap();
                landed.insert(source_key.clone());
                for child in named_children(&object.body).into_iter().filter(|child| !landed.contains(child)) {
                    violations.lock().unwrap().push(format!("I11: {key:?} is published before its child {child:?}"));
                }
            }
            let history = history.lock().unwrap();
            let versions = history.get(&source_key);
            match versions.and_then(|v| v.iter().rposition(|(body, _)| *body == object.body)) {
                None => violations.lock().unwrap().push(format!("I1: torn or corrupt object visible at {key:?}")),
                Some(index) => {
                    let mut stood = stood.lock().unwrap();
                    let stood = stood.entry(key.clone()).or_default();
                    if let Some((last, etag)) = stood.last().cloned() {
                        // Where equal bytes have equal etags, a condition cannot tell their second coming from the first.
                        let apart = stood.iter().rev().skip_while(|(_, e)| *e == etag).any(|(_, e)| *e == etag);
                        let again = apart || stood.iter().any(|(index, e)| *e == etag && *index != last);
                        if index < last && !again {
                            *count.lock().unwrap() += 1;
                        }
                    }
                    stood.push((index, object.etag.clone()));
                }
            }
        }));
    }

    /// What must hold when all is quiet.
    async fn judge(&self, run: &RunId, poisoned: bool) {
        let sweep_retry = RetryPolicy::default();
        let swept = sweep(&self.sink, &*self.state, &self.keys, "t/", Duration::ZERO, &*self.env, &sweep_retry).await.unwrap();
        if swept.aborted + swept.under_way > 0 && !self.state.may_have_begun_uploads().await.unwrap() {
            self.violation(format!("I7: nobody would have looked for {swept:?}"));
        }
        if !self.options.bare_sink {
            for upload in self.sink.list_uploads("", None).await.unwrap().0 {
                let key = self.keys.to_source(&upload.key).unwrap();
                let record = self.state.records(&[key]).await.unwrap();
                self.violation(format!("I7: {upload:?} left open: {swept:?}, {record:?}"));
            }
        }
        let dead = self.queue.dead_letters(None, 100).await.unwrap();
        let mut bodies: Vec<_> = dead.iter().map(|d| d.body.as_str()).collect();
        bodies.sort_unstable();
        let mut poison = if poisoned { POISON.to_vec() } else { Vec::new() };
        poison.sort_unstable();
        if bodies != poison {
            self.violation(format!("I8: dead letters are not the poison: {dead:?}"));
        }
        let run = self.state.run(run).await.unwrap();
        let t = &run.totals;
        let skipped: u64 = t.skipped.values().map(|t| t.objects).sum();
        if t.listed.objects != t.unchanged.objects + t.queued.objects + skipped || !run.is_settled() {
            self.violation(format!("the ledger does not close: {run:?}"));
        }
        let held = self.source.snapshot().keys().filter(|key| key.as_str().starts_with("t/")).count();
        if t.listed.objects != held as u64 {
            self.violation(format!("listed {} of {held}", t.listed.objects));
        }
        for earlier in self.state.runs(100).await.unwrap() {
            let t = &earlier.totals;
            let skipped: u64 = t.skipped.values().map(|t| t.objects).sum();
            let closes = t.listed.objects == t.unchanged.objects + t.queued.objects + skipped;
            // The id of a run whose start was answered by nothing was never known to anybody.
            let begun = earlier.state != RunState::Finding;
            if begun && (!earlier.is_settled() || !closes || t.listed.objects > 2 * KEYS.len() as u64) {
                self.violation(format!("the ledger of a run does not close: {earlier:?}"));
            }
        }
        for record in self.state.query(&RecordQuery::default(), 1000).await.unwrap() {
            if record.status != Status::Done {
                continue;
            }
            let there = self.sink.get(&self.keys.to_destination(&record.key));
            let source = record.source.clone().unwrap();
            let history = self.history.lock().unwrap();
            let version = history.get(&record.key).and_then(|v| v.iter().find(|(_, etag)| Some(etag) == source.etag.as_ref()));
            let true_record = match (&there, version) {
                (Some(there), Some((body, _))) => record.destination.as_ref() == Some(&there.etag) && *body == there.body,
                _ => false,
            };
            if !true_record && !self.may_be_deleted_late(&record.key) {
                self.violation(format!("I9: the record of {:?} says what is not so: {record:?} / {there:?}", record.key));
            }
        }
    }

    pub(crate) fn outcome(&self, violations: Vec<String>) -> Outcome {
        Outcome {
            violations,
            injected: self.weather.injected(),
            reached: take_reached(),
            trace: self.weather.trace(),
            options: self.options.clone(),
            log: self.weather.log(),
        }
    }
}

/// The general mix: everything at once, as the seed draws it.
pub(crate) async fn schedule(seed: u64, fabric: &dyn Fabric) -> Outcome {
    let env: SharedEnv = Arc::new(SeededEnv::new(seed));
    let mut options = Options::general(&*env, seed);
    fabric.adapt(&mut options);
    let world = World::new(env, options, fabric);
    world.watch();
    for key in world.names() {
        if world.chance(5) > 0 {
            world.write_source(&format!("t/{key}").into(), world.size());
        }
    }
    if world.options.filled {
        world.fill_destination();
    }
    world.poison().await;
    let mut workers: Vec<TaskScope> = (0..WORKERS).map(|i| world.worker(i, Duration::ZERO)).collect();
    let mut silent = BTreeSet::new();
    let crashes = if world.options.calm { 0 } else { 300 };
    let find = async {
        world.find(crashes).await;
        if world.options.hot {
            sleep(Duration::from_millis(world.chance(20_000))).await;
            world.find(crashes).await;
        }
    };
    tokio::join!(find, turmoil(&world, &mut workers, &mut silent));
    let violations = world.heal_and_judge(&silent, true).await;
    drop(workers);
    world.outcome(violations)
}

/// Crashes, freezes, overwrites, deletions.
async fn turmoil(world: &World<'_>, workers: &mut [TaskScope], silent: &mut BTreeSet<ObjectKey>) {
    let (steps, pause) = if world.options.hot { (20, 4_000) } else { (4 + world.chance(8), 8_000) };
    for _ in 0..steps {
        sleep(Duration::from_millis(world.chance(pause))).await;
        match world.chance(6) {
            0 if !world.options.calm => {
                let i = world.chance(u64::from(WORKERS)) as u32;
                world.weather.note("worker crash");
                workers[i as usize] = world.worker(i, Duration::from_millis(world.chance(5_000)));
            }
            1 if !world.options.calm => {
                let least = if world.options.hot { 60_000 } else { 0 };
                let time = Duration::from_millis(least + world.chance(120_000 - least));
                world.weather.freeze(world.chance(u64::from(WORKERS)) as u32, time);
            }
            2 => {
                let key = world.key();
                world.weather.note("delete");
                world.source.remove(&key);
                if world.chance(2) == 0 {
                    world.weather.note("deletion told");
                    world.event(&key).await;
                    silent.remove(&key);
                } else {
                    silent.insert(key);
                }
            }
            _ => {
                let key = world.key();
                let held = world.source.get(&key).map(|o| o.body.len());
                let same = world.source.get(&key).filter(|_| world.chance(8) == 0);
                if let Some(same) = same {
                    world.weather.note("the same bytes again");
                    world.write_bytes(&key, same.body.to_vec());
                } else {
                    let size = if world.chance(2) == 0 { held } else { None };
                    world.write_source(&key, size.unwrap_or_else(|| world.size()));
                }
                world.weather.note("overwrite");
                if world.chance(2) == 0 {
                    world.event(&key).await;
                    silent.remove(&key);
                } else {
                    world.weather.note("overwrite unseen");
                    silent.insert(key);
                }
            }
        }
    }
}
