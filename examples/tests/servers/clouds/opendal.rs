//! OpenDAL on a real store: its S3 service before ministack, as source and as sink.

use crate::support::{bytes, contents, put, venv};
use dth_core::{
    conformance::{StoreBench, Verdict, store},
    http::{Http, HttpSettings},
    sync::Sync,
};
use dth_examples::servers::Server;
use dth_oss_cos_kodo::{OpendalSink, OpendalSource, over_http};
use dth_s3::S3Store;
use opendal::{Operator, services::S3};
use std::sync::Arc;

fn operator(server: &Server, bucket: &str) -> Operator {
    let (access, secret) = server.keys();
    let service = S3::default().bucket(bucket).endpoint(&server.endpoint).region("us-east-1");
    let operator = Operator::new(service.access_key_id(access).secret_access_key(secret)).unwrap();
    over_http(operator, Http::new(HttpSettings::default()).unwrap())
}

/// These write keys with `!` and `'`, of which OpenDAL's S3 service makes requests whose signature ministack computes otherwise. They
/// are refused, and nothing is written.
const OTHER_SIGNATURES: [&str; 4] = [
    "a_listing_is_whole_and_in_order",
    "keys_stay_themselves",
    "a_task_arrives_whole_and_does_nothing_twice",
    "hostile_keys_travel_exactly",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn opendal_keeps_its_promises() {
    let server = Server::ministack(&venv()).await.unwrap();
    S3Store::new(server.bucket("conformance")).unwrap().create_bucket().await.unwrap();
    let operator = operator(&server, "conformance");
    let source = Arc::new(OpendalSource::new(operator.clone()).unwrap());
    let bench = StoreBench::new(source, Arc::new(OpendalSink::new(operator).unwrap()));
    let mut held = 0;
    for (name, promise) in store::PROMISES.iter().filter(|(name, _)| !OTHER_SIGNATURES.contains(name)) {
        match promise(&bench.anew()).await {
            Ok(Verdict::Held) => held += 1,
            Ok(Verdict::NotMade(why)) => println!("{name}: not run: {why}"),
            Err(broken) => panic!("{name}: {broken}"),
        }
    }
    assert!(held >= 15, "only {held} promises are made");
}

/// From a bucket by OpenDAL to one by our own client, and back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn opendal_moves_objects_both_ways() {
    let server = Server::ministack(&venv()).await.unwrap();
    let [here, there, back] = ["here", "there", "back"].map(|name| S3Store::new(server.bucket(name)).unwrap());
    for store in [&here, &there, &back] {
        store.create_bucket().await.unwrap();
    }
    for (key, size) in [("a/b", 0), ("a/é +%2F", 1000), ("plain", 5 << 20), ("large", 20 << 20)] {
        put(&here, key, bytes(size, size as u64)).await;
    }
    let out = Sync::new(Arc::new(OpendalSource::new(operator(&server, "here")).unwrap()), Arc::new(there.clone()));
    let report = out.run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 4, "{report}");
    assert_eq!(contents(&there, false).await, contents(&here, false).await);
    let home = Sync::new(Arc::new(there.clone()), Arc::new(OpendalSink::new(operator(&server, "back")).unwrap()));
    let report = home.run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 4, "{report}");
    assert_eq!(contents(&back, false).await, contents(&here, false).await);
}
