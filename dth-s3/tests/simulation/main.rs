//! The second layer of the simulation: the whole engine, with the S3 client of this crate on both sides, real HTTP, signatures
//! and XML, over a network in memory to the `s3s` crate. The faults are those of the first layer, and connections that are cut
//! after some number of bytes in either direction. `DTH_S3_SEEDS`, `DTH_FROM`: how many schedules, from which seed on.

#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(clippy::print_stdout, reason = "the report of the run")]

mod front;
#[expect(dead_code, reason = "the first layer uses all of it")]
#[path = "../../../dth-core/tests/simulation/world.rs"]
mod world;

use async_trait::async_trait;
use dth_core::{
    env::{SeededEnv, SharedEnv, random_below},
    index::Index,
    memory::MemoryStore,
    object::EtagKind,
    scope::TaskScope,
    sink::Sink,
    source::Source,
};
use dth_s3::{Connector, CredentialsConfig, Encryption, Profile, S3Config, S3Store, Secret, Transport};
use front::Front;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};
use tokio::io::{AsyncReadExt, copy, duplex, split};
use world::{Fabric, Options, Outcome, schedule};

const KEYS: (&str, &str) = ("SIMULATED", "a-secret-of-the-simulation");

/// A network to one server. Connections may be cut in the middle.
struct Network {
    service: S3Service,
    env: SharedEnv,
    healed: Arc<AtomicBool>,
    cuts: Arc<AtomicU64>,
    tasks: Mutex<TaskScope>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Network")
    }
}

#[async_trait]
impl Connector for Network {
    async fn connect(&self, _: &str, _: u16) -> std::io::Result<Box<dyn Transport>> {
        let (client, near) = duplex(64 << 10);
        let (far, server) = duplex(64 << 10);
        let (limit_up, limit_down) = if !self.healed.load(Relaxed) && random_below(&*self.env, 4) == 0 {
            self.cuts.fetch_add(1, Relaxed);
            (random_below(&*self.env, 8_000), random_below(&*self.env, 4_000))
        } else {
            (u64::MAX, u64::MAX)
        };
        let service = self.service.clone();
        let mut tasks = self.tasks.lock().unwrap();
        tasks.spawn(async move {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(server), service).await;
        });
        tasks.spawn(async move {
            let ((near_read, mut near_write), (far_read, mut far_write)) = (split(near), split(far));
            let (mut up, mut down) = (near_read.take(limit_up), far_read.take(limit_down));
            tokio::select! {
                biased;
                _ = copy(&mut up, &mut far_write) => {}
                _ = copy(&mut down, &mut near_write) => {}
            }
        });
        Ok(Box::new(client))
    }
}

/// Both stores behind S3.
struct OverHttp {
    env: SharedEnv,
    healed: Arc<AtomicBool>,
    cuts: Arc<AtomicU64>,
}

impl OverHttp {
    fn store(&self, behind: &MemoryStore) -> S3Store {
        let mut service = S3ServiceBuilder::new(Front { store: behind.clone() });
        service.set_auth(s3s::auth::SimpleAuth::from_single(KEYS.0, KEYS.1));
        let network = Network {
            service: service.build(),
            env: Arc::clone(&self.env),
            healed: Arc::clone(&self.healed),
            cuts: Arc::clone(&self.cuts),
            tasks: Mutex::default(),
        };
        let opaque = behind.index_capability().etag == EtagKind::Opaque;
        let config = S3Config {
            bucket: "simulated".into(),
            region: "us-east-1".into(),
            endpoint: Some(format!("http://{}.simulated", behind.name())),
            credentials: CredentialsConfig::Static {
                access_key_id: KEYS.0.into(),
                secret_access_key: Secret::new(KEYS.1),
                session_token: None,
            },
            profile: Profile::Aws,
            encryption: if opaque { Encryption::Kms { key_id: None } } else { Encryption::None },
            min_part: Some(1),
            ..S3Config::default()
        };
        S3Store::with_connector(config, Arc::clone(&self.env), Arc::new(network)).unwrap()
    }
}

impl Fabric for OverHttp {
    fn source(&self, store: &MemoryStore) -> Arc<dyn Source> {
        Arc::new(self.store(store))
    }

    fn sink(&self, store: &MemoryStore) -> Arc<dyn Sink> {
        Arc::new(self.store(store))
    }

    fn adapt(&self, options: &mut Options) {
        // There is no S3 without parts, nor one that lets a wrong Content-MD5 pass.
        options.bare_sink = false;
        options.sink_sums = true;
        options.images = false;
    }

    fn heal(&self) {
        self.healed.store(true, Relaxed);
    }

    /// HTTP joins chunks: at this scale a buffer holds whole objects.
    fn may_hold(&self) -> u64 {
        u64::MAX
    }
}

fn run(seed: u64) -> (Outcome, u64) {
    let cuts = Arc::new(AtomicU64::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let env: SharedEnv = Arc::new(SeededEnv::new(seed ^ 0x5353));
    let fabric = OverHttp { env, healed: Arc::default(), cuts: Arc::clone(&cuts) };
    let outcome = runtime.block_on(schedule(seed, &fabric));
    (outcome, cuts.load(Relaxed))
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn invariants_hold_over_the_s3_protocol() {
    let (from, seeds) = (setting("DTH_FROM", 0), setting("DTH_S3_SEEDS", 2_000));
    let begun = tokio::time::Instant::now();
    let (next, calls, cuts) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let violations = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let index = next.fetch_add(1, Relaxed)
                    && index < seeds
                    && violations.lock().unwrap().len() < 3
                {
                    let (outcome, cut) = run(from + index);
                    calls.fetch_add(outcome.trace.1, Relaxed);
                    cuts.fetch_add(cut, Relaxed);
                    if !outcome.violations.is_empty() {
                        violations.lock().unwrap().push(format!(
                            "seed {} ({:?}):\n  {}\n{}",
                            from + index,
                            outcome.options,
                            outcome.violations.join("\n  "),
                            outcome.log.join("\n")
                        ));
                    }
                }
            });
        }
    });
    let violations = violations.into_inner().unwrap();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    let rate = seeds as f64 / begun.elapsed().as_secs_f64();
    let (calls, cuts) = (calls.into_inner(), cuts.into_inner());
    println!("{seeds} schedules over HTTP from {from}, {calls} calls, {cuts} connections cut, 0 violations, {rate:.0} schedules/s");
    assert!(seeds < 100 || cuts > seeds, "connections were hardly cut");
}
