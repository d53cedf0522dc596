//! One TOML file for all binaries.

#[cfg_attr(not(feature = "aws"), path = "settings/without_aws.rs")]
mod aws;

use crate::compat::{self, Values};
use anyhow::{Context, bail, ensure};
use dth_core::{
    env::SystemEnv,
    finder::FinderSettings,
    http::{Http, HttpSettings, Proxy},
    key_map::{KeyMap, KeyRules},
    manifest::Spool,
    notify::{Alarms, LogNotifier, Notifier, Webhook},
    object::ObjectKey,
    plan::cost::Prices,
    prefixes::PrefixList,
    queue::Queue,
    secret::Secret,
    sink::Sink,
    source::{ReadOptions, Source},
    state::StateStore,
    sync::Sync,
    worker::WorkerSettings,
};
use dth_ecr::{OciLayout, Registry, RegistryConfig, RepositorySettings};
use dth_s3::{LocalDirectory, S3Config, S3Store};
use dth_state::Sqlite;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A task: both sides, where its state lies, and how it is done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where objects come from.
    pub source: S3Config,
    /// They come from this local directory instead.
    pub source_directory: Option<PathBuf>,
    /// They are images of this registry.
    pub source_registry: Option<RegistryConfig>,
    /// They are images of Amazon ECR; `source_registry`, without `registry`, may select.
    pub source_ecr: Option<EcrSettings>,
    /// They are images of this OCI layout.
    pub source_layout: Option<PathBuf>,
    /// Where they go.
    pub destination: S3Config,
    /// They go to this local directory instead.
    pub destination_directory: Option<PathBuf>,
    /// They are images, and go to this registry.
    pub destination_registry: Option<RegistryConfig>,
    /// They are images, and go to Amazon ECR; `destination_registry`, without `registry`, may rename.
    pub destination_ecr: Option<EcrSettings>,
    /// They are images, and go to this OCI layout.
    pub destination_layout: Option<PathBuf>,
    /// Put before every key, with a slash.
    pub destination_prefix: String,
    /// What becomes of a key before that.
    pub keys: KeyRules,
    /// Only keys that begin with a line of this file.
    pub prefix_list: Option<PrefixListSettings>,
    /// The SQLite file with queue and state, for workers on one machine; in memory, and forgotten, when there is none.
    pub state: Option<PathBuf>,
    /// Queue and state in Amazon SQS and DynamoDB instead, for workers on any number of machines.
    pub cluster: Option<Cluster>,
    /// Who is told of dead letters, of a finder that failed and of the end of a run.
    pub alarms: AlarmSettings,
    /// A folder for the manifest's lines of objects that were found equal; copied ones are in the state.
    pub manifest: Option<PathBuf>,
    /// Finding.
    pub finder: FinderSettings,
    /// Moving.
    pub worker: WorkerSettings,
    /// For the cost of a plan.
    pub prices: Prices,
}

/// A file with one prefix a line, which stands for `finder.prefix`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixListSettings {
    /// It lies in a local file.
    pub file: Option<PathBuf>,
    /// It is an object, of the source if nothing else is said.
    pub key: Option<String>,
    /// It is an object of another bucket than the source, for which all other settings of the source hold.
    pub bucket: Option<String>,
}

/// A registry of Amazon ECR; credentials come from the default chain of the SDKs, or a named profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EcrSettings {
    /// The region; `cn-…` and `us-gov-…` choose their partition.
    pub region: Option<String>,
    /// The account, when it is another one than that of the credentials.
    pub account: Option<String>,
    /// A profile of the AWS configuration.
    pub profile: Option<String>,
    /// Key pair in `{prefix}_ACCESS_KEY_ID`, `{prefix}_SECRET_ACCESS_KEY`, `{prefix}_SESSION_TOKEN` of the environment.
    pub environment_prefix: Option<String>,
    /// Another endpoint of ECR's API than Amazon's.
    pub endpoint: Option<String>,
    /// Make repositories that do not exist, with these settings.
    pub create: Option<RepositorySettings>,
}

/// Queue and state in AWS; credentials come from the default chain (environment, profile, container, instance).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Name, URL or ARN of the queue.
    pub queue: String,
    /// Name of the table.
    pub table: String,
    /// Tasks that share a table have different names.
    #[serde(default = "Cluster::default_task")]
    pub task: String,
    /// The job table of the original system, which is kept up to date besides; `runs import` reads it.
    #[serde(default)]
    pub job_table: Option<String>,
    /// Make queue, dead-letter queue and table where they do not exist.
    #[serde(default)]
    pub create: bool,
    /// The region, when it is not that of the environment or profile.
    #[serde(default)]
    pub region: Option<String>,
    /// Another endpoint than Amazon's, for both.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The same for the queue alone, such as that of a VPC endpoint.
    #[serde(default)]
    pub queue_endpoint: Option<String>,
    /// The same for the table alone.
    #[serde(default)]
    pub table_endpoint: Option<String>,
    /// Forget records of objects that are done after so many days; kept for ever where nothing is set.
    #[serde(default)]
    pub record_ttl_days: Option<u32>,
    /// Which proxy requests go through.
    #[serde(default)]
    pub proxy: Proxy,
    /// PEM file with certificates to trust besides the system's.
    #[serde(default)]
    pub ca_file: Option<String>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            queue: String::new(),
            table: "dth".into(),
            task: Self::default_task(),
            job_table: None,
            create: false,
            region: None,
            endpoint: None,
            queue_endpoint: None,
            table_endpoint: None,
            record_ttl_days: None,
            proxy: Proxy::default(),
            ca_file: None,
        }
    }
}

impl Cluster {
    fn default_task() -> String {
        "default".into()
    }
}

/// Who is told, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlarmSettings {
    /// How the task is called in notices.
    pub task: String,
    /// Write notices to the log.
    pub log: bool,
    /// ARN of an SNS topic.
    pub sns: Option<String>,
    /// Another endpoint of SNS than Amazon's.
    pub endpoint: Option<String>,
    /// URL to which the JSON form is posted.
    pub webhook: Option<Secret>,
    /// Token for it, sent as `Authorization: Bearer …`.
    pub webhook_token: Option<Secret>,
    /// Tell of dead letters at most once in so many seconds.
    pub every_seconds: u64,
    /// Which proxy notices go through.
    pub proxy: Proxy,
    /// PEM file with certificates to trust besides the system's.
    pub ca_file: Option<String>,
}

impl Default for AlarmSettings {
    fn default() -> Self {
        let task = "dth".to_owned();
        Self {
            task,
            log: false,
            sns: None,
            endpoint: None,
            webhook: None,
            webhook_token: None,
            every_seconds: 300,
            proxy: Proxy::default(),
            ca_file: None,
        }
    }
}

impl AlarmSettings {
    async fn open(&self) -> anyhow::Result<Alarms> {
        let http = http(&self.proxy, self.ca_file.as_ref())?;
        let mut notifiers: Vec<Arc<dyn Notifier>> = Vec::new();
        if self.log {
            notifiers.push(Arc::new(LogNotifier));
        }
        if let Some(topic) = &self.sns {
            notifiers.push(aws::topic(topic, self.endpoint.as_ref(), &http).await?);
        }
        if let Some(url) = &self.webhook {
            let hook = Webhook::new(url.clone(), http)?;
            notifiers.push(match &self.webhook_token {
                Some(token) => Arc::new(hook.with_bearer(token.clone())),
                None => Arc::new(hook),
            });
        }
        Ok(Alarms::new(&*self.task, notifiers).with_every(Duration::from_secs(self.every_seconds)))
    }
}

fn http(proxy: &Proxy, ca_file: Option<&String>) -> dth_core::error::Result<Http> {
    Http::new(HttpSettings { proxy: proxy.clone(), ca_file: ca_file.cloned(), ..HttpSettings::default() })
}

/// Where jobs wait, and what is known.
#[derive(Debug, Clone)]
pub struct Stores {
    /// Jobs for workers.
    pub queue: Arc<dyn Queue>,
    /// Records, runs, cursors.
    pub state: Arc<dyn StateStore>,
}

impl Settings {
    /// Reads a TOML file, or the flat YAML file of the original system (`.yaml`, `.yml`); environment names of the original
    /// system are read on top of either.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let flat = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        let place = || format!("in `{}`", path.display());
        let (mut settings, of_file) = if flat {
            (compat::defaults(), Values::from_flat_yaml(&text).with_context(place)?)
        } else {
            (Self::from_toml(&text).with_context(place)?, Values::default())
        };
        let environment = Values::from_environment();
        if environment != Values::default() {
            tracing::warn!(names = ?environment.names(), "settings of the file are replaced by the environment's");
        }
        compat::apply(&mut settings, &environment.or(of_file)).with_context(place)?;
        settings.validate().with_context(place)?;
        Ok(settings)
    }

    /// An error tells where and what, and never shows the line: there may be a secret in it.
    fn from_toml(text: &str) -> anyhow::Result<Self> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let (line, column) = (before.matches('\n').count() + 1, before.rsplit('\n').next().unwrap_or_default().chars().count() + 1);
            anyhow::anyhow!("line {line}, column {column}: {}", without_value(error.message()))
        })
    }

    /// Settings that would be left out without a word are errors.
    fn validate(&self) -> anyhow::Result<()> {
        let AlarmSettings { sns, endpoint, webhook, webhook_token, .. } = &self.alarms;
        let twice = "`state` and `[cluster]` (or JOB_QUEUE_NAME, JOB_TABLE_NAME) are both set: leave one of them out";
        ensure!(self.state.is_none() || self.cluster.is_none(), twice);
        ensure!(webhook_token.is_none() || webhook.is_some(), "alarms.webhook_token: there is no alarms.webhook to send it to");
        ensure!(endpoint.is_none() || sns.is_some(), "alarms.endpoint: there is no alarms.sns to send to");
        if let Some(PrefixListSettings { file, key, bucket }) = &self.prefix_list {
            ensure!(file.is_some() != key.is_some(), "prefix_list: one of `file` and `key` says where it is");
            ensure!(bucket.is_none() || key.is_some(), "prefix_list.bucket: there is no prefix_list.key");
            ensure!(self.finder.prefix.is_empty(), "`prefix_list` and `finder.prefix` are both set: leave one of them out");
        }
        self.key_map()?;
        self.worker.validate()?;
        Ok(())
    }

    /// The state file.
    pub fn open_state(&self) -> anyhow::Result<Sqlite> {
        let path = self.state.as_ref().context("this command needs `state = \"FILE\"` or `[cluster]` in the settings")?;
        Ok(Sqlite::open(path)?)
    }

    /// Queue and state, in a file or in AWS.
    pub async fn stores(&self) -> anyhow::Result<Stores> {
        match &self.cluster {
            Some(cluster) => aws::open(cluster).await.context("[cluster]"),
            None => self.stores_in_file(),
        }
    }

    /// The same for programs that look at a task: nothing is made in AWS, and the original's job table is left alone.
    pub async fn stores_as_they_are(&self) -> anyhow::Result<Stores> {
        match &self.cluster {
            Some(cluster) => aws::open(&Cluster { create: false, job_table: None, ..cluster.clone() }).await.context("[cluster]"),
            None => self.stores_in_file(),
        }
    }

    fn stores_in_file(&self) -> anyhow::Result<Stores> {
        let file = Arc::new(self.open_state()?);
        Ok(Stores { queue: Arc::clone(&file) as _, state: file })
    }

    /// Takes the job table of the original system over, and leaves it as it is; answers what there is to tell.
    pub async fn import_job_table(&self) -> anyhow::Result<Vec<String>> {
        let cluster = self.cluster.as_ref().context("this command needs [cluster] in the settings")?;
        aws::import_job_table(cluster).await
    }

    /// How source keys become destination keys.
    pub fn key_map(&self) -> dth_core::error::Result<KeyMap> {
        KeyMap::new(&self.destination_prefix).with_rules(&self.keys)
    }

    /// Whom the settings tell.
    pub async fn alarms(&self) -> anyhow::Result<Alarms> {
        self.alarms.open().await.context("[alarms]")
    }

    /// The task, put together.
    pub async fn task(&self) -> anyhow::Result<Sync> {
        if self.state.is_none() && self.cluster.is_none() {
            return self.task_with(None).await;
        }
        let stores = self.stores().await?;
        self.task_on(&stores).await
    }

    /// The task, on stores that are open.
    pub async fn task_on(&self, stores: &Stores) -> anyhow::Result<Sync> {
        let task = self.task_with(Some(Arc::clone(&stores.state))).await?;
        Ok(task.with_state(Arc::clone(&stores.queue), Arc::clone(&stores.state)))
    }

    async fn task_with(&self, notes: Option<Arc<dyn StateStore>>) -> anyhow::Result<Sync> {
        let task = Sync::new(self.source().await?, self.sink(notes).await?)
            .with_keys(self.key_map()?)
            .with_finder(self.selection().await?)
            .with_worker(self.worker.clone())
            .with_alarms(self.alarms().await?);
        Ok(match &self.manifest {
            Some(folder) => task.with_spool(Spool::new(folder)),
            None => task,
        })
    }

    /// How the finder finds, with the list of prefixes, which is read for it.
    pub async fn selection(&self) -> anyhow::Result<FinderSettings> {
        let prefixes = match &self.prefix_list {
            Some(list) => Some(self.prefixes(list).await.context("prefix_list")?),
            None => None,
        };
        Ok(FinderSettings { prefixes, ..self.finder.clone() })
    }

    async fn prefixes(&self, list: &PrefixListSettings) -> anyhow::Result<PrefixList> {
        let (store, key): (Arc<dyn Source>, String) = match (&list.file, &list.key) {
            (Some(file), _) => {
                let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let name = file.file_name().and_then(|name| name.to_str()).context("`file` names no file")?;
                (Arc::new(LocalDirectory::open(folder)?), name.to_owned())
            }
            (None, Some(key)) => match &list.bucket {
                Some(bucket) => (Arc::new(S3Store::new(S3Config { bucket: bucket.clone(), ..self.source.clone() })?), key.clone()),
                None => (self.source().await?, key.clone()),
            },
            (None, None) => bail!("one of `file` and `key` says where it is"),
        };
        let (retry, env) = (self.finder.retry, SystemEnv);
        let key = ObjectKey::new(key);
        let name = format!("{}/{key}", store.name());
        let read = || async { PrefixList::read(&name, store.read(&key, &ReadOptions::default()).await?.body).await };
        Ok(retry.run(&env, read).await?)
    }

    /// The source.
    pub async fn source(&self) -> anyhow::Result<Arc<dyn Source>> {
        Ok(match self.from().opened(None).await.context("source")? {
            Opened::Bucket(store) => store,
            Opened::Directory(store) => store,
            Opened::Registry(store) => store,
            Opened::Layout(store) => store,
        })
    }

    /// The sink. A registry notes in `notes` what it will want to know again.
    pub async fn sink(&self, notes: Option<Arc<dyn StateStore>>) -> anyhow::Result<Arc<dyn Sink>> {
        Ok(match self.to().opened(notes).await.context("destination")? {
            Opened::Bucket(store) => store,
            Opened::Directory(store) => store,
            Opened::Registry(store) => store,
            Opened::Layout(store) => store,
        })
    }

    fn from(&self) -> Side<'_> {
        Side {
            called: "source",
            bucket: &self.source,
            directory: self.source_directory.as_deref(),
            registry: self.source_registry.as_ref(),
            ecr: self.source_ecr.as_ref(),
            layout: self.source_layout.as_deref(),
        }
    }

    fn to(&self) -> Side<'_> {
        Side {
            called: "destination",
            bucket: &self.destination,
            directory: self.destination_directory.as_deref(),
            registry: self.destination_registry.as_ref(),
            ecr: self.destination_ecr.as_ref(),
            layout: self.destination_layout.as_deref(),
        }
    }

    /// Whether objects come from a bucket, and whether they go to one.
    pub fn between_buckets(&self) -> [bool; 2] {
        [self.from(), self.to()].map(|side| side.directory.is_none() && !side.holds_images())
    }

    /// Whether images come from a registry or layout.
    pub fn moves_images(&self) -> bool {
        self.from().holds_images()
    }

    /// The bucket that objects come from.
    pub fn source_bucket(&self) -> anyhow::Result<S3Store> {
        S3Store::new(self.source.clone()).context("source")
    }

    /// The bucket that they go to.
    pub fn destination_bucket(&self) -> anyhow::Result<S3Store> {
        S3Store::new(self.destination.clone()).context("destination")
    }
}

/// A message of serde about a value of the wrong type, without the value: it may be a secret in the wrong place.
fn without_value(message: &str) -> String {
    for wrong in ["invalid type: ", "invalid value: ", "unknown variant "] {
        if let Some((_, expected)) = message.strip_prefix(wrong).and_then(|rest| rest.rsplit_once(", expected ")) {
            return format!("{}, expected {expected}", wrong.trim_end_matches([':', ' ']));
        }
    }
    message.to_owned()
}

/// What the settings of one side name; one of them at most.
struct Side<'a> {
    called: &'static str,
    bucket: &'a S3Config,
    directory: Option<&'a Path>,
    registry: Option<&'a RegistryConfig>,
    ecr: Option<&'a EcrSettings>,
    layout: Option<&'a Path>,
}

/// What a side is.
enum Opened {
    Bucket(Arc<S3Store>),
    Directory(Arc<LocalDirectory>),
    Registry(Arc<Registry>),
    Layout(Arc<OciLayout>),
}

impl Side<'_> {
    fn holds_images(&self) -> bool {
        self.registry.is_some() || self.ecr.is_some() || self.layout.is_some()
    }

    async fn opened(&self, notes: Option<Arc<dyn StateStore>>) -> anyhow::Result<Opened> {
        let side = self.called;
        let of_ecr = self.ecr.is_some();
        let named = [
            (*self.bucket != S3Config::default(), format!("[{side}]")),
            (self.directory.is_some(), format!("{side}_directory")),
            (self.registry.is_some() && !of_ecr, format!("[{side}_registry]")),
            (of_ecr, format!("[{side}_ecr]")),
            (self.layout.is_some(), format!("{side}_layout")),
        ];
        let set: Vec<&str> = named.iter().filter(|(set, _)| *set).map(|(_, name)| name.as_str()).collect();
        ensure!(set.len() <= 1, "`{}` are both set: leave one of them out", set.join("` and `"));
        if let Some(directory) = self.directory {
            return Ok(Opened::Directory(Arc::new(LocalDirectory::open(directory)?)));
        }
        if let Some(layout) = self.layout {
            let open = if side == "source" { OciLayout::open } else { OciLayout::create };
            return Ok(Opened::Layout(Arc::new(open(layout, "image")?)));
        }
        let builder = match (self.ecr, self.registry) {
            (Some(ecr), config) => aws::ecr(ecr, config.cloned().unwrap_or_default()).await?,
            (None, Some(config)) => Registry::builder(config.clone()),
            (None, None) => return Ok(Opened::Bucket(Arc::new(S3Store::new(self.bucket.clone())?))),
        };
        let builder = match notes {
            Some(notes) => builder.with_notes(notes),
            None => builder,
        };
        Ok(Opened::Registry(Arc::new(builder.build()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_settings_are_placed_without_being_shown() {
        for (bad, told) in [
            (
                "[destination]\nbucket = \"b\"\n[destination.credentials]\nkind = \"static\"\nsecret_access_key = \"canary\n",
                "line 5, column ",
            ),
            ("[alarms]\nwebhok = \"https://hooks/canary\"\n", "line 2, column 1: unknown field `webhok`"),
            ("source.credentials = { kind = \"static\", access_key_id = \"a\", secret_acces_key = \"canary\" }\n", "secret_acces_key"),
            ("[alarms]\nevery_seconds = \"https://hooks/canary\"\n", "line 2, column 17: invalid type, expected u64"),
            ("alarms = \"https://hooks/canary\"\n", "expected struct AlarmSettings"),
            ("[source]\nprofile = \"canary, expected\"\n", "unknown variant, expected one of"),
        ] {
            let error = format!("{:#}", Settings::from_toml(bad).unwrap_err());
            assert!(error.contains(told) && !error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn what_would_be_left_out_is_refused() {
        for (bad, named) in [
            ("alarms.webhook_token = \"t\"", "alarms.webhook_token"),
            ("alarms.endpoint = \"http://x\"", "alarms.endpoint"),
            ("state = \"s.db\"\ncluster = { queue = \"q\", table = \"t\" }", "JOB_QUEUE_NAME"),
        ] {
            let error = Settings::from_toml(bad).unwrap().validate().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
