//! What the example binaries share: settings, logging, stopping, progress, exit codes.

#![expect(clippy::print_stdout, reason = "a program for people")]

pub mod compat;
pub mod servers;
pub mod settings;

use anyhow::Context;
use dth_core::{
    events::{Event, Events},
    plan::cost::Plan,
    report::{Report, human_bytes},
    scope::TaskScope,
};
use indicatif::{ProgressBar, ProgressStyle};
use std::{io::IsTerminal, net::SocketAddr, process::ExitCode, time::Duration};
use tokio_util::sync::CancellationToken;

pub use settings::Settings;

/// Everything was done and nothing failed.
pub const OK: u8 = 0;
/// The command could not be carried out: settings, rights, network.
pub const ERROR: u8 = 1;
/// Carried out, but objects failed, differ, or the ledger does not close.
pub const INCOMPLETE: u8 = 3;

/// The arguments of a binary. With `COMPLETE=bash` (zsh, fish, elvish, powershell) in the environment it prints what the
/// shell needs to complete them: `source <(COMPLETE=bash transfer)`.
pub fn arguments<A: clap::Parser>() -> A {
    clap_complete::CompleteEnv::with_factory(A::command).complete();
    A::parse()
}

/// Serves the counters and gauges of this process for Prometheus, at `http://ADDRESS/metrics`.
pub fn serve_metrics(address: Option<SocketAddr>) -> anyhow::Result<()> {
    let Some(address) = address else { return Ok(()) };
    let exporter = metrics_exporter_prometheus::PrometheusBuilder::new().with_http_listener(address);
    exporter.install().with_context(|| format!("cannot serve metrics at {address}"))
}

/// Logs to standard error; `RUST_LOG` chooses what, `DTH_LOG=json` the form.
pub fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("DTH_LOG").is_ok_and(|form| form == "json") { builder.json().init() } else { builder.init() }
}

/// A token that is cancelled by ctrl-c or SIGTERM; a drain ends within `worker.grace_seconds`.
pub fn stop_on_signal(scope: &mut TaskScope) -> CancellationToken {
    let stop = CancellationToken::new();
    let token = stop.clone();
    scope.spawn(async move {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
        let terminated = async {
            match &mut term {
                Some(term) => term.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { _ = tokio::signal::ctrl_c() => {}, _ = terminated => {} }
        eprintln!("stopping: finishing what was begun");
        token.cancel();
    });
    stop
}

/// Shows progress: a bar on a terminal, a line every ten seconds elsewhere.
pub fn show_progress(scope: &mut TaskScope, events: &Events) {
    let mut receiver = events.subscribe();
    let terminal = std::io::stderr().is_terminal();
    scope.spawn(async move {
        let bar = if terminal { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {human_pos}/{human_len} objects  {msg}  {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        let (mut total, mut done, mut bytes, mut failed) = (0u64, 0u64, 0u64, 0u64);
        let mut told = tokio::time::Instant::now();
        loop {
            match receiver.recv().await {
                Ok(Event::Found { queued, .. }) => total += queued,
                Ok(Event::Ended { outcome, bytes: size, .. }) => {
                    done += 1;
                    bytes += size;
                    failed += u64::from(outcome.label().starts_with("failed"));
                }
                Ok(_) => {}
                Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => done += missed,
                Err(_) => break,
            }
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{}  {failed} failed", human_bytes(bytes)));
            if !terminal && told.elapsed() > Duration::from_secs(10) {
                told = tokio::time::Instant::now();
                eprintln!("{done} of {total} objects, {}, {failed} failed", human_bytes(bytes));
            }
        }
    });
}

/// Prints a report as text or JSON, and says how the process is to end.
pub fn finish(report: &Report, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print!("{report}");
    }
    Ok(exit_code(report))
}

/// A plan as text or JSON.
pub fn plan_text(plan: &Plan, json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(plan)?);
    }
    let (t, r) = (&plan.totals, &plan.requests);
    // A listing of images tells nothing but names.
    let sized = t.queued.objects == 0 || t.queued.bytes > 0;
    let bytes = if sized { human_bytes(t.queued.bytes) } else { "sizes not known".into() };
    let more = if sized { "" } else { ", and those of blobs" };
    let skipped: u64 = t.skipped.values().map(|t| t.objects).sum();
    Ok(format!(
        "listed {}, unchanged {}, skipped {skipped}, to be moved {} ({bytes}), not comparable {}, to be deleted {}\nrequests: {} LIST, {} GET, {} PUT and POST{more}; about ${:.4}",
        t.listed.objects,
        t.unchanged.objects,
        t.queued.objects,
        t.unknown.objects,
        t.extra_queued.objects,
        r.source_list + r.destination_list,
        r.get,
        r.put,
        plan.cost
    ))
}

/// How a process ends that carried a run out.
pub fn exit_code(report: &Report) -> ExitCode {
    ExitCode::from(if report.is_success() { OK } else { INCOMPLETE })
}

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
