//! Fuzz targets of what is read from outside: messages, what is kept of a run, settings. Each runs for some seconds under
//! `cargo test`; `cargo bolero test NAME` runs one for longer, guided by coverage.

#![expect(clippy::unwrap_used, reason = "tests")]

mod mutate;

use dth_core::{
    env::SystemEnv,
    error::{Error, ErrorKind},
    finder::FinderSettings,
    job::{Job, Pack, Seen},
    manifest::Line,
    memory::MemoryStore,
    object::{ETag, Entry},
    report::Report,
    state::{Record, Run, RunId, Shard},
    sync::Sync,
    worker::WorkerSettings,
};
use mutate::{Edits, mutated_text, time};
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;

const JSON: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e400",
    "18446744073709551616",
    "0.5",
    "\\u0000",
    "\\ud800",
    "\"v\":2",
    "\"key\":\"\"",
    "\"jobs\":[]",
    "\"k\":1",
    "\"size\":-1",
    "\"id\":null",
    "\u{0}",
    "🦀",
    "\\",
];

/// Whatever is accepted comes back the same; whatever is not is refused as such, with an excerpt and not the whole.
#[test]
fn messages() {
    let mut jobs = vec![
        Job::copy(&Entry::new("a/b\n🦀", 7, Some(ETag::new("e-2"))), Seen::Absent),
        Job::copy(&Entry::new("c", 7, None), Seen::Present(ETag::new("x"))),
    ];
    jobs[1].attempts = 3;
    let seeds = [
        Pack::new(&SystemEnv, Some(RunId::new("r")), jobs).to_body(),
        r#"{"key":"a/b","size":123}"#.into(),
        r#"{"key":"\u00e9"}"#.into(),
        r#"{"v":1,"id":"x","jobs":[{"k":"a","s":null,"e":null,"d":null}]}"#.into(),
    ];
    bolero::check!().with_test_time(time()).with_type::<(u8, Edits)>().for_each(|(seed, edits)| {
        let body = mutated_text(&seeds[usize::from(*seed) % seeds.len()], edits, &JSON);
        match Pack::parse(&body, &SystemEnv) {
            Ok(pack) => {
                assert!(!pack.jobs.is_empty() && pack.jobs.iter().all(|job| !job.key.as_str().is_empty()));
                let written = pack.to_body();
                assert!(written.bytes().all(|b| (b' '..=b'~').contains(&b)));
                assert_eq!(Pack::parse(&written, &SystemEnv).unwrap(), pack);
                (0..pack.jobs.len()).for_each(|index| drop(pack.origin(index)));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Invalid);
                assert!(error.chain().len() < 4096, "{} bytes of complaint", error.chain().len());
            }
        }
    });
}

fn comes_back<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(json: &str) {
    if let Ok(read) = serde_json::from_str::<T>(json) {
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<T>(&written).unwrap(), read, "{json}");
    }
}

/// Manifest lines, reports, and what is kept of runs.
#[test]
fn what_is_kept_of_a_run() {
    let now = "2026-01-02T03:04:05Z";
    let line =
        r#"{"key":"a","destination":"b","source":{"etag":"e","size":1,"version":"v"},"etag":"e","checksum":null,"verified":"store"}"#;
    let mut run = Run::new(RunId::new("r"), now.parse().unwrap());
    run.outcomes.insert("copied".into(), dth_core::state::Tally::one(1));
    let seeds = [
        line.to_owned(),
        line.replace("\"store\"", r#"{"source":"crc64nvme"}"#).replace("null", r#"{"algorithm":"crc64nvme","value":"00ff"}"#),
        serde_json::to_string(&run).unwrap(),
        serde_json::to_string(&Report::new(run)).unwrap(),
        r#"{"id":1,"after":null,"until":"z","position":"k","version":3}"#.into(),
        format!(r#"{{"key":"a","run":"r","status":"done","version":1,"updated":"{now}","source":null}}"#),
    ];
    let words = [JSON.as_slice(), &["crc64nvme", "\"value\":\"0\"", "\"transport\"", now, "-999999-01-01T00:00:00Z", "\"done\""]].concat();
    bolero::check!().with_test_time(time()).with_type::<(u8, Edits)>().for_each(|(seed, edits)| {
        let json = mutated_text(&seeds[usize::from(*seed) % seeds.len()], edits, &words);
        comes_back::<Line>(&json);
        comes_back::<Report>(&json);
        comes_back::<Run>(&json);
        comes_back::<Shard>(&json);
        comes_back::<Record>(&json);
        if let Ok(report) = serde_json::from_str::<Report>(&json) {
            let _ = (report.to_string(), report.is_success());
        }
    });
}

/// Settings: what is accepted also works, or says which setting does not.
#[test]
fn settings() {
    let seeds = [
        "prefix = 'a/'\ndelete_extra = true\nmax_delete = 5\nshards = 4\n[filter]\ninclude = ['*.txt', 'a/**']\nexclude = ['[a-z']\n",
        "packs = 4\nmax_attempts = 5\nlease_seconds = 60\n[transfer]\nhold_max = 4194304\npart_size = 1\n[transfer.retry]\ntries = 5\n",
    ];
    let words = [
        "=",
        "'",
        "\"",
        "[",
        "]",
        "\n",
        "#",
        "0",
        "-1",
        "18446744073709551615",
        "9223372036854775807",
        "true",
        "nan",
        "{}",
        "prefix",
        "[transfer]",
        "min_size = 1",
        "**",
        "{a,b",
        "[!",
        "modified_after = 2026-01-01T00:00:00Z",
        "\u{0}",
        "é",
    ];
    bolero::check!().with_test_time(time()).with_type::<(u8, Edits)>().for_each(|(seed, edits)| {
        let text = mutated_text(seeds[usize::from(*seed) % seeds.len()], edits, &words);
        let task = Sync::new(Arc::new(MemoryStore::default()), Arc::new(MemoryStore::default()));
        let told = |error: Error| assert!(error.kind() == ErrorKind::Invalid && error.chain().len() > 10, "{}", error.chain());
        if let Ok(finder) = toml::from_str::<FinderSettings>(&text) {
            let _ = task.clone().with_finder(finder).finder().map_err(told);
        }
        if let Ok(worker) = toml::from_str::<WorkerSettings>(&text) {
            let _ = task.with_worker(worker).worker().map_err(told);
        }
    });
}
