//! Amazon ECR: its API as ministack has it, its registry by its own name, and what it does otherwise than its emulator.

use super::{
    images::Client,
    rig::{Act, Asked, Rig},
    server::{Auth, Certificate, DockerRegistry, ecr_and_registry, host},
};
use crate::support::{bytes, venv};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

/// `ecr_copy` with these settings: how it ended, and what it said.
async fn copy(file: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr_copy"));
    command.arg("-c").arg(file).args(more).env("ECR_ACCESS_KEY_ID", "test").env("ECR_SECRET_ACCESS_KEY", "test").stdin(Stdio::null());
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (out.status.code(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

/// Settings of a side that is ECR. No name of a registry: ECR tells it.
fn of_ecr(side: &str, rig: &Rig, certificate: &Certificate, endpoint: &str, more: &str) -> String {
    format!(
        "[{side}_registry]\nca_file = {:?}\nproxy = {{ kind = \"url\", url = \"http://{}\", no_proxy = \"127.0.0.1\" }}\n{more}\n\
         [{side}_ecr]\nregion = \"us-east-1\"\nendpoint = {endpoint:?}\nenvironment_prefix = \"ECR\"\n",
        certificate.ca_file(),
        rig.host
    )
}

fn plain(side: &str, registry: &DockerRegistry, more: &str) -> String {
    format!("[{side}_registry]\nregistry = {:?}\ninsecure = true\n{more}\n", registry.host)
}

/// A folder for settings and states.
struct Files(tempfile::TempDir);

impl Files {
    fn settings(&self, name: &str, text: &[&str]) -> PathBuf {
        let file = self.0.path().join(format!("{name}.toml"));
        std::fs::write(&file, format!("state = \"{}\"\n{}", self.0.path().join(name).display(), text.concat())).unwrap();
        file
    }
}

/// Amazon ECR as ministack has it, under the name that Amazon gives it, over TLS and with ECR's logins: repositories that are made
/// with their settings, listings with digests and without tags, deletions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn repositories_of_ecr_are_made_listed_and_cleared() {
    let (ecr, registry) = ecr_and_registry().await;
    // A policy that is refused, because the repository is not everywhere yet, is not forgotten.
    let policies = AtomicU32::new(0);
    let api = Rig::before_host(host(&ecr), move |asked| {
        if asked.target == "PutLifecyclePolicy" && policies.fetch_add(1, SeqCst) == 0 {
            return Act::Answer(400, vec![], r#"{"__type":"RepositoryNotFoundException","message":"not yet"}"#);
        }
        Act::Pass
    })
    .await;
    let endpoint = format!("http://{}", api.host);
    let (as_ecr, certificate) = Rig::as_ecr(host(&ecr)).await;
    let (source, back) = (Client::new(&registry.host), DockerRegistry::start(Auth::Open).await);
    // One of them in pieces.
    let layers = [bytes(30_000, 1), bytes(65 << 20, 2)];
    source.push_image("team/app", Some("v1"), false, &layers, "amd64").await;
    source.push_image("team/app", Some("v2"), false, &layers[..1], "amd64").await;
    source.push_image("other", Some("v1"), true, &layers, "amd64").await;
    let files = Files(tempfile::tempdir().unwrap());
    let of_ecr = |side: &str, more: &str| of_ecr(side, &as_ecr, &certificate, &endpoint, more);
    let select = plain("source", &registry, "select.images = [\"team/app:ALL_TAGS\", \"other:v1\"]");
    let prefix = "destination_prefix = \"mirror\"\n";
    // Without leave, none is made, and that is said (R13).
    let refused = files.settings("refused", &[prefix, &select, &of_ecr("destination", ""), "[worker]\nmax_attempts = 1\n"]);
    let (code, told) = copy(&refused, &[]).await;
    assert!(code == Some(3) && told.contains("the repository does not exist"), "{told}");
    let policy = r#"{"rules":[{"rulePriority":1,"selection":{"tagStatus":"untagged","countType":"sinceImagePushed","countUnit":"days","countNumber":14},"action":{"type":"expire"}}]}"#;
    let made = format!(
        "create = {{ immutable_tags = false, scan_on_push = true, kms_key = \"aws/ecr\", lifecycle_policy = '{policy}', tags = {{ by = \"dth\" }} }}\n"
    );
    let out = [prefix, &select, &of_ecr("destination", ""), &made];
    let (code, told) = copy(&files.settings("out", &out), &[]).await;
    assert_eq!(code, Some(0), "{told}");
    let facts = ecr
        .python(
            &venv(),
            "ecr = client('ecr')\nr = ecr.describe_repositories(repositoryNames=['mirror/team/app'])['repositories'][0]\n\
             p = [ecr.get_lifecycle_policy(repositoryName='mirror/' + n)['lifecyclePolicyText'] for n in ('team/app', 'other')]\n\
             print(r['imageScanningConfiguration']['scanOnPush'], r['encryptionConfiguration']['encryptionType'], r['imageTagMutability'], all('untagged' in one for one in p))\n\
             print(sorted(t for i in ecr.describe_images(repositoryName='mirror/team/app')['imageDetails'] for t in i.get('imageTags', [])))\n",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(facts.trim(), "True KMS MUTABLE True\n['v1', 'v2']");
    let (code, told) = copy(&files.settings("out", &out), &["--report", "json"]).await;
    assert!(code == Some(0) && told.contains("\"unchanged\": {\n        \"objects\": 3"), "{told}");
    // Back from there: its listing tells digests, and what has no tag.
    ecr.python(
        &venv(),
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
    let (code, told) = copy(&files.settings("back", &[&of_ecr("source", more), &plain("destination", &back, "")]), &[]).await;
    assert_eq!(code, Some(0), "{told}");
    let there = Client::new(&back.host);
    for (name, tag) in [("team/app", "v1"), ("team/app", "v2"), ("other", "v1")] {
        assert_eq!(there.graph(&format!("mirror/{name}"), tag).await, source.graph(name, tag).await, "{name}");
    }
    assert!(told.contains("copied                                  4"), "three tags, and one without: {told}");
    // What the source lost goes, by ECR's own call.
    let digest = source.manifest("team/app", "v2").await.unwrap().0;
    source.call("DELETE", &format!("/v2/team/app/manifests/{digest}"), &[], bytes::Bytes::new()).await;
    let (code, told) = copy(&files.settings("out", &[&out[..], &["[finder]\ndelete_extra = true\n"]].concat()), &[]).await;
    assert_eq!(code, Some(0), "{told}");
    let left = ecr
        .python(&venv(), "print([i.get('imageTags') for i in client('ecr').describe_images(repositoryName='mirror/team/app')['imageDetails'] if i.get('imageTags')])", &[])
        .await
        .unwrap();
    assert_eq!(left.trim(), "[['v1']]");
    let asked = as_ecr.asked();
    assert!(asked.iter().any(|a| a.starts_with("PATCH /v2/mirror/")), "{asked:?}");
}

/// A session's own word stays that of its first piece, as Amazon's does: a byte that it did not wait for is refused with the one that
/// it waits for, and a piece whose answer was lost is not sent again. This is a layer of ours before ministack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn sessions_of_ecr_are_gone_on_with() {
    let (ecr, from) = ecr_and_registry().await;
    let source = Client::new(&from.host);
    source.push_image("app", Some("v1"), false, &[bytes(70 << 20, 1)], "amd64").await;
    let (stored, pieces) = (Mutex::new(0u64), AtomicU32::new(0));
    let strict = move |asked: &Asked| {
        if asked.method != "PATCH" {
            return Act::Pass;
        }
        let (first, last) = asked.content_range.as_ref().and_then(|range| range.split_once('-')).unwrap();
        let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
        let mut stored = stored.lock().unwrap();
        if first != *stored {
            let why = format!("First byte of the layer part is {first} instead of {stored}, and that is all");
            let page = format!(r#"{{"errors":[{{"code":"BLOB_UPLOAD_INVALID","message":"{why}"}}]}}"#);
            return Act::Answer(416, vec![], page.leak());
        }
        match pieces.fetch_add(1, SeqCst) {
            0 | 4 => return Act::CutRequest(3_000_000),
            2 | 6 => {
                *stored = last + 1;
                return Act::Lose;
            }
            _ => *stored = last + 1,
        }
        Act::Pass
    };
    let (as_ecr, certificate) = Rig::as_ecr_that(host(&ecr), strict).await;
    let files = Files(tempfile::tempdir().unwrap());
    let to = of_ecr("destination", &as_ecr, &certificate, &ecr.endpoint, "");
    let (code, told) = copy(
        &files.settings("task", &[&plain("source", &from, "select.images = [\"app\"]").replace("app", "app:v1"), &to, "create = {}\n"]),
        &[],
    )
    .await;
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(Client::new(host(&ecr)).graph("app", "v1").await, source.graph("app", "v1").await);
    let asked = as_ecr.asked();
    let count = |method: &str| asked.iter().filter(|a| a.starts_with(method) && a.contains("/blobs/uploads/")).count();
    // Nine pieces, two that broke off, two that were refused because they were there; no session was begun anew, or asked.
    assert_eq!((count("PATCH"), count("GET"), count("POST")), (9 + 2 + 2, 0, 2), "{asked:#?}");
}

/// An archived image is there, and cannot be read: it is told, and its copy stays. (ministack has no archive: layers of ours tell so.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn an_archived_image_is_skipped_and_not_deleted() {
    let (ecr, to) = ecr_and_registry().await;
    ecr.python(&venv(), "client('ecr').create_repository(repositoryName='app')", &[]).await.unwrap();
    let (source, there) = (Client::new(host(&ecr)), Client::new(&to.host));
    for (n, tag) in ["old", "new", "gone"].into_iter().enumerate() {
        source.push_image("app", Some(tag), false, &[bytes(1000, n as u64)], "amd64").await;
    }
    let api = Rig::before_host(host(&ecr), |asked| {
        if asked.target != "DescribeImages" {
            return Act::Pass;
        }
        Act::Edit(|answer| {
            for image in answer["imageDetails"].as_array_mut().into_iter().flatten() {
                if image["imageTags"][0] == "old" {
                    image["imageStatus"] = "ARCHIVED".into();
                }
            }
        })
    })
    .await;
    let archived = |asked: &Asked| {
        let hit = asked.path.ends_with("/manifests/old");
        let page = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"Requested image not found"}]}"#;
        if hit { Act::Answer(404, vec![], if asked.method == "HEAD" { "" } else { page }) } else { Act::Pass }
    };
    let (as_ecr, certificate) = Rig::as_ecr_that(host(&ecr), archived).await;
    there.push_image("app", Some("old"), false, &[bytes(1000, 77)], "amd64").await;
    there.push_image("app", Some("extra"), false, &[bytes(1000, 78)], "amd64").await;
    let files = Files(tempfile::tempdir().unwrap());
    let endpoint = format!("http://{}", api.host);
    let from = of_ecr("source", &as_ecr, &certificate, &endpoint, "select.images = [\"app:ALL_TAGS\"]");
    let file = files.settings("task", &[&from, &plain("destination", &to, ""), "[finder]\ndelete_extra = true\n"]);
    let (code, told) = copy(&file, &[]).await;
    assert!(code == Some(0) && told.contains("archived"), "{told}");
    assert_eq!(there.tags("app").await, ["gone", "new", "old"].map(str::to_owned).into());
}
