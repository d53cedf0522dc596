//! The manifest of a task, and its check against both sides: `verify --config task.toml [--export FILE | --manifest FILE]`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use anyhow::Context;
use clap::Parser;
use dth_core::manifest::{self, Line, Spool, Verification};
use dth_examples::Settings;
use std::{
    io::{BufRead, BufReader, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

/// Writes what was copied, a JSON line a key, or checks such a file against both sides by one header request a side and key; of
/// images also that all they need is at the destination.
#[derive(Parser)]
struct Args {
    /// Settings in TOML.
    #[arg(long, short)]
    config: PathBuf,
    /// Write the manifest to this file and stop.
    #[arg(long, conflicts_with = "manifest")]
    export: Option<PathBuf>,
    /// Check this manifest; without it, the state's own.
    #[arg(long)]
    manifest: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Args = dth_examples::arguments();
    dth_examples::log();
    let settings = Settings::load(&args.config)?;
    let keys = settings.key_map()?;
    let path = match (&args.export, &args.manifest) {
        (_, Some(path)) => path.clone(),
        (export, None) => {
            let own = tempfile::NamedTempFile::new()?.into_temp_path().keep()?;
            let path = export.clone().unwrap_or(own);
            let mut out = BufWriter::new(std::fs::File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?);
            let state = settings.stores_as_they_are().await?.state;
            let mut lines = manifest::export(&*state, &keys, &mut out).await?;
            if let (Some(folder), Some(run)) = (&settings.manifest, state.runs(100).await?.iter().find(|run| run.totals.source_pages > 0)) {
                lines += Spool::new(folder).export(&run.id, &*state, &mut out).await?;
            }
            out.flush()?;
            println!("{lines} lines in {}", path.display());
            path
        }
    };
    if args.export.is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    let (source, sink) = (settings.source().await?, settings.sink(None).await?);
    let mut result = Verification::default();
    for (number, line) in BufReader::new(std::fs::File::open(&path)?).lines().enumerate() {
        let line: Line = serde_json::from_str(&line?).with_context(|| format!("{} line {}", path.display(), number + 1))?;
        manifest::verify(&line, &*source, &*sink, &keys, &mut result).await?;
    }
    let children = if result.children > 0 { format!(" (and the {} that they need)", result.children) } else { String::new() };
    println!(
        "{} checked{children}: {} as recorded on both sides, {} changed at the source since, {} wrong at the destination",
        result.checked,
        result.good,
        result.source_moved_on,
        result.wrong.len()
    );
    for key in &result.wrong {
        println!("wrong: {key}");
    }
    Ok(ExitCode::from(if result.wrong.is_empty() { dth_examples::OK } else { dth_examples::INCOMPLETE }))
}
