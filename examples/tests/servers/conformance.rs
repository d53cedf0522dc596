//! The promises of the conformance suite, on buckets of real servers.

use crate::support::venv;
use dth_core::conformance::{StoreBench, hold_all};
use dth_examples::servers::Server;
use dth_s3::S3Store;
use std::sync::Arc;

async fn hold(server: &Server, least: usize) {
    let store = Arc::new(S3Store::new(server.bucket("conformance")).unwrap());
    store.create_bucket().await.unwrap();
    let held = hold_all(&StoreBench::new(store.clone(), store)).await;
    assert!(held >= least, "only {held} promises are made");
}

#[tokio::test]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn ministack_keeps_its_promises() {
    hold(&Server::ministack(&venv()).await.unwrap(), 28).await;
}

#[tokio::test]
#[ignore = "needs SeaweedFS: run `cargo xtask test`"]
async fn seaweedfs_keeps_its_promises() {
    hold(&Server::seaweedfs(&venv()).await.unwrap(), 24).await;
}

#[tokio::test]
#[ignore = "needs radosgw (`DTH_RADOSGW=1`)"]
async fn radosgw_keeps_its_promises() {
    if std::env::var_os("DTH_RADOSGW").is_none() {
        println!("not run: DTH_RADOSGW is not set");
        return;
    }
    hold(&Server::radosgw().await.unwrap(), 24).await;
}
