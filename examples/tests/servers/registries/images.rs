//! Images for tests, pushed and read back by requests of plain HTTP: nothing of the engine, and nothing of `dth-ecr`.

use super::server::DockerRegistry;
use crate::support::bytes;
use bytes::Bytes;
use dth_core::{
    checksum::{Algorithm, Checksum},
    http::{Http, HttpSettings, Proxy, body},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Checksum::of(Algorithm::Sha256, &[Bytes::copy_from_slice(bytes)]).to_hex())
}

/// A client of a registry that lets everybody in, or knows a password.
#[derive(Clone)]
pub(crate) struct Client {
    http: Http,
    scheme: &'static str,
    host: String,
    login: Option<&'static str>,
}

pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: Bytes,
}

impl Client {
    pub(crate) fn new(host: &str) -> Self {
        let http = Http::new(HttpSettings { proxy: Proxy::None, ..HttpSettings::default() }).unwrap();
        Self { http, scheme: "http", host: host.to_owned(), login: None }
    }

    /// Over TLS, if the registry does that.
    pub(crate) fn at(registry: &DockerRegistry) -> Self {
        let Some(certificate) = &registry.certificate else { return Self::new(&registry.host) };
        let settings = HttpSettings { proxy: Proxy::None, ca_file: Some(certificate.ca_file()), ..HttpSettings::default() };
        Self { http: Http::new(settings).unwrap(), scheme: "https", ..Self::new(&registry.host) }
    }

    /// `user`, `pass:word`.
    pub(crate) fn of_user(host: &str) -> Self {
        Self { login: Some("Basic dXNlcjpwYXNzOndvcmQ="), ..Self::new(host) }
    }

    pub(crate) async fn call(&self, method: &str, to: &str, headers: &[(&str, &str)], send: Bytes) -> Answered {
        let uri = if to.starts_with("http") { to.to_owned() } else { format!("{}://{}{to}", self.scheme, self.host) };
        let mut request = hyper::Request::builder().method(method).uri(uri).header("host", &self.host).header("content-length", send.len());
        for (name, value) in headers.iter().copied().chain(self.login.map(|login| ("authorization", login))) {
            request = request.header(name, value);
        }
        let answer = self.http.request(request.body(body::full(send)).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        Answered { status: parts.status.as_u16(), headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    pub(crate) async fn push_blob(&self, name: &str, blob: &[u8]) -> String {
        let digest = digest(blob);
        if self.call("HEAD", &format!("/v2/{name}/blobs/{digest}"), &[], Bytes::new()).await.status == 200 {
            return digest;
        }
        let begun = self.call("POST", &format!("/v2/{name}/blobs/uploads/"), &[], Bytes::new()).await;
        assert_eq!(begun.status, 202, "{:?}", begun.body);
        let location = begun.headers["location"].to_str().unwrap().to_owned();
        let to = format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' });
        let put = self.call("PUT", &to, &[("content-type", "application/octet-stream")], Bytes::copy_from_slice(blob)).await;
        assert_eq!(put.status, 201, "{:?}", put.body);
        digest
    }

    /// Under a tag, or, where there is none, under its digest.
    pub(crate) async fn push_manifest(&self, name: &str, tag: Option<&str>, media_type: &str, manifest: &Value) -> Value {
        let text = manifest.to_string();
        let digest = digest(text.as_bytes());
        let to = format!("/v2/{name}/manifests/{}", tag.unwrap_or(&digest));
        let put = self.call("PUT", &to, &[("content-type", media_type)], text.clone().into()).await;
        assert_eq!(put.status, 201, "{:?}", put.body);
        json!({ "mediaType": media_type, "digest": digest, "size": text.len() })
    }

    /// An image of these layers; its descriptor.
    pub(crate) async fn push_image(&self, name: &str, tag: Option<&str>, docker: bool, layers: &[Vec<u8>], arch: &str) -> Value {
        let kind = |oci: &'static str, of_docker: &'static str| if docker { of_docker } else { oci };
        let history: Vec<Value> = layers.iter().map(|_| json!({ "created_by": "test" })).collect();
        let sums: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let rootfs = json!({ "type": "layers", "diff_ids": sums });
        let config = json!({ "architecture": arch, "os": "linux", "rootfs": rootfs, "history": history, "author": name }).to_string();
        let config_digest = self.push_blob(name, config.as_bytes()).await;
        let mut described = Vec::new();
        for layer in layers {
            let media = kind("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip");
            described.push(json!({ "mediaType": media, "digest": self.push_blob(name, layer).await, "size": layer.len() }));
        }
        let media = kind("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": kind(OCI_MANIFEST, DOCKER_MANIFEST),
            "config": { "mediaType": media, "digest": config_digest, "size": config.len() },
            "layers": described,
        });
        let mut descriptor = self.push_manifest(name, tag, kind(OCI_MANIFEST, DOCKER_MANIFEST), &manifest).await;
        descriptor["platform"] = json!({ "os": "linux", "architecture": arch });
        descriptor
    }

    /// Something that refers to an image: a signature, an SBOM.
    pub(crate) async fn push_referrer(&self, name: &str, subject: &Value, artifact: &str, content: &[u8]) -> Value {
        let empty = self.push_blob(name, b"{}").await;
        let layer = self.push_blob(name, content).await;
        let subject = json!({ "mediaType": subject["mediaType"], "digest": subject["digest"], "size": subject["size"] });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact,
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2 },
            "layers": [{ "mediaType": artifact, "digest": layer, "size": content.len() }],
            "subject": subject,
            "annotations": { "made.by": "test" },
        });
        self.push_manifest(name, None, OCI_MANIFEST, &manifest).await
    }

    /// The digest of a manifest, hashed here; `None` where there is none.
    pub(crate) async fn manifest(&self, name: &str, reference: &str) -> Option<(String, Value)> {
        let accept = format!("{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}");
        let got = self.call("GET", &format!("/v2/{name}/manifests/{reference}"), &[("accept", &accept)], Bytes::new()).await;
        (got.status == 200).then(|| (digest(&got.body), serde_json::from_slice(&got.body).unwrap()))
    }

    /// Everything under an image, by digest, each blob hashed again.
    pub(crate) async fn graph(&self, name: &str, reference: &str) -> BTreeSet<String> {
        let mut open = vec![reference.to_owned()];
        let mut found = BTreeSet::new();
        while let Some(reference) = open.pop() {
            let (digest_found, manifest) =
                self.manifest(name, &reference).await.unwrap_or_else(|| panic!("{name} {reference} is not there"));
            assert!(!reference.starts_with("sha256:") || reference == digest_found, "{name} {reference} is {digest_found}");
            found.insert(digest_found);
            for child in manifest["manifests"].as_array().into_iter().flatten() {
                open.push(child["digest"].as_str().unwrap().to_owned());
            }
            for blob in manifest.get("config").into_iter().chain(manifest["layers"].as_array().into_iter().flatten()) {
                let wanted = blob["digest"].as_str().unwrap();
                if found.insert(wanted.to_owned()) {
                    let got = self.call("GET", &format!("/v2/{name}/blobs/{wanted}"), &[], Bytes::new()).await;
                    assert_eq!((got.status, digest(&got.body).as_str()), (200, wanted), "{name}");
                }
            }
        }
        found
    }

    pub(crate) async fn tags(&self, name: &str) -> BTreeSet<String> {
        let got = self.call("GET", &format!("/v2/{name}/tags/list"), &[], Bytes::new()).await;
        let list: Value = serde_json::from_slice(&got.body).unwrap_or_default();
        list["tags"].as_array().into_iter().flatten().map(|tag| tag.as_str().unwrap().to_owned()).collect()
    }

    /// Digests that refer to one, by the API.
    pub(crate) async fn referrers(&self, name: &str, digest: &str) -> Option<BTreeSet<String>> {
        let got = self.call("GET", &format!("/v2/{name}/referrers/{digest}"), &[], Bytes::new()).await;
        let index: Value = serde_json::from_slice(&got.body).ok().filter(|_| got.status == 200)?;
        Some(index["manifests"].as_array()?.iter().map(|m| m["digest"].as_str().unwrap().to_owned()).collect())
    }
}

/// A set like that of the issue: 27 images, shared base layers, an index of three platforms, both forms, names with slashes, two
/// manifests without a tag. `unit` is what a MiB of it is here.
pub(crate) struct ImageSet {
    /// As a list names them.
    pub(crate) list: Vec<String>,
    pub(crate) index: Value,
    pub(crate) blobs: usize,
}

pub(crate) async fn push_set(client: &Client, unit: usize) -> ImageSet {
    let layer = |seed: u64, mib: usize| bytes(mib * unit + seed as usize % 7, seed + 1);
    let mut list = Vec::new();
    for n in 0..26u64 {
        let name = if n % 5 == 0 { format!("team-{n}/app") } else { format!("app{n:02}") };
        let base = n % 3;
        let layers = [layer(1000 + base, 30), layer(1100 + base, 10), layer(n, 24), layer(100 + n, 4)];
        client.push_image(&name, Some("v1"), n % 2 == 0, &layers, "amd64").await;
        list.push(format!("{name}:v1"));
    }
    let mut manifests = Vec::new();
    for (n, arch) in ["amd64", "arm64", "arm"].into_iter().enumerate() {
        let layers = [layer(200 + n as u64, 15), layer(300 + n as u64, 5)];
        manifests.push(client.push_image("app26", None, false, &layers, arch).await);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let index = client.push_manifest("app26", Some("v1"), OCI_INDEX, &index).await;
    list.push("app26:v1".into());
    ImageSet { list, index, blobs: 26 * 3 + 6 + 9 }
}

/// The same graph on both sides, by the registries' API and by skopeo; each by name and reference.
pub(crate) async fn must_be_equal(source: &Client, there: &Client, list: &[String]) {
    let mut all = BTreeMap::new();
    for image in list {
        let (name, reference) = image.split_once('@').or_else(|| image.split_once(':')).unwrap();
        let (ours, theirs) = (source.graph(name, reference).await, there.graph(name, reference).await);
        assert_eq!(ours, theirs, "{image}");
        let raw = |client: &Client| {
            let separator = if reference.contains(':') { '@' } else { ':' };
            let of = format!("docker://{}/{name}{separator}{reference}", client.host);
            digest(super::server::skopeo(&["inspect", "--tls-verify=false", "--raw", &of]).as_bytes())
        };
        if source.login.is_none() && there.login.is_none() {
            assert_eq!(raw(source), raw(there), "{image} by skopeo");
        }
        all.insert(image, ours);
    }
    assert_eq!(all.len(), list.len());
}
