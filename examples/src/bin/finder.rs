//! Finds what differs and queues it for workers: `finder --config task.toml`. Started again, it goes on where it was.

#![expect(clippy::print_stdout, reason = "a program for people")]

use clap::Parser;
use dth_core::{report::Report, scope::TaskScope};
use dth_examples::Settings;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

/// Lists both sides and queues what differs; workers on the same state file move it.
#[derive(Parser)]
struct Args {
    /// Settings in TOML.
    #[arg(long, short)]
    config: PathBuf,
    /// Serve metrics for Prometheus at this address, such as 127.0.0.1:9464.
    #[arg(long)]
    metrics: Option<SocketAddr>,
    /// Wait until the workers have done everything, sweep unfinished uploads, and print the report.
    #[arg(long)]
    wait: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Args = dth_examples::arguments();
    dth_examples::log();
    dth_examples::serve_metrics(args.metrics)?;
    let settings = Settings::load(&args.config)?;
    let stores = settings.stores().await?;
    let mut scope = TaskScope::new();
    let stop = dth_examples::stop_on_signal(&mut scope);
    let task = settings.task_on(&stores).await?.with_stop(stop.clone());
    let id = task.begin().await?;
    let run = task.finder()?.resume(&id, &stop).await?;
    if args.wait {
        return dth_examples::finish(&task.wait(&id).await?, false);
    }
    print!("{}", Report::new(run));
    Ok(ExitCode::SUCCESS)
}
