//! Runs as things: `runs --config task.toml list | show RUN | cancel RUN | failed | retry | redrive | import | forget`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use clap::{Parser, Subcommand};
use dth_core::{
    env::{Env, SystemEnv},
    job::Intake,
    report::Report,
    runs,
    state::{RecordQuery, RunId, Status},
};
use dth_examples::{Settings, settings::Stores};
use std::{path::PathBuf, time::Duration};

/// Shows runs and what failed in them; sends dead letters again.
#[derive(Parser)]
struct Args {
    /// Settings in TOML.
    #[arg(long, short)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All runs, the youngest first.
    List,
    /// The ledger of one run.
    Show {
        /// Its id.
        run: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Calls a run off.
    Cancel {
        /// Its id.
        run: String,
    },
    /// Objects that failed, and dead letters, with their causes.
    Failed,
    /// Tries the objects again that failed, as a run of their own; workers (or `transfer`) do it.
    Retry {
        /// Only those that failed in this run.
        run: Option<String>,
    },
    /// Forgets runs that ended long ago: their ledgers and cursors. Records of objects stay.
    Forget {
        /// Days since their end.
        #[arg(long, default_value_t = 30)]
        days: u32,
    },
    /// Takes over what the original system knew: its job table (`cluster.job_table`) becomes records. Before the first worker.
    Import,
    /// Sends dead letters again, as a run of their own.
    Redrive {
        /// Only those whose reason contains this text, such as `access denied`.
        #[arg(long)]
        only: Option<String>,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Args = dth_examples::arguments();
    dth_examples::log();
    let settings = Settings::load(&args.config)?;
    if matches!(args.command, Command::Import) {
        for line in settings.import_job_table().await? {
            println!("{line}");
        }
        return Ok(());
    }
    let retry = settings.finder.retry;
    // Only those who send jobs need to know what is of the task.
    let intake = async || anyhow::Ok(Intake::new(&settings.selection().await?, &settings.worker.events)?);
    let Stores { queue, state } = settings.stores_as_they_are().await?;
    match args.command {
        Command::List => {
            for run in state.runs(100).await? {
                let t = &run.totals;
                println!(
                    "{}  {:<12}  {}  listed {}, queued {}, ended {}",
                    run.id,
                    run.state.as_str(),
                    run.started,
                    t.listed.objects,
                    t.queued.objects,
                    run.ended_jobs()
                );
            }
        }
        Command::Show { run, json } => {
            dth_examples::finish(&Report::new(state.run(&RunId::new(run)).await?), json)?;
        }
        Command::Cancel { run } => runs::cancel(&*state, &RunId::new(run), &SystemEnv, &retry).await?,
        Command::Failed => {
            let query = RecordQuery { status: Some(Status::Failed), ..RecordQuery::default() };
            for record in state.query(&query, 10_000).await? {
                let cause = record.failure.as_ref();
                println!("{}: {}", record.key, cause.map_or("", |f| f.text.as_str()));
                println!("    {}", cause.map_or("", |f| f.kind.remedy()));
            }
            for dead in queue.dead_letters(None, 10_000).await? {
                println!("dead letter {} after {} deliveries: {}", dead.id, dead.receives, dead.reason);
            }
            // They show again to others, `redrive` among them.
            queue.dead_letters(None, 0).await?;
        }
        Command::Retry { run } => {
            let run = run.map(RunId::new);
            match runs::retry_failed(&*state, &*queue, run.as_ref(), &intake().await?, &SystemEnv, &retry).await? {
                Some(run) => println!("run {}: {} jobs are queued again", run.id, run.sent_jobs()),
                None => println!("nothing failed"),
            }
        }
        Command::Forget { days } => {
            let before = SystemEnv.now().saturating_sub(Duration::from_secs(u64::from(days) * 86_400))?;
            println!("{} runs forgotten", state.forget_runs(before).await?);
        }
        // It opens what it needs by itself.
        Command::Import => {}
        Command::Redrive { only } => match runs::redrive(&*state, &*queue, only.as_deref(), &intake().await?, &SystemEnv, &retry).await? {
            Some(run) => println!("run {}: {} jobs are queued again", run.id, run.sent_jobs()),
            None => println!("no dead letters to send again"),
        },
    }
    Ok(())
}
