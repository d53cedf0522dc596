//! Q3: finder and workers as processes, killed with -9 at random moments.

use crate::support::{bytes, contents, ministacks, open_uploads, put, put_multipart};
use dth_core::{
    env::{Env, SystemEnv, random_below},
    queue::Queue,
    report::Report,
    sink::PutOptions,
    state::{RecordQuery, StateStore, Status},
};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::{Instant, sleep};

struct Processes<'a> {
    config: &'a Path,
    keys: Vec<(String, String)>,
    running: Vec<(&'static str, Child)>,
}

impl Processes<'_> {
    fn start(config: &Path, keys: &[(String, String)], binary: &'static str) -> Child {
        let path = match binary {
            "finder" => env!("CARGO_BIN_EXE_finder"),
            _ => env!("CARGO_BIN_EXE_worker"),
        };
        let mut command = Command::new(path);
        command.arg("--config").arg(config).envs(keys.iter().cloned()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    fn kill_one(&mut self) {
        let i = random_below(&SystemEnv, self.running.len() as u64) as usize;
        let (binary, child) = &mut self.running[i];
        child.kill().unwrap();
        child.wait().unwrap();
        *child = Self::start(self.config, &self.keys, binary);
    }
}

impl Drop for Processes<'_> {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn killed_processes_lose_and_double_nothing() {
    let mut pair = ministacks().await;
    let objects = 1500;
    for i in 0..objects {
        put(&pair.source, &format!("o/{:02}/{i}", i % 13), bytes(i % 3000, i as u64)).await;
    }
    for i in 0..4 {
        put_multipart(&pair.source, &format!("big/{i}"), &bytes(16 << 20, i), 5 << 20, &PutOptions::default()).await;
    }
    // Secrets are not written into files; the processes get them by their environment.
    let mut keys = Vec::new();
    let held = pair.settings.clone();
    let pairs = pair.keys();
    for (side, (access, secret)) in [&mut pair.settings.source, &mut pair.settings.destination].into_iter().zip(pairs) {
        let prefix = format!("DTH_TEST_{}", side.bucket.to_uppercase());
        keys.push((format!("{prefix}_ACCESS_KEY_ID"), access));
        keys.push((format!("{prefix}_SECRET_ACCESS_KEY"), secret));
        side.credentials = dth_s3::CredentialsConfig::EnvironmentPrefix { prefix };
    }
    pair.settings.worker.lease_seconds = 3;
    pair.settings.worker.max_attempts = 100;
    pair.settings.worker.max_delay_seconds = 1;
    pair.settings.worker.transfer.requests_per_second = Some(60);
    let config = pair.folder.path().join("task.toml");
    std::fs::write(&config, toml::to_string(&pair.settings).unwrap()).unwrap();
    let state = pair.settings.open_state().unwrap();

    let running = ["finder", "worker", "worker", "worker"].map(|b| (b, Processes::start(&config, &keys, b)));
    let mut processes = Processes { config: &config, keys, running: running.into() };
    let begun = Instant::now();
    let mut kills = 0;
    let run = loop {
        sleep(Duration::from_millis(100 + random_below(&SystemEnv, 400))).await;
        if kills < 20 {
            processes.kill_one();
            kills += 1;
        }
        let runs = state.runs(10).await.unwrap();
        if let Some(run) = runs.iter().find(|r| r.is_settled())
            && kills >= 20
        {
            break run.clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(240), "not settled after {kills} kills: {runs:?} {:?}", state.depth().await);
    };
    drop(processes);
    let report = Report::new(run);
    assert!(report.is_success(), "{report}");
    held.task().unwrap().sweep(Duration::ZERO).await.unwrap();
    assert_eq!(contents(&pair.source, false).await, contents(&pair.sink, false).await);
    assert_eq!(open_uploads(&pair.sink).await, 0);
    let done = state.query(&RecordQuery { status: Some(Status::Done), ..RecordQuery::default() }, 10_000).await.unwrap();
    assert_eq!(done.len(), objects + 4, "one terminal record a key, after {kills} kills in {:?}", SystemEnv.now());
    assert_eq!(state.depth().await.unwrap().dead, 0);
}
