//! One schedule: a world, its weather, what happens in it, and what must hold at the end.

use dth_core::{
    env::{Env, SeededEnv, SharedEnv, random_below},
    finder::{Finder, FinderSettings},
    key_map::KeyMap,
    limit::AdaptiveSettings,
    memory::{MemoryQueue, MemoryState, MemoryStore, MemoryStoreSettings},
    object::{ETag, EtagKind, ObjectKey},
    queue::{Message, Queue},
    retry::RetryPolicy,
    scope::TaskScope,
    sink::Sink,
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
pub(crate) const KINDS: [&str; 17] = [
    "error before",
    "answer lost",
    "late effect",
    "spike",
    "body truncated",
    "bit flipped",
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
];

const KEYS: [&str; 12] = ["a", "a/b", "ab", "big", "big.bak", "x/../y", "z//", "é\n%2F+", "é\u{301}", "lead", "q r", "🦀"];
const SIZES: [usize; 12] = [0, 1, 7, 8, 9, 16, 17, 24, 25, 31, 40, 64];
const POISON: [&str; 3] = ["{not json", r#"{"v":99}"#, r#"{"key":"outside/the/task"}"#];
const WORKERS: u32 = 3;
const FINDER: u32 = 9;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) faults: Faults,
    pub(crate) opaque_source: bool,
    pub(crate) opaque_sink: bool,
    pub(crate) checksums: bool,
    /// A sink like a directory: no parts, no conditions, no checksums of its own.
    pub(crate) bare_sink: bool,
}

pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) injected: BTreeMap<&'static str, u64>,
    pub(crate) trace: (u64, u64),
    pub(crate) options: Options,
}

type History = Arc<Mutex<BTreeMap<ObjectKey, Vec<(Vec<u8>, ETag)>>>>;
type Violations = Arc<Mutex<Vec<String>>>;

struct World {
    env: SharedEnv,
    weather: Arc<Weather>,
    source: MemoryStore,
    sink: MemoryStore,
    queue: Arc<MemoryQueue>,
    state: Arc<MemoryState>,
    history: History,
    violations: Violations,
    source_sums: bool,
    sink_sums: bool,
}

impl World {
    fn chance(&self, bound: u64) -> u64 {
        random_below(&*self.env, bound)
    }

    fn key(&self) -> ObjectKey {
        format!("t/{}", KEYS[self.chance(KEYS.len() as u64) as usize]).into()
    }

    fn write_source(&self, key: &ObjectKey, size: usize) {
        let mut body = vec![0; size];
        for chunk in body.chunks_mut(8) {
            chunk.copy_from_slice(&self.env.random().to_le_bytes()[..chunk.len()]);
        }
        // A plain MD5 etag cannot be checked over ranges: where nothing else is offered, `transport only` is the promise.
        let must = size > if self.sink_sums { 24 } else { 8 } && !self.source_sums;
        let etag = if must || (size > 8 && self.chance(2) == 0) {
            self.weather.note("multipart source");
            let part = [5, 8, 9][self.chance(3) as usize];
            self.source.insert_parts(key.clone(), body.clone(), part)
        } else {
            self.source.insert(key.clone(), body.clone())
        };
        self.history.lock().unwrap().entry(key.clone()).or_default().push((body, etag));
    }

    fn violation(&self, text: String) {
        self.violations.lock().unwrap().push(text);
    }

    fn worker(&self, actor: u32, delay: Duration) -> TaskScope {
        let sink: Arc<MemoryStore> = Arc::new(self.sink.clone());
        let source: Arc<MemoryStore> = Arc::new(self.source.clone());
        let weather = || Arc::clone(&self.weather);
        let small = AdaptiveSettings { start: 3, max: 8 };
        let settings = WorkerSettings {
            packs: 2,
            jobs_per_pack: 3,
            commit_batch: 2,
            max_attempts: 60,
            max_delay_seconds: 20,
            prefix: "t/".into(),
            transfer: TransferSettings {
                hold_max: 8,
                single_max: 24,
                part_size: 8,
                parts_in_flight: 3,
                retry: RetryPolicy { tries: 3, base_ms: 100, cap_ms: 5_000 },
                source_concurrency: small,
                sink_concurrency: small,
                ..TransferSettings::default()
            },
            ..WorkerSettings::default()
        };
        let worker = Worker::builder(
            Arc::new(Chaos::new(source, weather(), actor)),
            Arc::new(Chaos::new(sink, weather(), actor)),
            Arc::new(Chaos::new(Arc::clone(&self.queue), weather(), actor)),
            Arc::new(Chaos::new(Arc::clone(&self.state), weather(), actor)),
        )
        .with_env(Arc::clone(&self.env))
        .with_keys(KeyMap::new("copy"))
        .with_settings(settings)
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
        let source: Arc<MemoryStore> = Arc::new(self.source.clone());
        let sink: Arc<MemoryStore> = Arc::new(self.sink.clone());
        Finder::builder(
            Arc::new(Chaos::new(source, Arc::clone(&self.weather), FINDER)),
            Arc::new(Chaos::new(sink, Arc::clone(&self.weather), FINDER)),
            Arc::new(Chaos::new(Arc::clone(&self.queue), Arc::clone(&self.weather), FINDER)),
            Arc::new(Chaos::new(Arc::clone(&self.state), Arc::clone(&self.weather), FINDER)),
        )
        .with_env(Arc::clone(&self.env))
        .with_keys(KeyMap::new("copy"))
        .with_settings(FinderSettings {
            prefix: "t/".into(),
            shards: 3,
            split_after_pages: 1,
            pack_jobs: 4,
            delete_extra: true,
            retry: RetryPolicy { tries: 6, base_ms: 100, cap_ms: 5_000 },
            ..FinderSettings::default()
        })
        .build()
        .unwrap()
    }

    /// A run whose finder may die on the way and is started again.
    async fn find(&self, crashes: u64) -> RunId {
        let id = loop {
            match self.finder().start().await {
                Ok(id) => break id,
                Err(_) => sleep(Duration::from_secs(1)).await,
            }
        };
        for left in (0..1000).rev() {
            let finder = self.finder();
            let stop = CancellationToken::new();
            let life = if left > 0 && self.chance(1000) < crashes { self.chance(2_000) } else { 3_600_000 };
            match tokio::time::timeout(Duration::from_millis(life), finder.resume(&id, &stop)).await {
                Ok(Ok(run)) if run.state != RunState::Finding => return id,
                Ok(Ok(_)) => unreachable!("nobody stopped it"),
                Ok(Err(_)) => sleep(Duration::from_secs(1)).await,
                Err(_) => self.weather.note("finder crash"),
            }
        }
        unreachable!("the last finder lives")
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

    /// Sends an event as the original system's bridge functions do.
    async fn event(&self, key: &ObjectKey) {
        let body = serde_json::json!({ "key": key.as_str(), "size": 1 }).to_string();
        self.queue.send(&[Message { body, delay: Duration::ZERO }]).await.unwrap().pop().unwrap().unwrap();
    }

    fn differing(&self) -> Vec<ObjectKey> {
        let (source, sink) = (self.source.snapshot(), self.sink.snapshot());
        let keys = KeyMap::new("copy");
        let mut differing: Vec<_> = source
            .iter()
            .filter(|(key, object)| sink.get(&keys.to_destination(key)).is_none_or(|d| d.body != object.body))
            .map(|(key, _)| key.clone())
            .collect();
        differing.extend(sink.keys().filter_map(|k| keys.to_source(k)).filter(|k| !source.contains_key(k)));
        differing
    }
}

fn options(env: &dyn Env, seed: u64) -> Options {
    let pick = |most: u64| if random_below(env, 2) == 0 { random_below(env, most + 1) } else { 0 };
    Options {
        faults: Faults {
            before: pick(150),
            after: pick(80),
            late: pick(30),
            spike: pick(20),
            truncate: pick(50),
            flip: pick(30),
            entry: pick(200),
            duplicate: pick(100),
            latency: if random_below(env, 4) == 0 { 8_000 } else { 40 },
        },
        opaque_source: random_below(env, 4) == 0,
        opaque_sink: random_below(env, 4) == 0,
        checksums: random_below(env, 3) > 0,
        // By the seed alone: a draw here would change every schedule that was ever found.
        bare_sink: seed % 8 == 3,
    }
}

pub(crate) async fn schedule(seed: u64) -> Outcome {
    let env: SharedEnv = Arc::new(SeededEnv::new(seed));
    let options = options(&*env, seed);
    let store = |name: &str, opaque, sums, bare: bool| {
        let default = MemoryStoreSettings::default();
        MemoryStore::new(MemoryStoreSettings {
            conditions: !bare,
            multipart: default.multipart.filter(|_| !bare),
            name: name.into(),
            page: 3,
            chunk: 3,
            etag: if opaque { EtagKind::Opaque } else { EtagKind::Md5 },
            checksums: if sums { default.checksums } else { &[] },
            ..default
        })
    };
    // A source whose etags say nothing must offer a checksum, or flipped bits cannot be seen by anybody.
    let source_sums = options.checksums || options.opaque_source;
    let world = World {
        weather: Arc::new(Weather::new(Arc::clone(&env), options.faults)),
        source: store("source", options.opaque_source, source_sums, false),
        sink: if options.bare_sink {
            store("sink", true, false, true)
        } else {
            store("sink", options.opaque_sink, options.checksums || options.opaque_sink, false)
        },
        queue: Arc::new(MemoryQueue::new()),
        state: Arc::new(MemoryState::new()),
        history: History::default(),
        violations: Violations::default(),
        source_sums,
        sink_sums: (options.checksums || options.opaque_sink) && !options.bare_sink,
        env,
    };
    if options.opaque_source || options.opaque_sink {
        world.weather.note("opaque etags");
    }
    if options.bare_sink {
        world.weather.note("sink without parts");
    }
    let regressions = watch(&world);

    for key in KEYS {
        if world.chance(5) > 0 {
            world.write_source(&format!("t/{key}").into(), SIZES[world.chance(SIZES.len() as u64) as usize]);
        }
    }
    for body in POISON {
        world.queue.send(&[Message { body: body.into(), delay: Duration::ZERO }]).await.unwrap().pop().unwrap().unwrap();
    }

    // Bad weather.
    let mut workers: Vec<TaskScope> = (0..WORKERS).map(|i| world.worker(i, Duration::ZERO)).collect();
    let mut silent = BTreeSet::new();
    let turmoil = turmoil(&world, &mut workers, &mut silent);
    let (_, ()) = tokio::join!(world.find(300), turmoil);

    // It heals; what the queue accepted must be done by the workers alone, or be dead.
    sleep(Duration::from_secs(130)).await;
    world.weather.set(Faults::default());
    world.drain().await;
    for key in world.differing() {
        // A deleted source object has no event here; its copy goes with the next run. Without conditional writes a late one of
        // a dead worker can bring an older version back until then.
        if !options.bare_sink && !silent.contains(&key) && world.source.get(&key).is_some() {
            world.violation(format!("I6: lost before the finder's pass: {key:?}"));
        }
    }

    // One more pass, and everything is equal.
    let run = world.find(0).await;
    world.drain().await;
    for key in world.differing() {
        let record = world.state.records(std::slice::from_ref(&key)).await.unwrap();
        let (there, here) = (world.sink.get(&KeyMap::new("copy").to_destination(&key)), world.source.get(&key));
        let run = world.state.run(&run).await;
        world.violation(format!("I6: differs at the end: {key:?}: {here:?} / {there:?} / {record:?} / {run:?}"));
    }
    judge(&world, &run).await;
    drop(workers);
    // Without conditional writes a late one can land; the pass above must have mended it.
    if *regressions.lock().unwrap() > 0 && !options.bare_sink {
        world.violation("I2: an older version replaced a newer one".into());
    }
    let violations = world.violations.lock().unwrap().clone();
    Outcome { violations, injected: world.weather.injected(), trace: world.weather.trace(), options }
}

/// I1 and I2, at every instant at which something becomes visible.
fn watch(world: &World) -> Arc<Mutex<u64>> {
    let regressions = Arc::new(Mutex::new(0));
    let (history, violations, count) = (Arc::clone(&world.history), Arc::clone(&world.violations), Arc::clone(&regressions));
    let newest: Mutex<BTreeMap<ObjectKey, usize>> = Mutex::default();
    let keys = KeyMap::new("copy");
    world.sink.watch(Box::new(move |key, object| {
        let history = history.lock().unwrap();
        let versions = keys.to_source(key).and_then(|k| history.get(&k));
        match versions.and_then(|v| v.iter().rposition(|(body, _)| *body == object.body)) {
            None => violations.lock().unwrap().push(format!("I1: torn or corrupt object visible at {key:?}")),
            Some(index) => {
                let mut newest = newest.lock().unwrap();
                let last = newest.entry(key.clone()).or_insert(index);
                if index < *last {
                    *count.lock().unwrap() += 1;
                }
                *last = index;
            }
        }
    }));
    regressions
}

/// Crashes, freezes, overwrites, deletions.
async fn turmoil(world: &World, workers: &mut [TaskScope], silent: &mut BTreeSet<ObjectKey>) {
    for _ in 0..4 + world.chance(8) {
        sleep(Duration::from_millis(world.chance(8_000))).await;
        match world.chance(6) {
            0 => {
                let i = world.chance(u64::from(WORKERS)) as u32;
                world.weather.note("worker crash");
                workers[i as usize] = world.worker(i, Duration::from_millis(world.chance(5_000)));
            }
            1 => {
                let time = Duration::from_millis(world.chance(120_000));
                world.weather.freeze(world.chance(u64::from(WORKERS)) as u32, time);
            }
            2 => {
                let key = world.key();
                world.weather.note("delete");
                world.source.remove(&key);
            }
            _ => {
                let key = world.key();
                let held = world.source.get(&key).map(|o| o.body.len());
                let size = if world.chance(2) == 0 { held } else { None };
                world.write_source(&key, size.unwrap_or(SIZES[world.chance(SIZES.len() as u64) as usize]));
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

/// What must hold when all is quiet.
async fn judge(world: &World, run: &RunId) {
    let keys = KeyMap::new("copy");
    let sweep_retry = RetryPolicy::default();
    let swept = sweep(&world.sink, &*world.state, &keys, "t/", Duration::ZERO, &*world.env, &sweep_retry).await.unwrap();
    for upload in world.sink.list_uploads("", None).await.unwrap().0 {
        let key = keys.to_source(&upload.key).unwrap();
        let record = world.state.records(&[key]).await.unwrap();
        world.violation(format!("I7: {upload:?} left open: {swept:?}, {record:?}"));
    }
    let dead = world.queue.dead_letters(None, 100).await.unwrap();
    let mut bodies: Vec<_> = dead.iter().map(|d| d.body.as_str()).collect();
    bodies.sort_unstable();
    let mut poison = POISON;
    poison.sort_unstable();
    if bodies != poison {
        world.violation(format!("I8: dead letters are not the poison: {dead:?}"));
    }
    let run = world.state.run(run).await.unwrap();
    let t = &run.totals;
    let skipped: u64 = t.skipped.values().map(|t| t.objects).sum();
    if t.listed.objects != t.unchanged.objects + t.queued.objects + skipped || !run.is_settled() {
        world.violation(format!("the ledger does not close: {run:?}"));
    }
    if t.listed.objects != world.source.snapshot().len() as u64 {
        world.violation(format!("listed {} of {}", t.listed.objects, world.source.snapshot().len()));
    }
    for record in world.state.query(&RecordQuery::default(), 1000).await.unwrap() {
        if record.status != Status::Done {
            continue;
        }
        let there = world.sink.get(&keys.to_destination(&record.key));
        let source = record.source.clone().unwrap();
        let history = world.history.lock().unwrap();
        let version = history.get(&record.key).and_then(|v| v.iter().find(|(_, etag)| Some(etag) == source.etag.as_ref()));
        let true_record = match (&there, version) {
            (Some(there), Some((body, _))) => record.destination.as_ref() == Some(&there.etag) && *body == there.body,
            _ => false,
        };
        if !true_record {
            world.violation(format!("I9: the record of {:?} says what is not so: {record:?} / {there:?}", record.key));
        }
    }
}
