//! Servers, buckets, an independent comparison, and wrappers that meddle.

use dth_core::{
    checksum::hex,
    index::{Index, ListFrom, ListRequest},
    object::{Attributes, ObjectKey, Tags},
    sink::{Body, PutOptions, Sink},
    source::{ReadOptions, Source},
};
use dth_examples::{Settings, servers::Server};
use dth_s3::S3Store;
use futures_lite::StreamExt;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, path::PathBuf};

pub(crate) fn venv() -> PathBuf {
    let path = PathBuf::from(std::env::var("DTH_VENV").expect("run these tests by `cargo xtask test`, which sets DTH_VENV"));
    if path.is_absolute() { path } else { PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path) }
}

/// Two buckets on one strict server each, made.
pub(crate) struct Pair {
    pub(crate) settings: Settings,
    pub(crate) source: S3Store,
    pub(crate) sink: S3Store,
    pub(crate) folder: tempfile::TempDir,
    servers: (Server, Server),
}

impl Pair {
    pub(crate) fn source_server(&self) -> &Server {
        &self.servers.0
    }

    pub(crate) fn sink_server_mut(&mut self) -> &mut Server {
        &mut self.servers.1
    }

    pub(crate) fn sink_server(&self) -> &Server {
        &self.servers.1
    }

    /// The key pairs of both servers.
    pub(crate) fn keys(&self) -> [(String, String); 2] {
        [&self.servers.0, &self.servers.1].map(|s| (s.keys().0.to_owned(), s.keys().1.to_owned()))
    }
}

pub(crate) async fn ministacks() -> Pair {
    let venv = venv();
    let (from, to) = tokio::try_join!(Server::ministack(&venv), Server::ministack(&venv)).unwrap();
    pair(from, to).await
}

pub(crate) async fn pair(from: Server, to: Server) -> Pair {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        source: from.bucket("source"),
        destination: to.bucket("destination"),
        state: Some(folder.path().join("state.db")),
        ..Settings::default()
    };
    let (source, sink) = (settings.source_bucket().unwrap(), settings.destination_bucket().unwrap());
    source.create_bucket().await.unwrap();
    sink.create_bucket().await.unwrap();
    Pair { settings, source, sink, folder, servers: (from, to) }
}

/// Bytes that differ with the seed and show every shift.
pub(crate) fn bytes(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut body = Vec::with_capacity(size + 8);
    while body.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        body.extend_from_slice(&state.to_be_bytes());
    }
    body.truncate(size);
    body
}

pub(crate) async fn put(store: &S3Store, key: &str, body: Vec<u8>) {
    store.put(&key.into(), Body::Bytes(vec![body.into()]), &PutOptions::default()).await.unwrap();
}

pub(crate) async fn put_multipart(store: &S3Store, key: &str, body: &[u8], part: usize, options: &PutOptions) {
    let key: ObjectKey = key.into();
    let upload = store.create_upload(&key, options).await.unwrap();
    let mut parts = Vec::new();
    for (number, chunk) in (1..).zip(body.chunks(part)) {
        let chunk = Body::Bytes(vec![chunk.to_vec().into()]);
        parts.push(store.put_part(&key, &upload, number, chunk, None).await.unwrap());
    }
    store.complete_upload(&key, &upload, &parts, options).await.unwrap();
}

/// Everything that a bucket shows: hash of the bytes, content headers and metadata, tags.
pub(crate) async fn contents(store: &S3Store, tags: bool) -> BTreeMap<ObjectKey, (String, Attributes, Tags)> {
    let mut found = BTreeMap::new();
    let mut request = ListRequest::default();
    loop {
        let page = store.list(&request).await.unwrap();
        for entry in page.entries {
            let mut read = store.read(&entry.key, &ReadOptions::default()).await.unwrap();
            let mut hash = Sha256::new();
            while let Some(chunk) = read.body.next().await {
                hash.update(chunk.unwrap());
            }
            let tags = if tags { store.tags(&entry.key, None).await.unwrap() } else { Tags::new() };
            found.insert(entry.key, (hex(&hash.finalize()), read.info.attributes, tags));
        }
        match page.next {
            Some(token) => request.from = ListFrom::Token(token),
            None => return found,
        }
    }
}

pub(crate) async fn open_uploads(store: &S3Store) -> usize {
    store.list_uploads("", None).await.unwrap().0.len()
}

pub(crate) async fn enable_versioning(server: &Server, bucket: &str) {
    let script = r#"
s3 = client("s3", aws_access_key_id=sys.argv[2], aws_secret_access_key=sys.argv[3])
s3.put_bucket_versioning(Bucket=sys.argv[1], VersioningConfiguration={"Status": "Enabled"})"#;
    let (access, secret) = server.keys();
    server.python(&venv(), script, &[bucket, access, secret]).await.unwrap();
}
