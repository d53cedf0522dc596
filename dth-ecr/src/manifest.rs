//! What the engine must know of a manifest: its digest, and what must be there before it. Its bytes are never changed, but where
//! platforms are left out on purpose.

use crate::key::ImageKey;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use dth_core::{
    checksum::{Algorithm, Checksum},
    error::{Error, ErrorKind, Op, Result},
    object::{ETag, Entry},
    sink::Body,
};
use futures_util::StreamExt;
use oci_spec::image::{Descriptor, MediaType};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most bytes of a manifest: registries refuse larger ones
/// (<https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-manifests>).
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";
const SCHEMA_1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// All forms, the present ones first: a registry that is not told so converts to an old form, with another digest.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.5, application/vnd.docker.distribution.manifest.v1+json;q=0.4";

/// A manifest as a registry gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: String,
    pub(crate) digest: String,
}

/// The parts of all forms that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Parts {
    media_type: Option<String>,
    #[serde(deserialize_with = "or_null")]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(deserialize_with = "or_null")]
    layers: Vec<Descriptor>,
    /// Of artifacts, a form that was given up.
    #[serde(deserialize_with = "or_null")]
    blobs: Vec<Descriptor>,
    subject: Option<Descriptor>,
    #[serde(rename = "fsLayers")]
    fs_layers: Vec<FsLayer>,
    schema_version: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FsLayer {
    blob_sum: String,
}

/// A list that is not there, as some programs write it.
fn or_null<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(d: D) -> std::result::Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// What must be there before a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Child {
    pub(crate) digest: String,
    pub(crate) size: Option<u64>,
    pub(crate) is_manifest: bool,
    /// That lists manifests.
    pub(crate) is_index: bool,
}

impl Manifest {
    /// A manifest that somebody sent, perhaps with the digest that it is to have. `Corrupt` when it has another one.
    pub(crate) fn new(bytes: Bytes, media_type: Option<&str>, wanted: Option<&str>, target: &str) -> Result<Self> {
        let corrupt = |why: String| Error::new(ErrorKind::Corrupt, Op::Read, target).with_source(why);
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(corrupt("not a manifest, which is an object of JSON".into()));
        }
        let parts: Parts = serde_json::from_slice(&bytes).map_err(|e| corrupt(format!("not a manifest: {e}")))?;
        let told = media_type.map(|t| t.split(';').next().unwrap_or(t).trim()).filter(|t| is_known(t));
        let media_type = told.map(str::to_owned).or_else(|| parts.media_type.clone()).unwrap_or_else(|| parts.sniffed().to_owned());
        let signed = parts.schema_version == Some(1);
        let payload = if signed { unsigned(&bytes).map_err(corrupt)? } else { None };
        let digest = digest_of(&payload.map_or_else(|| bytes.clone(), Bytes::from));
        // A digest that we cannot take is refused, and not believed.
        match wanted {
            Some(wanted) if wanted.starts_with("sha512:") => {
                Err(Error::new(ErrorKind::Unsupported, Op::Read, target).with_source("manifests are checked by sha256 only"))
            }
            Some(wanted) if *wanted != digest => Err(corrupt(format!("the manifest has the digest {digest} instead of {wanted}"))),
            _ => Ok(Self { bytes, media_type, digest }),
        }
    }

    fn parts(&self) -> Result<Parts> {
        let invalid = |e| Error::new(ErrorKind::Invalid, Op::Children, self.digest.clone()).with_source(e);
        serde_json::from_slice(&self.bytes).map_err(invalid)
    }

    /// What must be there before it, each once. Layers that may not be distributed lie elsewhere, by their URLs: they are no part of
    /// a registry.
    pub(crate) fn children(&self) -> Result<Vec<Child>> {
        let mut parts = self.parts()?;
        if parts.schema_version == Some(1) {
            // Its digest is of what was signed, and that has layers only.
            parts = Parts { fs_layers: parts.fs_layers, ..Parts::default() };
        }
        let of = |descriptor: &Descriptor, is_manifest| Child {
            digest: descriptor.digest().to_string(),
            size: Some(descriptor.size()),
            is_manifest,
            is_index: is_index(descriptor.media_type().as_ref()),
        };
        let elsewhere = |d: &&Descriptor| !(is_foreign(d.media_type()) && d.urls().as_ref().is_some_and(|urls| !urls.is_empty()));
        let mut children: Vec<Child> = parts.manifests.iter().map(|d| of(d, is_manifest(d.media_type()))).collect();
        children.extend(parts.config.iter().chain(parts.layers.iter().filter(elsewhere)).chain(&parts.blobs).map(|d| of(d, false)));
        children.extend(parts.fs_layers.into_iter().map(|l| Child { digest: l.blob_sum, size: None, is_manifest: false, is_index: false }));
        let mut seen = std::collections::HashSet::new();
        children.retain(|child| seen.insert(child.digest.clone()));
        for child in &children {
            if !crate::key::is_digest(&child.digest) {
                let why = format!("`{}` is no digest", child.digest);
                return Err(Error::new(ErrorKind::Invalid, Op::Children, self.digest.clone()).with_source(why));
            }
        }
        Ok(children)
    }

    /// What it refers to.
    pub(crate) fn subject(&self) -> Option<String> {
        self.parts().ok()?.subject.map(|d| d.digest().to_string())
    }

    /// Whether it is a list of manifests.
    pub(crate) fn is_index(&self) -> bool {
        is_index(&self.media_type)
    }

    /// How it stands in an index of referrers.
    pub(crate) fn as_referrer(&self) -> Value {
        let value: Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
        let artifact = value.get("artifactType").or_else(|| value.get("config").and_then(|c| c.get("mediaType"))).cloned();
        let mut descriptor = serde_json::json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() });
        for (name, found) in [("artifactType", artifact), ("annotations", value.get("annotations").filter(|a| a.is_object()).cloned())] {
            if let Some(found) = found {
                descriptor[name] = found;
            }
        }
        descriptor
    }

    /// The same with only these platforms; itself where it is no index, or lacks none of them.
    pub(crate) fn of_platforms(self, platforms: &[String], target: &str) -> Result<Self> {
        if platforms.is_empty() || !self.is_index() {
            return Ok(self);
        }
        let mut value: Value =
            serde_json::from_slice(&self.bytes).map_err(|e| Error::new(ErrorKind::Invalid, Op::Read, target).with_source(e))?;
        let Some(manifests) = value.get_mut("manifests").and_then(Value::as_array_mut) else { return Ok(self) };
        if manifests.iter().all(|manifest| manifest.get("platform").is_none()) {
            // A list of something else than platforms.
            return Ok(self);
        }
        let (all, mut kept) = (manifests.len(), Vec::new());
        for manifest in manifests.iter() {
            let takes = |manifest: &Value| platforms.iter().any(|wanted| is_platform(manifest, wanted));
            // An attestation belongs to the manifest that it names.
            let of = manifest.pointer("/annotations/vnd.docker.reference.digest").and_then(Value::as_str);
            let of = of.and_then(|digest| manifests.iter().find(|m| m.get("digest").and_then(Value::as_str) == Some(digest)));
            if takes(manifest) || of.is_some_and(takes) {
                kept.push(manifest.clone());
            }
        }
        if kept.is_empty() {
            let why = format!("it has none of the platforms {}", platforms.join(", "));
            return Err(Error::new(ErrorKind::Invalid, Op::Read, target).with_source(why));
        }
        if kept.len() == all {
            return Ok(self);
        }
        *manifests = kept;
        let bytes = Bytes::from(value.to_string());
        Ok(Self { digest: digest_of(&bytes), bytes, media_type: self.media_type })
    }
}

impl Parts {
    /// The media type of a manifest that nobody names.
    fn sniffed(&self) -> &'static str {
        match self.schema_version {
            Some(1) => SCHEMA_1_SIGNED,
            _ if !self.manifests.is_empty() => OCI_INDEX,
            _ => OCI_MANIFEST,
        }
    }
}

/// The keys of children in a repository.
pub(crate) fn entries(name: &str, children: Vec<Child>) -> Vec<Entry> {
    let entry = |child: Child| {
        let (name, digest) = (name.to_owned(), child.digest.clone());
        let key = if child.is_manifest { ImageKey::Manifest { name, digest } } else { ImageKey::Blob { name, digest } };
        Entry { size: child.size, ..Entry::new(key.to_key(), 0, Some(ETag::new(&child.digest))) }
    };
    children.into_iter().map(entry).collect()
}

/// An index of nothing.
pub(crate) fn empty_index() -> Value {
    serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] })
}

/// The list of an index; of what is none, an empty index is made first.
pub(crate) fn manifests_of(index: &mut Value) -> &mut Vec<Value> {
    if !index.get("manifests").is_some_and(Value::is_array) {
        *index = empty_index();
    }
    index["manifests"].as_array_mut().expect("it is an array")
}

/// All bytes of a manifest that is to be stored. `Invalid` when there are too many.
pub(crate) async fn gather(body: Body, target: &str) -> Result<Bytes> {
    let len = body.len();
    if len > MAX_MANIFEST {
        let why = format!("a manifest has at most {MAX_MANIFEST} bytes");
        return Err(Error::new(ErrorKind::Invalid, Op::Put, target).with_source(why));
    }
    let mut all = Vec::with_capacity(len as usize);
    match body {
        Body::Bytes(chunks) if chunks.len() == 1 => return Ok(chunks.into_iter().next().unwrap_or_default()),
        Body::Bytes(chunks) => chunks.iter().for_each(|chunk| all.extend_from_slice(chunk)),
        Body::Stream { mut stream, .. } => {
            while let Some(chunk) = stream.next().await {
                all.extend_from_slice(&chunk?);
                if all.len() as u64 > len {
                    break;
                }
            }
        }
    }
    if all.len() as u64 != len {
        return Err(
            Error::new(ErrorKind::Corrupt, Op::Put, target).with_source(format!("{} bytes came where {len} were announced", all.len()))
        );
    }
    Ok(all.into())
}

pub(crate) fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether manifests of this type carry signatures, which their digest leaves out.
pub(crate) fn is_signed(media_type: &str) -> bool {
    matches!(media_type, SCHEMA_1 | SCHEMA_1_SIGNED)
}

fn is_known(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST | SCHEMA_1 | SCHEMA_1_SIGNED)
}

/// Whether a descriptor in an index is of a manifest: caches of builders list their layers there.
fn is_manifest(media_type: &MediaType) -> bool {
    let text = media_type.to_string();
    is_known(&text) || text.contains(".manifest.") || text.contains(".index.")
}

fn is_foreign(media_type: &MediaType) -> bool {
    let text = media_type.to_string();
    text.contains("nondistributable") || text.contains(".foreign.")
}

fn is_platform(manifest: &Value, wanted: &str) -> bool {
    let of = |name: &str| manifest.pointer(&format!("/platform/{name}")).and_then(Value::as_str);
    let mut parts = wanted.split('/');
    let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
    of("os") == os && of("architecture") == architecture && (variant.is_none() || of("variant") == variant)
}

pub(crate) fn digest_of(bytes: &Bytes) -> String {
    format!("sha256:{}", Checksum::of(Algorithm::Sha256, std::slice::from_ref(bytes)).to_hex())
}

/// The bytes that a schema 1 manifest was signed over, of which its digest is taken; `None` when it is not signed.
/// <https://distribution.github.io/distribution/spec/manifest-v2-1/#signed-manifests>
fn unsigned(bytes: &[u8]) -> std::result::Result<Option<Vec<u8>>, String> {
    #[derive(Deserialize)]
    struct Signed {
        #[serde(default)]
        signatures: Vec<Signature>,
    }
    #[derive(Deserialize)]
    struct Signature {
        protected: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Protected {
        format_length: usize,
        format_tail: String,
    }
    let signed: Signed = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let Some(first) = signed.signatures.first() else { return Ok(None) };
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|e| format!("the signature of the manifest: {e}"));
    let protected: Protected = serde_json::from_slice(&decode(&first.protected)?).map_err(|e| e.to_string())?;
    let mut payload = bytes.get(..protected.format_length).ok_or("the signature is of a longer manifest")?.to_vec();
    payload.extend(decode(&protected.format_tail)?);
    Ok(Some(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";

    fn read(text: &str) -> Manifest {
        Manifest::new(Bytes::copy_from_slice(text.as_bytes()), None, None, "t").unwrap()
    }

    fn children(manifest: &Manifest) -> Vec<(String, bool)> {
        manifest.children().unwrap().into_iter().map(|c| (c.digest, c.is_manifest)).collect()
    }

    #[test]
    fn children_come_of_every_form() {
        let layer = |kind: &str, digest: &str| format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":7}}"#);
        let image = read(&format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{},{},{}],"subject":{}}}"#,
            layer("application/vnd.oci.image.config.v1+json", A),
            layer("application/vnd.oci.image.layer.v1.tar+gzip", B),
            layer("application/vnd.oci.image.layer.v1.tar+gzip", B),
            format_args!(
                r#"{{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"{C}","size":1,"urls":["https://x"]}}"#
            ),
            layer(OCI_MANIFEST, C)
        ));
        assert_eq!(children(&image), [(A.into(), false), (B.into(), false)]);
        assert_eq!((image.subject().as_deref(), image.media_type.as_str()), (Some(C), OCI_MANIFEST));
        let index = read(&format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, layer(OCI_MANIFEST, A)));
        assert_eq!((children(&index), index.media_type.as_str()), (vec![(A.into(), true)], OCI_INDEX));
        let old = read(&format!(r#"{{"schemaVersion":1,"fsLayers":[{{"blobSum":"{A}"}},{{"blobSum":"{A}"}}]}}"#));
        assert_eq!((children(&old), old.media_type.as_str()), (vec![(A.into(), false)], SCHEMA_1_SIGNED));
        let hostile = r#"{"config":{"mediaType":"x","digest":"sha256:../../x","size":1}}"#;
        for bad in [hostile, "", "[]", "<html>", "{\"manifests\":1}", "\u{0}"] {
            let error = Manifest::new(Bytes::copy_from_slice(bad.as_bytes()), None, None, "t").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{bad}");
        }
    }

    #[test]
    fn a_digest_is_of_the_bytes() {
        let bytes = Bytes::from_static(b"{ \"schemaVersion\": 2 }\n");
        let digest = digest_of(&bytes);
        Manifest::new(bytes.clone(), Some("application/json; charset=utf-8"), Some(&digest), "t").unwrap();
        assert_eq!(Manifest::new(bytes, None, Some(A), "t").unwrap_err().kind(), ErrorKind::Corrupt);
        // Signed: of what was signed, which the protected header gives.
        let payload = "{\n   \"schemaVersion\": 1,\n   \"fsLayers\": []\n}";
        let (head, tail) = payload.split_at(payload.len() - 2);
        let protected =
            URL_SAFE_NO_PAD.encode(format!(r#"{{"formatLength":{},"formatTail":"{}"}}"#, head.len(), URL_SAFE_NO_PAD.encode(tail)));
        let signed = format!("{head},\n   \"signatures\": [{{\"protected\": \"{protected}\"}}]\n}}");
        assert_eq!(read(&signed).digest, digest_of(&Bytes::copy_from_slice(payload.as_bytes())));
    }

    #[test]
    fn platforms_are_left_out_by_name() {
        let of = |digest: &str, architecture: &str, more: &str| {
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":1,"platform":{{"os":"linux","architecture":"{architecture}"{more}}}}}"#
            )
        };
        let attestation = format!(
            r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{C}","size":1,"annotations":{{"vnd.docker.reference.digest":"{A}"}},"platform":{{"os":"unknown","architecture":"unknown"}}}}"#
        );
        let index = read(&format!(
            r#"{{"schemaVersion":2,"manifests":[{},{},{attestation}]}}"#,
            of(A, "amd64", ""),
            of(B, "arm", r#","variant":"v7""#)
        ));
        let kept = |platforms: &[&str]| {
            let platforms: Vec<String> = platforms.iter().map(|p| (*p).to_owned()).collect();
            index.clone().of_platforms(&platforms, "t").map(|m| children(&m).into_iter().map(|c| c.0).collect::<Vec<_>>())
        };
        assert_eq!(kept(&["linux/amd64"]).unwrap(), [A, C]);
        assert_eq!(kept(&["linux/arm/v7"]).unwrap(), [B]);
        assert_eq!(index.clone().of_platforms(&["linux/amd64".into(), "linux/arm".into()], "t").unwrap(), index, "whole, and so the same");
        assert!(kept(&["linux/s390x"]).unwrap_err().chain().contains("linux/s390x"));
    }
}
