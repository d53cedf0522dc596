//! The measuring server keeps the promises of a store, rejections included: a wrong condition, checksum, range, part or etag is refused
//! by it as by the real ones (`dth_core::conformance`).

#![expect(clippy::unwrap_used, reason = "tests")]

use dth_benches::mems3::{Etags, MemS3, Seed};
use dth_core::{
    conformance::StoreBench,
    index::Index,
    scope::TaskScope,
    sink::{Body, PutOptions, Sink},
    source::{ReadOptions, Source},
};
use dth_s3::{CredentialsConfig, Profile, S3Config, S3Store, Secret};
use std::sync::{Arc, OnceLock};
use tokio::net::TcpListener;

/// A server on a thread of its own, for all tests.
fn port() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
                sender.send(listener.local_addr().unwrap().port()).unwrap();
                let mut scope = TaskScope::new();
                scope.spawn(async move { MemS3::default().serve(listener).await.unwrap() });
                scope.join_all().await;
            });
        });
        receiver.recv().unwrap()
    })
}

fn store(bucket: &str, port: u16) -> S3Store {
    let config = S3Config {
        bucket: bucket.into(),
        region: "us-east-1".into(),
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        profile: Profile::Aws,
        credentials: CredentialsConfig::Static { access_key_id: "a".into(), secret_access_key: Secret::new("b"), session_token: None },
        min_part: Some(1 << 10),
        ..S3Config::default()
    };
    S3Store::new(config).unwrap()
}

async fn bench() -> StoreBench {
    let store = Arc::new(store("b", port()));
    store.create_bucket().await.unwrap();
    StoreBench::new(store.clone(), store)
}

dth_core::conformance_store!(bench);

/// Etags that are no MD5 are told of as Amazon S3 does under KMS: nobody may take them for one.
#[tokio::test]
async fn opaque_etags_say_so() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = MemS3::default();
    let mut scope = TaskScope::new();
    let serving = server.clone();
    scope.spawn(async move { serving.serve(listener).await.unwrap() });
    for (etags, opaque) in [(Etags::Md5, false), (Etags::Opaque, true)] {
        server.seed(&Seed { bucket: "b".into(), objects: 1, size: 10, part: 0, folders: 1, etags });
        let store = store("b", port);
        let key = "d000/k0000000.bin".into();
        assert_eq!(store.head(&key, None).await.unwrap().opaque_etag, opaque);
        let read = store.read(&key, &ReadOptions::default()).await.unwrap();
        assert_eq!(read.info.opaque_etag, opaque);
        let options = PutOptions::default();
        let written = store.put(&key, Body::Bytes(vec![bytes::Bytes::from_static(b"x")]), &options).await.unwrap();
        assert_eq!(written.opaque_etag, opaque);
    }
}
