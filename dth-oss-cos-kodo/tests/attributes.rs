//! The attribute contract: `docs/attributes.md` is what the capabilities of all stores say. `DTH_BLESS=1` writes it anew.

#![expect(clippy::unwrap_used, reason = "tests")]

use dth_core::{
    attribute::{Attribute, Fate},
    memory::MemoryStore,
    object::Attributes,
    sink::{Body, PutOptions, Sink, SinkCapability},
    source::{Source, SourceCapability},
    sync::Sync,
    transfer::TransferSettings,
    worker::WorkerSettings,
};
use dth_oss_cos_kodo::{OpendalSink, OpendalSource};
use dth_s3::{CredentialsConfig, LocalDirectory, ObjectStoreAdapter, Profile, S3Config, S3Store};
use std::{collections::BTreeMap, fmt::Write as _, path::Path, sync::Arc};

struct Stores {
    sources: Vec<(String, SourceCapability)>,
    sinks: Vec<(String, Arc<dyn Sink>)>,
    _folder: tempfile::TempDir,
}

/// All stores of the family that hold objects.
fn stores() -> Stores {
    let folder = tempfile::tempdir().unwrap();
    let mut sources = Vec::new();
    let mut sinks: Vec<(String, Arc<dyn Sink>)> = Vec::new();
    for profile in Profile::ALL {
        let config = S3Config {
            bucket: "b".into(),
            region: "r".into(),
            endpoint: Some("http://store.example".into()),
            profile,
            credentials: CredentialsConfig::Anonymous,
            ..S3Config::default()
        };
        let store = S3Store::new(config).unwrap();
        sources.push((profile.as_str().to_owned(), store.source_capability()));
        sinks.push((profile.as_str().to_owned(), Arc::new(store)));
    }
    let directory = LocalDirectory::open(folder.path()).unwrap();
    sources.push(("directory".into(), directory.source_capability()));
    sinks.push(("directory".into(), Arc::new(directory)));
    let adapter = ObjectStoreAdapter::new(Arc::new(object_store::memory::InMemory::new()), "memory");
    sources.push(("object_store".into(), adapter.source_capability()));
    sinks.push(("object_store".into(), Arc::new(adapter)));
    let operator = opendal::Operator::new(opendal::services::Memory::default()).unwrap();
    sources.push(("opendal memory".into(), OpendalSource::new(operator.clone()).unwrap().source_capability()));
    sinks.push(("opendal memory".into(), Arc::new(OpendalSink::new(operator).unwrap())));
    Stores { sources, sinks, _folder: folder }
}

fn fates(source: &SourceCapability, sink: &SinkCapability) -> Vec<Fate> {
    Attribute::ALL.iter().map(|a| Fate::of(*a, source, sink)).collect()
}

/// Stores that are alike in every pair, together.
fn alike<T>(stores: &[(String, T)], row: impl Fn(&T) -> Vec<Vec<Fate>>) -> Vec<(Vec<String>, usize)> {
    let mut groups: Vec<(Vec<Vec<Fate>>, Vec<String>, usize)> = Vec::new();
    for (at, (name, store)) in stores.iter().enumerate() {
        let row = row(store);
        match groups.iter_mut().find(|(known, ..)| *known == row) {
            Some((_, names, _)) => names.push(name.clone()),
            None => groups.push((row, vec![name.clone()], at)),
        }
    }
    groups.into_iter().map(|(_, names, at)| (names, at)).collect()
}

#[test]
fn the_table_is_what_the_code_says() {
    let Stores { sources, sinks, .. } = stores();
    let capabilities: Vec<(String, SinkCapability)> = sinks.iter().map(|(name, sink)| (name.clone(), sink.sink_capability())).collect();
    let from = alike(&sources, |source| capabilities.iter().map(|(_, sink)| fates(source, sink)).collect());
    let to = alike(&capabilities, |sink| sources.iter().map(|(_, source)| fates(source, sink)).collect());
    let mut text = String::from(include_str!("attributes.md"));
    let heads: Vec<&str> = Attribute::ALL.iter().map(|a| a.as_str()).collect();
    for (names, at) in &from {
        let _ = write!(text, "\n### From {}\n\n| to | {} |\n|{}\n", names.join(", "), heads.join(" | "), "---|".repeat(heads.len() + 1));
        for (names, sink) in &to {
            let cells: Vec<&str> = fates(&sources[*at].1, &capabilities[*sink].1).iter().map(|f| f.as_str()).collect();
            let _ = writeln!(text, "| {} | {} |", names.join(", "), cells.join(" | "));
        }
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/attributes.md");
    if std::env::var_os("DTH_BLESS").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    assert!(std::fs::read_to_string(&file).unwrap_or_default() == text, "{} is not what the code says: DTH_BLESS=1", file.display());
}

/// An object that has everything.
fn everything() -> Attributes {
    let text = |t: &str| Some(t.to_owned());
    Attributes {
        content_type: text("text/plain"),
        content_encoding: text("gzip"),
        content_language: text("de"),
        content_disposition: text("inline"),
        cache_control: text("no-store"),
        expires: text("Thu, 01 Jan 2099 00:00:00 GMT"),
        website_redirect: text("/elsewhere"),
        object_lock: text("COMPLIANCE 2099-01-01T00:00:00Z"),
        user: [("ascii".to_owned(), "value".into()), ("other".to_owned(), "日本".into())].into(),
    }
}

/// What a sink says of an object is what its capability says of attributes: the table and the reports cannot differ.
#[test]
fn what_is_reported_is_what_is_not_kept() {
    for (name, sink) in stores().sinks {
        let keeps = sink.sink_capability().keeps;
        let told = sink.not_carried(&everything());
        let names: BTreeMap<Attribute, String> = Attribute::ALL
            .iter()
            .filter_map(|attribute| {
                let text = match attribute {
                    Attribute::Metadata => "metadata ascii",
                    Attribute::NonAsciiMetadata => "metadata other",
                    Attribute::Tags | Attribute::Acl | Attribute::StorageClass => return None,
                    Attribute::Checksum | Attribute::Modified | Attribute::Version => return None,
                    other => other.as_str(),
                };
                Some((*attribute, text.to_owned()))
            })
            .collect();
        for (attribute, text) in names {
            assert_eq!(told.contains(&text), !keeps.contains(attribute), "{name}: {text}: {told:?}");
        }
    }
}

/// What is lost counts in the report and stands in the record; with `strict` it is a failure that names it, and nothing arrives.
#[tokio::test]
async fn losses_are_counted_or_refused() {
    let source = MemoryStore::default();
    let options = PutOptions { attributes: everything(), tags: vec![("k".into(), "v".into())], ..PutOptions::default() };
    source.put(&"rich".into(), Body::Bytes(vec!["bytes".into()]), &options).await.unwrap();
    source.put(&"plain".into(), Body::Bytes(vec!["bytes".into()]), &PutOptions::default()).await.unwrap();
    for strict in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let sink = Arc::new(LocalDirectory::open(folder.path()).unwrap());
        let transfer = TransferSettings { strict, ..TransferSettings::default() };
        let worker = WorkerSettings { transfer, max_attempts: 1, ..WorkerSettings::default() };
        let report = Sync::new(Arc::new(source.clone()), sink).with_worker(worker).run().await.unwrap();
        assert!(folder.path().join("plain").exists());
        assert_eq!(folder.path().join("rich").exists(), !strict, "{report}");
        let lost = report.run.outcome("copied:attributes_lost").objects;
        let failed = report.run.outcome("failed:unrepresentable").objects;
        assert_eq!((lost, failed), if strict { (0, 1) } else { (1, 0) }, "{report}");
        assert_eq!(report.is_success(), !strict);
    }
}
