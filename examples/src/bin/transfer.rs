//! Finds and moves in one process: `transfer --config task.toml`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use clap::Parser;
use dth_core::scope::TaskScope;
use dth_examples::Settings;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

/// Transfers what differs from a source to a destination, with verified bytes. Exit code 0 only when nothing failed.
#[derive(Parser)]
#[command(
    after_help = "Exit codes: 0 done, nothing failed; 1 could not be carried out; 2 wrong arguments; 3 objects failed or the ledger is open."
)]
struct Args {
    /// Settings in TOML, or the flat YAML file of the original system.
    #[arg(long, short)]
    config: PathBuf,
    /// Serve metrics for Prometheus at this address, such as 127.0.0.1:9464.
    #[arg(long)]
    metrics: Option<SocketAddr>,
    /// Only tell what would be done, and what it would cost.
    #[arg(long)]
    plan: bool,
    /// Form of the report.
    #[arg(long, value_parser = ["text", "json"], default_value = "text")]
    report: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Args = dth_examples::arguments();
    dth_examples::log();
    dth_examples::serve_metrics(args.metrics)?;
    let settings = Settings::load(&args.config)?;
    let mut scope = TaskScope::new();
    let task = settings.task().await?.with_stop(dth_examples::stop_on_signal(&mut scope));
    let json = args.report == "json";
    if args.plan {
        let plan = task.plan(&settings.prices).await?;
        println!("{}", dth_examples::plan_text(&plan, json)?);
        return Ok(ExitCode::SUCCESS);
    }
    dth_examples::show_progress(&mut scope, task.events());
    let report = task.run().await?;
    drop(scope);
    dth_examples::finish(&report, json)
}
