//! Programs: several workers, a kill in the middle, and Amazon ECR's API.

use super::{
    images::{Client, must_be_equal},
    rig::{Act, Rig},
    server::{Auth, DockerRegistry, sum},
    two,
};
use crate::support::{bytes, venv};
use dth_examples::servers::Server;
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

/// Amazon ECR as ministack has it, under the name that Amazon gives it, over TLS and with ECR's logins: repositories that are made
/// with their settings, listings with digests and without tags, deletions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn repositories_of_ecr_are_made_listed_and_cleared() {
    let venv = venv();
    let (ecr, registry) = tokio::join!(Server::ministack(&venv), DockerRegistry::start(Auth::Open));
    let ecr = ecr.unwrap();
    let (as_ecr, certificate) = Rig::as_ecr(ecr.endpoint.trim_start_matches("http://")).await;
    let (source, back) = (Client::new(&registry.host), DockerRegistry::start(Auth::Open).await);
    // One of them in pieces.
    let layers = [bytes(30_000, 1), bytes(65 << 20, 2)];
    source.push_image("team/app", Some("v1"), false, &layers, "amd64").await;
    source.push_image("team/app", Some("v2"), false, &layers[..1], "amd64").await;
    source.push_image("other", Some("v1"), true, &layers, "amd64").await;
    let folder = tempfile::tempdir().unwrap();
    // No name of a registry: ECR tells it.
    let of_ecr = |side: &str, more: &str| {
        format!(
            "[{side}_registry]\nca_file = {:?}\nproxy = {{ kind = \"url\", url = \"http://{}\", no_proxy = \"127.0.0.1\" }}\n{more}\n\
             [{side}_ecr]\nregion = \"us-east-1\"\nendpoint = {:?}\nenvironment_prefix = \"ECR\"\n",
            certificate.ca_file(),
            as_ecr.host,
            ecr.endpoint
        )
    };
    let plain = |side: &str, host: &str, more: &str| format!("[{side}_registry]\nregistry = {host:?}\ninsecure = true\n{more}\n");
    let write = |name: &str, text: String| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let state = |name: &str| format!("state = \"{}\"\ndestination_prefix = \"mirror\"\n", folder.path().join(name).display());
    let copy = async |file: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ecr_copy"));
        command.args(["-c", file]).args(more).env("ECR_ACCESS_KEY_ID", "test").env("ECR_SECRET_ACCESS_KEY", "test").stdin(Stdio::null());
        let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (out.status.code(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    };
    let select = "select.images = [\"team/app:ALL_TAGS\", \"other:v1\"]";
    // Without leave, none is made, and that is said (R13).
    let refused = write(
        "refused.toml",
        [state("a.db"), plain("source", &registry.host, select), of_ecr("destination", "")].concat() + "[worker]\nmax_attempts = 1\n",
    );
    let (code, told) = copy(&refused, &[]).await;
    assert!(code == Some(3) && told.contains("the repository does not exist"), "{told}");
    let policy = r#"{"rules":[{"rulePriority":1,"selection":{"tagStatus":"untagged","countType":"sinceImagePushed","countUnit":"days","countNumber":14},"action":{"type":"expire"}}]}"#;
    let made = format!(
        "create = {{ immutable_tags = false, scan_on_push = true, kms_key = \"aws/ecr\", lifecycle_policy = '{policy}', tags = {{ by = \"dth\" }} }}\n"
    );
    let text = [state("b.db"), plain("source", &registry.host, select), of_ecr("destination", ""), made].concat();
    let out = write("out.toml", text.clone());
    let (code, told) = copy(&out, &[]).await;
    assert_eq!(code, Some(0), "{told}");
    let facts = ecr
        .python(
            &venv,
            "ecr = client('ecr')\nr = ecr.describe_repositories(repositoryNames=['mirror/team/app'])['repositories'][0]\n\
             p = ecr.get_lifecycle_policy(repositoryName='mirror/team/app')['lifecyclePolicyText']\n\
             print(r['imageScanningConfiguration']['scanOnPush'], r['encryptionConfiguration']['encryptionType'], r['imageTagMutability'], 'untagged' in p)\n\
             print(sorted(t for i in ecr.describe_images(repositoryName='mirror/team/app')['imageDetails'] for t in i.get('imageTags', [])))\n",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(facts.trim(), "True KMS MUTABLE True\n['v1', 'v2']");
    let (code, told) = copy(&out, &["--report", "json"]).await;
    assert!(code == Some(0) && told.contains("\"unchanged\": {\n        \"objects\": 3"), "{told}");
    // Back from there: its listing tells digests, and what has no tag.
    ecr.python(
        &venv,
        "ecr = client('ecr')\nm = ecr.batch_get_image(repositoryName='mirror/other', imageIds=[{'imageTag': 'v1'}])['images'][0]\n\
         text = m['imageManifest'].replace('\"schemaVersion\"', ' \"schemaVersion\"')\n\
         import urllib.request, os, hashlib\n\
         d = 'sha256:' + hashlib.sha256(text.encode()).hexdigest()\n\
         u = os.environ['DTH_ENDPOINT'] + '/v2/mirror/other/manifests/' + d\n\
         r = urllib.request.Request(u, text.encode(), {'Content-Type': 'application/vnd.docker.distribution.manifest.v2+json'}, method='PUT')\n\
         print(urllib.request.urlopen(r).status, d)\n",
        &[],
    )
    .await
    .unwrap();
    let more = "select.repositories = [\"mirror/**\"]\nselect.untagged = true";
    let text =
        format!("state = \"{}\"\n", folder.path().join("c.db").display()) + &of_ecr("source", more) + &plain("destination", &back.host, "");
    let (code, told) = copy(&write("back.toml", text), &[]).await;
    assert_eq!(code, Some(0), "{told}");
    let there = Client::new(&back.host);
    for (name, tag) in [("team/app", "v1"), ("team/app", "v2"), ("other", "v1")] {
        assert_eq!(there.graph(&format!("mirror/{name}"), tag).await, source.graph(name, tag).await, "{name}");
    }
    assert!(told.contains("copied                                  4"), "three tags, and one without: {told}");
    // What the source lost goes, by ECR's own call.
    let digest = source.manifest("team/app", "v2").await.unwrap().0;
    source.call("DELETE", &format!("/v2/team/app/manifests/{digest}"), &[], bytes::Bytes::new()).await;
    let (code, told) = copy(&write("clear.toml", text_with_deletions(&text_of(&out))), &[]).await;
    assert_eq!(code, Some(0), "{told}");
    let left = ecr
        .python(&venv, "print([i.get('imageTags') for i in client('ecr').describe_images(repositoryName='mirror/team/app')['imageDetails'] if i.get('imageTags')])", &[])
        .await
        .unwrap();
    assert_eq!(left.trim(), "[['v1']]");
    let asked = as_ecr.asked();
    assert!(asked.iter().any(|a| a.starts_with("PATCH /v2/mirror/")), "{asked:?}");
}

fn text_of(file: &str) -> String {
    std::fs::read_to_string(file).unwrap()
}

fn text_with_deletions(text: &str) -> String {
    format!("{text}\n[finder]\ndelete_extra = true\n")
}
