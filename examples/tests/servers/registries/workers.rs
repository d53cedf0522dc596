//! Programs: several workers, and a kill in the middle.

use super::{
    images::{Client, must_be_equal},
    rig::{Act, Rig},
    server::sum,
    two,
};
use crate::support::bytes;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};
use tokio::time::sleep;

fn settings(folder: &Path, source: &str, destination: &str, images: &[String]) -> PathBuf {
    let file = folder.join("task.toml");
    let text = format!(
        "state = \"{}\"\n[source_registry]\nregistry = {source:?}\ninsecure = true\nselect.images = {images:?}\n{destination}\n\
         [worker]\nlease_seconds = 5\n[worker.transfer.retry]\ntries = 3\n",
        folder.join("state.db").display()
    );
    std::fs::write(&file, text).unwrap();
    file
}

fn to(host: &str) -> String {
    format!("[destination_registry]\nregistry = {host:?}\ninsecure = true")
}

async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// Two workers, many images over one base: nothing is sent twice, and everybody is done at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn workers_send_each_blob_once() {
    let (from, there) = two().await;
    let source = Client::new(&from.host);
    let mut list = Vec::new();
    for n in 0..24u64 {
        let layers = [bytes(6 << 20, 1), bytes(300_000, 2), bytes(200_000, 100 + n)];
        source.push_image(&format!("app{n}"), Some("v1"), n % 2 == 0, &layers, "amd64").await;
        list.push(format!("app{n}:v1"));
    }
    // Slow enough that both workers are at it together.
    let slow =
        Rig::before(&from, |asked| if asked.path.contains("/blobs/") { Act::Slowly(Duration::from_millis(30)) } else { Act::Pass }).await;
    let folder = tempfile::tempdir().unwrap();
    let file = settings(folder.path(), &slow.host, &format!("{}\n[finder]\npack_jobs = 3", to(&there.host)), &list);
    let config = file.display().to_string();
    let told = run(env!("CARGO_BIN_EXE_doctor"), &["-c", &config, "--write"]).await;
    let told = (told.status.success(), String::from_utf8_lossy(&told.stdout).into_owned());
    let tried = ["source: list what is selected", "source: manifest of app0:v1", "destination: write a blob to app0"];
    assert!(told.0 && tried.iter().all(|what| told.1.contains(&format!("ok    {what}"))), "{}", told.1);
    there.requests().await;
    let mut workers: Vec<_> =
        (0..2).map(|_| Command::new(env!("CARGO_BIN_EXE_worker")).args(["-c", &config]).stdin(Stdio::null()).spawn().unwrap()).collect();
    let found = run(env!("CARGO_BIN_EXE_finder"), &["-c", &config, "--wait"]).await;
    for worker in &mut workers {
        let _ = worker.kill();
        let _ = worker.wait();
    }
    assert!(found.status.success(), "{}{}", String::from_utf8_lossy(&found.stdout), String::from_utf8_lossy(&found.stderr));
    let written = there.requests().await;
    println!("two workers: {written:?}");
    assert_eq!((sum(&written, "PUT upload 201"), sum(&written, "POST mount 201")), (24 * 2 + 2, 23 * 2), "{written:?}");
    let client = Client::new(&there.host);
    must_be_equal(&source, &client, &list).await;
    // What the destination loses later is found, too.
    let verify = async || {
        let told = run(env!("CARGO_BIN_EXE_verify"), &["-c", &config]).await;
        (told.status.code(), String::from_utf8_lossy(&told.stdout).into_owned())
    };
    let (code, told) = verify().await;
    assert!(code == Some(0) && told.contains("24 checked (and the 96 that they need): 24 as recorded on both sides"), "{told}");
    let digest = super::digest(&bytes(6 << 20, 1));
    client.call("DELETE", &format!("/v2/app7/blobs/{digest}"), &[], bytes::Bytes::new()).await;
    let (code, told) = verify().await;
    assert!(code == Some(3) && told.contains("1 wrong at the destination\nwrong: app7:v1"), "{told}");
}

/// kill -9 in the middle of a layer: nothing has a tag by then, and the next run brings it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn a_kill_in_a_layer_leaves_no_half_image() {
    let (from, there) = two().await;
    let (source, client) = (Client::new(&from.host), Client::new(&there.host));
    source.push_image("app", Some("v1"), false, &[bytes(300 << 20, 1), bytes(10, 2)], "amd64").await;
    let slow = Rig::before(&from, |asked| {
        if asked.method == "GET" && asked.path.contains("/blobs/") { Act::Slowly(Duration::from_millis(2)) } else { Act::Pass }
    })
    .await;
    let list = ["app:v1".to_owned()];
    let folder = tempfile::tempdir().unwrap();
    let file = settings(folder.path(), &slow.host, &to(&there.host), &list).display().to_string();
    for n in 1..=2 {
        let mut copying = Command::new(env!("CARGO_BIN_EXE_ecr_copy")).args(["-c", &file]).stdin(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(1500 * n)).await;
        assert!(copying.try_wait().unwrap().is_none(), "it was to be killed on its way");
        copying.kill().unwrap();
        copying.wait().unwrap();
        assert!(client.manifest("app", "v1").await.is_none() && client.tags("app").await.is_empty());
    }
    let began = there.requests().await;
    assert!(sum(&began, "PATCH upload 202") > 0, "the layer was on its way: {began:?}");
    // What was under way is delivered again once its lease has ended, or the new run takes it up.
    settings(folder.path(), &from.host, &to(&there.host), &list);
    let done = run(env!("CARGO_BIN_EXE_ecr_copy"), &["-c", &file]).await;
    assert!(done.status.success(), "{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(client.graph("app", "v1").await, source.graph("app", "v1").await);
}
