//! Q3: finder and workers as processes, killed with -9 and frozen at random moments, servers killed and started again; then
//! referees, which must go red in their negative controls.
//!
//! `cargo xtask test` runs a small one; `cargo xtask chaos` larger ones, by the environment below.

use crate::support::{Pair, pair, venv};
use dth_core::{
    env::{Env, SeededEnv, SystemEnv, random_below},
    queue::Queue,
    report::Report,
    sink::{Body, PutOptions, Sink},
    state::{RecordQuery, StateStore, Status},
};
use dth_examples::servers::Server;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// What to do, from `DTH_CHAOS_*`.
struct Plan {
    objects: usize,
    large_mib: usize,
    kills: u32,
    /// Goes on with kills until this time has passed.
    minutes: u64,
    to: String,
    seed: u64,
    /// Slows the workers down, so that there is something to be killed.
    requests_per_second: Option<u64>,
}

impl Plan {
    fn from_environment() -> Self {
        let number = |name: &str, default| {
            std::env::var(format!("DTH_CHAOS_{name}")).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}: `{v}`")))
        };
        Self {
            objects: number("OBJECTS", 3000) as usize,
            large_mib: number("LARGE_MIB", 16) as usize,
            kills: number("KILLS", 100) as u32,
            minutes: number("MINUTES", 0),
            to: std::env::var("DTH_CHAOS_TO").unwrap_or_else(|_| "ministack".into()),
            seed: number("SEED", SystemEnv.random() % 1_000_000),
            requests_per_second: Some(number("REQUESTS_PER_SECOND", 120)).filter(|n| *n > 0),
        }
    }
}

pub(crate) struct Processes {
    config: PathBuf,
    keys: Vec<(String, String)>,
    running: Vec<(&'static str, Child)>,
}

impl Processes {
    pub(crate) fn new(config: &Path, keys: Vec<(String, String)>, binaries: &[&'static str]) -> Self {
        let mut all = Self { config: config.to_owned(), keys, running: Vec::new() };
        for binary in binaries {
            let child = all.start(binary);
            all.running.push((binary, child));
        }
        all
    }

    /// Starts a program by its name and arguments.
    fn start(&self, line: &str) -> Child {
        let (binary, arguments) = line.split_once(' ').unwrap_or((line, ""));
        let path = match binary {
            "finder" => env!("CARGO_BIN_EXE_finder"),
            _ => env!("CARGO_BIN_EXE_worker"),
        };
        let mut command = Command::new(path);
        command.arg("--config").arg(&self.config).args(arguments.split_whitespace()).envs(self.keys.iter().cloned());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Whether a program has ended, and if so, whether well.
    pub(crate) fn ended(&mut self, i: usize) -> Option<bool> {
        self.running[i].1.try_wait().unwrap().map(|status| status.success())
    }

    pub(crate) fn kill(&mut self, i: usize) {
        let binary = self.running[i].0;
        let _ = self.running[i].1.kill();
        let _ = self.running[i].1.wait();
        self.running[i].1 = self.start(binary);
    }

    fn signal(&self, i: usize, signal: &str) {
        let _ = Command::new("kill").arg(signal).arg(self.running[i].1.id().to_string()).status();
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the referee says.
#[derive(Debug, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) compared: usize,
    missing: Vec<String>,
    extra: Vec<String>,
    different: Vec<String>,
    uploads: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_green(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.different.is_empty() && self.uploads.is_empty()
    }
}

fn script(name: &str, pair: &Pair, arguments: &[String]) -> String {
    let mut command = Command::new(venv().join("bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(name)).args(arguments);
    for (side, server) in [("SOURCE", pair.source_server()), ("DESTINATION", pair.sink_server())] {
        let (key, secret) = server.keys();
        command.env(format!("{side}_ENDPOINT"), &server.endpoint).env(format!("{side}_KEY"), key).env(format!("{side}_SECRET"), secret);
    }
    let out = command.output().unwrap();
    assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

pub(crate) fn referee(pair: &Pair) -> Verdict {
    serde_json::from_str(&script("referee.py", pair, &[])).unwrap()
}

/// A second referee, of another make. It cannot name every key that S3 can (`//`, `..`, control characters), so that it sees
/// the tame ones only.
fn rclone(pair: &Pair) -> Result<(), String> {
    let mut command = Command::new(venv().join("bin/rclone"));
    for (side, server) in [("FROM", pair.source_server()), ("TO", pair.sink_server())] {
        let (key, secret) = server.keys();
        let settings = [("TYPE", "s3"), ("PROVIDER", "Other"), ("ENDPOINT", &server.endpoint), ("ACCESS_KEY_ID", key)];
        let more = [("SECRET_ACCESS_KEY", secret), ("FORCE_PATH_STYLE", "true"), ("REGION", "us-east-1")];
        for (name, value) in settings.into_iter().chain(more) {
            command.env(format!("RCLONE_CONFIG_{side}_{name}"), value);
        }
    }
    command.args([
        "check",
        "--download",
        "--config",
        "/dev/null",
        "--include",
        "/d[0-9][0-9]/**",
        "--include",
        "/size/**",
        "--include",
        "/big/**",
    ]);
    let out = command.args(["from:source", "to:destination"]).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() { Ok(()) } else { Err(told.chars().take(3000).collect()) }
}

/// Requests to the destination by method and kind, and plain PUTs that succeeded by key, from a server that keeps a log.
fn requests(log: &str, from: usize) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
    let (mut kinds, mut puts) = (BTreeMap::new(), BTreeMap::new());
    for line in log.get(from..).unwrap_or_default().lines() {
        let Some((request, rest)) = line.split_once(" HTTP/1.1\" ").and_then(|(head, rest)| Some((head.rsplit_once('"')?.1, rest))) else {
            continue;
        };
        let Some((method, path)) = request.split_once(' ') else { continue };
        let Some(path) = path.strip_prefix("/destination") else { continue };
        let status = &rest[..3.min(rest.len())];
        let (key, query) = path.split_once('?').unwrap_or((path, ""));
        let kind = match key {
            "" | "/" if query.contains("list-type") => "LIST".to_owned(),
            "" | "/" if query.contains("uploads") => "LIST uploads".to_owned(),
            _ => format!("{method}{}", if query.is_empty() { "" } else { " part or upload" }),
        };
        if method == "PUT" && query.is_empty() && status == "200" {
            *puts.entry(key.to_owned()).or_default() += 1;
        }
        *kinds.entry(format!("{kind} {status}")).or_default() += 1;
    }
    (kinds, puts)
}

/// Puts the key pairs into the environment of processes, not into files; answers what to set.
pub(crate) fn keys_by_environment(pair: &mut Pair) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    let pairs = pair.keys();
    for (side, (access, secret)) in [&mut pair.settings.source, &mut pair.settings.destination].into_iter().zip(pairs) {
        let prefix = format!("DTH_TEST_{}", side.bucket.to_uppercase());
        keys.push((format!("{prefix}_ACCESS_KEY_ID"), access));
        keys.push((format!("{prefix}_SECRET_ACCESS_KEY"), secret));
        side.credentials = dth_s3::CredentialsConfig::EnvironmentPrefix { prefix };
    }
    keys
}

/// T16: SIGTERM drains: what was begun is finished and recorded, the rest goes back to the queue at once, and the next
/// worker goes on without waiting for a lease to end.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn a_stopped_worker_drains() {
    let mut pair = crate::support::ministacks().await;
    for i in 0..600 {
        crate::support::put(&pair.source, &format!("k{i:03}"), vec![1; 100]).await;
    }
    let held = pair.settings.clone();
    let keys = keys_by_environment(&mut pair);
    pair.settings.worker.lease_seconds = 3600;
    pair.settings.worker.transfer.requests_per_second = Some(100);
    let config = pair.folder.path().join("task.toml");
    std::fs::write(&config, toml::to_string(&pair.settings).unwrap()).unwrap();
    let state = pair.settings.open_state().unwrap();
    let mut processes = Processes::new(&config, keys, &[]);
    assert!(processes.start("finder").wait().unwrap().success());
    let worker = processes.start("worker");
    processes.running.push(("worker", worker));
    let worker = &mut processes.running[0].1;
    let done = || async { state.query(&RecordQuery { status: Some(Status::Done), ..RecordQuery::default() }, 10_000).await.unwrap().len() };
    let begun = Instant::now();
    while done().await < 100 {
        assert!(worker.try_wait().unwrap().is_none(), "it ended by itself");
        assert!(begun.elapsed() < Duration::from_secs(120), "it moved {} of 100 objects in two minutes", done().await);
        sleep(Duration::from_millis(50)).await;
    }
    assert!(Command::new("kill").arg(worker.id().to_string()).status().unwrap().success());
    let asked = Instant::now();
    let status = loop {
        if let Some(status) = worker.try_wait().unwrap() {
            break status;
        }
        assert!(asked.elapsed() < Duration::from_secs(40), "it does not stop");
        sleep(Duration::from_millis(50)).await;
    };
    assert!(status.success(), "{status}");
    let moved = done().await;
    assert!((100..600).contains(&moved), "{moved}");
    let depth = state.depth().await.unwrap();
    assert!(depth.leased == 0 && depth.pending() > 0, "{depth:?}");
    let report = held.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 600, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn killed_processes_lose_and_double_nothing() {
    let plan = Plan::from_environment();
    let venv = venv();
    let from = Server::ministack(&venv).await.unwrap();
    let to = match plan.to.as_str() {
        "ministack" => Server::ministack(&venv).await,
        "radosgw" => Server::radosgw().await,
        other => panic!("DTH_CHAOS_TO = `{other}`: ministack or radosgw is expected"),
    };
    let mut pair = pair(from, to.unwrap()).await;
    let made: usize = script("fill.py", &pair, &[plan.objects.to_string(), plan.large_mib.to_string()]).trim().parse().unwrap();
    println!("seed {}: {made} objects to {}", plan.seed, plan.to);

    let held = pair.settings.clone();
    let keys = keys_by_environment(&mut pair);
    let worker = &mut pair.settings.worker;
    worker.lease_seconds = 3;
    worker.max_delay_seconds = 1;
    worker.transfer.part_size = 8 << 20;
    worker.transfer.requests_per_second = plan.requests_per_second;
    let config = pair.folder.path().join("task.toml");
    std::fs::write(&config, toml::to_string(&pair.settings).unwrap()).unwrap();
    let state = pair.settings.open_state().unwrap();

    let chance = SeededEnv::new(plan.seed);
    let mut processes = Processes::new(&config, keys, &["finder", "worker", "worker", "worker"]);
    let begun = Instant::now();
    let most = Duration::from_secs(300 + plan.minutes * 60 + u64::from(plan.kills) * 4 + plan.objects as u64 / 20);
    let (mut kills, mut freezes, mut restarts) = ([0u32; 4], 0u32, 0u32);
    let mut frozen: Option<(usize, Instant)> = None;
    let mut told = Instant::now();
    let run = loop {
        sleep(Duration::from_millis(100 + random_below(&chance, 400))).await;
        if frozen.is_some_and(|(_, until)| Instant::now() > until) {
            processes.signal(frozen.take().unwrap().0, "-CONT");
        }
        let total: u32 = kills.iter().sum();
        let go_on = total < plan.kills || begun.elapsed() < Duration::from_secs(plan.minutes * 60);
        if go_on {
            match random_below(&chance, 20) {
                0 if frozen.is_none() => {
                    let i = 1 + random_below(&chance, 3) as usize;
                    processes.signal(i, "-STOP");
                    // Twice the lease: others take its messages over while it sleeps.
                    frozen = Some((i, Instant::now() + Duration::from_secs(6)));
                    freezes += 1;
                }
                1 => restarts += u32::from(pair.sink_server_mut().restart().await.unwrap()),
                _ => {
                    let i = random_below(&chance, 4) as usize;
                    frozen = frozen.filter(|(at, _)| *at != i);
                    processes.kill(i);
                    kills[i] += 1;
                }
            }
        }
        let runs = state.runs(10).await.unwrap();
        if told.elapsed() > Duration::from_secs(20) {
            told = Instant::now();
            println!("{:?}: {total} kills, {:?}", begun.elapsed(), runs.first().map(|r| (r.sent_jobs(), r.ended_jobs())));
        }
        if let Some(run) = runs.iter().find(|r| r.is_settled())
            && !go_on
        {
            break run.clone();
        }
        assert!(begun.elapsed() < most, "not settled after {kills:?}: {runs:?} {:?}", state.depth().await);
    };
    let settled = begun.elapsed();
    if let Some((i, _)) = frozen {
        processes.signal(i, "-CONT");
    }
    // What the killed ones held comes back when its lease ends, and is found to be done.
    while state.depth().await.unwrap().pending() > 0 {
        assert!(begun.elapsed() < most, "messages stay: {:?}", state.depth().await);
        sleep(Duration::from_millis(200)).await;
    }
    drop(processes);
    println!(
        "kill -9 of the finder {}, of workers {:?}; {freezes} freezes, {restarts} restarts of the destination; {settled:?}",
        kills[0],
        &kills[1..]
    );
    let report = Report::new(run);
    println!("{report}");
    assert!(report.is_success(), "{report}");
    assert_eq!(report.run.totals.listed.objects as usize, made);
    held.task().await.unwrap().sweep(Duration::ZERO).await.unwrap();
    if let Some(log) = pair.sink_server().access_log() {
        let (kinds, puts) = requests(&log, 0);
        let beyond: u64 = puts.values().map(|n| n - 1).sum();
        println!("requests at the destination: {kinds:?}\nPUTs beyond one an object: {beyond} of {}", puts.len());
    }

    let verdict = referee(&pair);
    println!("referee: {} compared, {verdict:?}", verdict.compared);
    assert!(verdict.is_green() && verdict.compared == made, "{verdict:?}");
    rclone(&pair).unwrap_or_else(|told| panic!("rclone: {told}"));
    let records = || async {
        let done = state.query(&RecordQuery { status: Some(Status::Done), ..RecordQuery::default() }, 1_000_000).await.unwrap();
        done.len()
    };
    assert_eq!(records().await, made, "one terminal record a key");
    let depth = state.depth().await.unwrap();
    assert_eq!((depth.dead, depth.pending()), (0, 0), "queue and dead letters are empty");

    // A second run transfers nothing and only lists.
    let from_here = pair.sink_server().access_log().map_or(0, |log| log.len());
    let again = held.task().await.unwrap().run().await.unwrap();
    assert_eq!((again.run.totals.queued.objects, again.run.totals.unchanged.objects as usize), (0, made), "{again}");
    if let Some(log) = pair.sink_server().access_log() {
        let (kinds, _) = requests(&log, from_here);
        println!("a second run at the destination: {kinds:?}");
        assert!(kinds.keys().all(|kind| kind.starts_with("LIST")), "{kinds:?}");
        let pages = (made as u64).div_ceil(1000) + 2 * held.finder.shards as u64;
        assert!(kinds.get("LIST 200").is_some_and(|n| *n <= pages), "{kinds:?}, at most {pages}");
    }

    // The referees themselves: each must see what was broken for it.
    let key = dth_core::object::ObjectKey::from("size/1");
    pair.sink.put(&key, Body::Bytes(vec!["?".into()]), &PutOptions::default()).await.unwrap();
    let upload = pair.sink.create_upload(&"left".into(), &PutOptions::default()).await.unwrap();
    let verdict = referee(&pair);
    assert!(verdict.different.len() == 1 && verdict.different[0].contains("size/1"), "{verdict:?}");
    assert_eq!(verdict.uploads, ["left"], "{verdict:?}");
    assert!(rclone(&pair).is_err_and(|told| told.contains("size/1")), "rclone sees it too");
    pair.sink.abort_upload(&"left".into(), &upload).await.unwrap();
    let file = pair.settings.state.clone().unwrap();
    let dropped = Command::new(venv.join("bin/python"))
        .args([
            "-c",
            "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute(\"delete from record where key='size/1'\"); c.commit()",
        ])
        .arg(file)
        .status();
    assert!(dropped.unwrap().success() && records().await == made - 1, "a missing record is seen");
}
