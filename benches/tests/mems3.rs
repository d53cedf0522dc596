//! The measuring server keeps the promises of a store, rejections included: a wrong condition, checksum, range, part or etag is refused
//! by it as by the real ones (`dth_core::conformance`).

#![expect(clippy::unwrap_used, reason = "tests")]

use dth_benches::mems3::MemS3;
use dth_core::{conformance::StoreBench, scope::TaskScope};
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

async fn bench() -> StoreBench {
    let config = S3Config {
        bucket: "b".into(),
        region: "us-east-1".into(),
        endpoint: Some(format!("http://127.0.0.1:{}", port())),
        profile: Profile::Aws,
        credentials: CredentialsConfig::Static { access_key_id: "a".into(), secret_access_key: Secret::new("b"), session_token: None },
        min_part: Some(1 << 10),
        ..S3Config::default()
    };
    let store = Arc::new(S3Store::new(config).unwrap());
    store.create_bucket().await.unwrap();
    StoreBench::new(store.clone(), store)
}

dth_core::conformance_store!(bench);
