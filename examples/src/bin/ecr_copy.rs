//! Copies images between registries: `ecr_copy --config images.toml`, or `ecr_copy --from HOST --to HOST IMAGE…`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use anyhow::{Context, ensure};
use clap::Parser;
use dth_core::{
    memory::{MemoryQueue, MemoryState},
    scope::TaskScope,
    state::{RecordQuery, Status},
};
use dth_ecr::{CredentialsConfig, RegistryConfig};
use dth_examples::{Settings, settings::Stores};
use std::{path::PathBuf, process::ExitCode, sync::Arc};

/// Copies images with all their platforms, and keeps their digests. What the destination has already is not sent again.
#[derive(Parser)]
#[command(
    after_help = "Logins come from Docker's configuration (docker login), where no settings name others. Exit codes: 0 done, nothing failed; \
                  1 could not be carried out; 2 wrong arguments; 3 images failed or the ledger is open."
)]
struct Args {
    /// Settings in TOML; see the README.
    #[arg(long, short)]
    config: Option<PathBuf>,
    /// The registry that images come from, as host or host:port.
    #[arg(long, conflicts_with = "config", requires = "to")]
    from: Option<String>,
    /// The registry that they go to.
    #[arg(long, conflicts_with = "config")]
    to: Option<String>,
    /// Both speak HTTP without TLS.
    #[arg(long)]
    insecure: bool,
    /// Also copy signatures, attestations and SBOMs.
    #[arg(long)]
    referrers: bool,
    /// Put before the name of every repository, with a slash.
    #[arg(long)]
    prefix: Option<String>,
    /// Only tell what would be copied.
    #[arg(long)]
    plan: bool,
    /// Form of the report.
    #[arg(long, value_parser = ["text", "json"], default_value = "text")]
    report: String,
    /// Images, instead of those that the settings select: name, name:tag, name@digest, name:ALL_TAGS.
    images: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Args = dth_examples::arguments();
    dth_examples::log();
    let settings = settings(&args)?;
    let mut scope = TaskScope::new();
    let stop = dth_examples::stop_on_signal(&mut scope);
    let stores = if settings.state.is_some() || settings.cluster.is_some() {
        settings.stores().await?
    } else {
        Stores { queue: Arc::new(MemoryQueue::new()), state: Arc::new(MemoryState::forgetting_done()) }
    };
    let task = settings.task_on(&stores).await?.with_stop(stop);
    let json = args.report == "json";
    if args.plan {
        println!("{}", dth_examples::plan_text(&task.plan(&settings.prices).await?, json)?);
        return Ok(ExitCode::SUCCESS);
    }
    dth_examples::show_progress(&mut scope, task.events());
    let report = task.run().await?;
    drop(scope);
    let code = dth_examples::finish(&report, json)?;
    if !json {
        let failed = RecordQuery { status: Some(Status::Failed), run: Some(report.run.id.clone()), after: None };
        for record in stores.state.query(&failed, 100).await? {
            println!("failed: {}: {}", record.key, record.failure.map(|failure| failure.text).unwrap_or_default());
        }
    }
    Ok(code)
}

fn settings(args: &Args) -> anyhow::Result<Settings> {
    let mut settings = match (&args.config, &args.from, &args.to) {
        (Some(path), _, _) => Settings::load(path)?,
        (None, Some(from), Some(to)) => {
            let side = |registry: &String| RegistryConfig {
                registry: registry.clone(),
                insecure: args.insecure,
                credentials: CredentialsConfig::DockerConfig { path: None },
                ..RegistryConfig::default()
            };
            ensure!(!args.images.is_empty(), "name the images to copy, as name, name:tag, name@digest or name:ALL_TAGS");
            Settings { source_registry: Some(side(from)), destination_registry: Some(side(to)), ..Settings::default() }
        }
        _ => anyhow::bail!("name the settings (--config FILE), or two registries (--from HOST --to HOST)"),
    };
    if let Some(prefix) = &args.prefix {
        settings.destination_prefix.clone_from(prefix);
    }
    if !args.images.is_empty() || args.referrers {
        if settings.source_ecr.is_some() && settings.source_registry.is_none() {
            settings.source_registry = Some(RegistryConfig::default());
        }
        let source = settings.source_registry.as_mut().context("the settings name no registry that images come from")?;
        if !args.images.is_empty() {
            source.select.images.clone_from(&args.images);
            (source.select.images_file, source.select.repositories) = (None, Vec::new());
        }
        source.select.referrers |= args.referrers;
    }
    Ok(settings)
}
