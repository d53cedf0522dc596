//! Moves what a finder queued: `worker --config task.toml`, in as many processes as there are to be.

use clap::Parser;
use dth_core::scope::TaskScope;
use dth_examples::Settings;
use std::{net::SocketAddr, path::PathBuf};

/// Takes jobs from the state file and does them until it is stopped (ctrl-c or SIGTERM drains).
#[derive(Parser)]
struct Args {
    /// Settings in TOML.
    #[arg(long, short)]
    config: PathBuf,
    /// Serve metrics for Prometheus at this address, such as 127.0.0.1:9464.
    #[arg(long)]
    metrics: Option<SocketAddr>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Args = dth_examples::arguments();
    dth_examples::log();
    dth_examples::serve_metrics(args.metrics)?;
    let settings = Settings::load(&args.config)?;
    let stores = settings.stores().await?;
    let mut scope = TaskScope::new();
    let stop = dth_examples::stop_on_signal(&mut scope);
    settings.task_on(&stores).await?.worker()?.run(stop).await;
    Ok(())
}
