//! One TOML file for all binaries.

use anyhow::Context;
use dth_core::{
    finder::FinderSettings, key_map::KeyMap, plan::cost::Prices, queue::Queue, state::StateStore, sync::Sync, worker::WorkerSettings,
};
use dth_s3::{S3Config, S3Store};
use dth_state::Sqlite;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A task: both sides, where its state lies, and how it is done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where objects come from.
    pub source: S3Config,
    /// Where they go.
    pub destination: S3Config,
    /// Put before every key, with a slash.
    pub destination_prefix: String,
    /// The SQLite file with queue and state; in memory, and forgotten, when there is none.
    pub state: Option<PathBuf>,
    /// Finding.
    pub finder: FinderSettings,
    /// Moving.
    pub worker: WorkerSettings,
    /// For the cost of a plan.
    pub prices: Prices,
}

impl Settings {
    /// Reads a TOML file, or the flat YAML file of the original system (`.yaml`, `.yml`); environment names of the original
    /// system are read on top of either.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let flat = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        let mut settings = if flat {
            let mut settings = Self::default();
            crate::compat::apply(&mut settings, crate::compat::flat_yaml(&text)?)?;
            settings
        } else {
            toml::from_str(&text).with_context(|| format!("in `{}`", path.display()))?
        };
        crate::compat::apply(&mut settings, crate::compat::environment())?;
        settings.worker.validate()?;
        Ok(settings)
    }

    /// The state file.
    pub fn open_state(&self) -> anyhow::Result<Sqlite> {
        let path = self.state.as_ref().context("this command needs `state = \"FILE\"` in the settings")?;
        Ok(Sqlite::open(path)?)
    }

    /// The task, put together.
    pub fn task(&self) -> anyhow::Result<Sync> {
        let (source, sink) = (self.source()?, self.sink()?);
        let task = Sync::new(Arc::new(source), Arc::new(sink))
            .with_keys(KeyMap::new(&self.destination_prefix))
            .with_finder(self.finder.clone())
            .with_worker(self.worker.clone());
        Ok(match &self.state {
            None => task,
            Some(_) => {
                let state = Arc::new(self.open_state()?);
                task.with_state(Arc::clone(&state) as Arc<dyn Queue>, state as Arc<dyn StateStore>)
            }
        })
    }

    /// The source.
    pub fn source(&self) -> anyhow::Result<S3Store> {
        S3Store::new(self.source.clone()).context("source")
    }

    /// The sink.
    pub fn sink(&self) -> anyhow::Result<S3Store> {
        S3Store::new(self.destination.clone()).context("destination")
    }
}
