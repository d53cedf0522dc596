//! What the engine relies on in a store of images, promise by promise, on each backend that has them.

use super::{
    images::{OCI_INDEX, OCI_MANIFEST, digest},
    rig::{ECR_HOST, Rig},
    server::{Auth, DockerRegistry, host},
};
use crate::support::{bytes, venv};
use bytes::Bytes;
use dth_core::{
    conformance::{
        GraphBench,
        graph::{Made, Shape},
        hold_graph,
    },
    error::{Error, ErrorKind, Op},
    http::Proxy,
    index::{ListFrom, ListRequest},
    object::{Attributes, ETag, Entry, ObjectKey},
    sink::{Body, Condition, PutOptions, Sink},
    source::{ReadOptions, ReadRange, Source},
};
use dth_ecr::{Ecr, EcrConfig, OciLayout, Registry, RegistryConfig, RepositorySettings};
use dth_examples::servers::Server;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use serde_json::json;
use std::{panic::AssertUnwindSafe, sync::Arc};

/// Images, as the suite makes graphs: what has only content under it is a manifest, anything else an index.
#[derive(Debug)]
struct Images;

impl Shape for Images {
    fn leaf(&self, place: &str, content: &Bytes) -> Made {
        Made { key: blob(place, content), body: content.clone() }
    }

    fn parent(&self, place: &str, name: Option<&str>, children: &[Made]) -> Made {
        let described = |kind: &str, made: &Made| json!({ "mediaType": kind, "digest": digest(&made.body), "size": made.body.len() });
        let manifest = if children.iter().all(|child| child.key.as_str().contains('#')) {
            let layers: Vec<_> = children.iter().skip(1).map(|child| described("application/vnd.oci.image.layer.v1.tar", child)).collect();
            let config = described("application/vnd.oci.image.config.v1+json", &children[0]);
            json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers })
        } else {
            let manifests: Vec<_> = children.iter().map(|child| described(OCI_MANIFEST, child)).collect();
            json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests })
        };
        let body = Bytes::from(manifest.to_string());
        let key = name.map_or_else(|| format!("{place}@{}", digest(&body)), |name| format!("{place}:{name}"));
        Made { key: key.into(), body }
    }
}

/// What is asked to go with a tag.
#[derive(Clone, Copy, PartialEq)]
enum Deletes {
    /// The tag.
    Tags,
    /// A digest, with all its tags: refused where there are others.
    Digests,
    /// The image, with all its tags, which ministack does, and Amazon ECR does not.
    Images,
}

struct Bench {
    source: Arc<dyn Source>,
    sink: Arc<dyn Sink>,
    /// Refuses a manifest whose children it lacks.
    checks_children: bool,
    deletes: Deletes,
    /// Reads parts of blobs (ministack does not).
    ranges: bool,
}

type Promise = (&'static str, for<'a> fn(&'a Bench) -> BoxFuture<'a, ()>);

macro_rules! promises {
    ($($name:ident)*) => { const PROMISES: &[Promise] = &[$((stringify!($name), |bench| Box::pin($name(bench)))),*]; };
}

promises! {
    a_blob_comes_back
    a_wrong_blob_is_refused
    a_blob_that_breaks_shows_nothing
    a_range_of_a_blob_is_that_range
    a_manifest_is_kept_byte_for_byte
    a_manifest_under_a_wrong_digest_is_refused
    a_manifest_needs_its_children
    a_pinned_read_outlives_its_tag
    what_is_missing_is_not_found
    a_listing_is_whole_and_in_order
    a_deleted_tag_is_gone
    keys_of_no_image_are_refused
}

fn whole(body: &[u8]) -> Body {
    Body::Bytes(vec![Bytes::copy_from_slice(body)])
}

fn streamed(body: &[u8]) -> Body {
    let chunks: Vec<Result<Bytes, Error>> = body.chunks(10_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    Body::Stream { len: body.len() as u64, stream: stream::iter(chunks).boxed() }
}

fn blob(name: &str, body: &[u8]) -> ObjectKey {
    format!("{name}#{}", digest(body)).into()
}

impl Bench {
    async fn put(&self, key: &ObjectKey, body: Body) -> Result<Option<ETag>, Error> {
        Ok(self.sink.put(key, body, &PutOptions::default()).await?.etag)
    }

    async fn get(&self, key: &ObjectKey, options: &ReadOptions) -> Result<(Vec<u8>, Option<String>), Error> {
        let read = self.source.read(key, options).await?;
        let (mut body, mut all) = (read.body, Vec::new());
        while let Some(chunk) = body.next().await {
            all.extend_from_slice(&chunk?);
        }
        assert_eq!(read.range.end - read.range.start, all.len() as u64);
        Ok((all, read.info.attributes.content_type))
    }

    /// An image of one layer; its bytes, in an order and with spaces of their own.
    async fn image(&self, name: &str, layer: &[u8]) -> String {
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        self.put(&blob(name, config), whole(config)).await.unwrap();
        self.put(&blob(name, layer), streamed(layer)).await.unwrap();
        let described = |kind: &str, body: &[u8]| json!({ "size": body.len(), "digest": digest(body), "mediaType": kind });
        format!(
            "{{ \"layers\" : [{}],\n\t\"config\":{}, \"mediaType\" :\"{}\",\"schemaVersion\":2 }}\n",
            described("application/vnd.oci.image.layer.v1.tar", layer),
            described("application/vnd.oci.image.config.v1+json", config),
            OCI_MANIFEST
        )
    }

    async fn tagged(&self, key: &str, layer: &[u8]) -> String {
        let text = self.image(key.split(':').next().unwrap(), layer).await;
        assert_eq!(self.put(&key.into(), whole(text.as_bytes())).await.unwrap().unwrap().as_str(), digest(text.as_bytes()));
        text
    }

    async fn is_missing(&self, key: &ObjectKey) {
        assert_eq!(self.sink.head(key, None).await.unwrap_err().kind(), ErrorKind::NotFound, "{key}");
        assert_eq!(self.source.read(key, &ReadOptions::default()).await.unwrap_err().kind(), ErrorKind::NotFound, "{key}");
    }
}

async fn a_blob_comes_back(bench: &Bench) {
    for (n, size) in [1, 1000, 300_000].into_iter().enumerate() {
        let body = bytes(size, n as u64);
        let key = blob("p/blob", &body);
        let etag = bench.put(&key, if n == 1 { whole(&body) } else { streamed(&body) }).await.unwrap();
        assert_eq!(etag, Some(ETag::new(&digest(&body))));
        assert_eq!(bench.get(&key, &ReadOptions::default()).await.unwrap().0, body);
        let head = bench.source.head(&key, None).await.unwrap();
        assert_eq!((head.entry.size, head.entry.etag), (Some(size as u64), etag));
        assert_eq!(head.checksum.unwrap().to_hex(), digest(&body)["sha256:".len()..]);
    }
}

async fn a_wrong_blob_is_refused(bench: &Bench) {
    let key = blob("p/wrong", b"right");
    for body in [whole(b"wrong"), streamed(b"wrong")] {
        assert_eq!(bench.put(&key, body).await.unwrap_err().kind(), ErrorKind::Corrupt);
        bench.is_missing(&key).await;
    }
    bench.put(&key, whole(b"right")).await.unwrap();
}

async fn a_blob_that_breaks_shows_nothing(bench: &Bench) {
    let body = bytes(200_000, 9);
    let key = blob("p/broken", &body);
    let chunks = vec![Ok(Bytes::copy_from_slice(&body[..100_000])), Err(Error::new(ErrorKind::Unavailable, Op::Read, "x"))];
    let broken = Body::Stream { len: 200_000, stream: stream::iter(chunks).boxed() };
    assert!(bench.put(&key, broken).await.is_err());
    let short = Body::Stream { len: 200_000, stream: stream::iter([Ok(Bytes::copy_from_slice(&body[..100_000]))]).boxed() };
    assert!(bench.put(&key, short).await.is_err());
    bench.is_missing(&key).await;
    bench.put(&key, streamed(&body)).await.unwrap();
}

async fn a_range_of_a_blob_is_that_range(bench: &Bench) {
    let body = bytes(70_000, 3);
    let key = blob("p/range", &body);
    bench.put(&key, whole(&body)).await.unwrap();
    for range in [0..1, 5..7, 69_999..70_000, 0..70_000, 100..65_000] {
        let options = ReadOptions { range: ReadRange::Bytes(range.clone()), ..ReadOptions::default() };
        let part = match bench.get(&key, &options).await {
            Err(error) if !bench.ranges => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{range:?}: {}", error.chain());
                continue;
            }
            part => part.unwrap().0,
        };
        assert_eq!(part, body[range.start as usize..range.end as usize], "{range:?}");
    }
    for range in [0..70_001, 70_000..70_001] {
        let options = ReadOptions { range: ReadRange::Bytes(range.clone()), ..ReadOptions::default() };
        assert_eq!(bench.get(&key, &options).await.unwrap_err().kind(), ErrorKind::Corrupt, "{range:?}");
    }
}

async fn a_manifest_is_kept_byte_for_byte(bench: &Bench) {
    let text = bench.tagged("p/bytes:v1", b"layer").await;
    for key in ["p/bytes:v1".to_owned(), format!("p/bytes@{}", digest(text.as_bytes()))] {
        let (found, media_type) = bench.get(&key.as_str().into(), &ReadOptions::default()).await.unwrap();
        assert_eq!((found, media_type.as_deref()), (text.clone().into_bytes(), Some(OCI_MANIFEST)), "{key}");
        let info = bench.source.head(&key.as_str().into(), None).await.unwrap();
        assert_eq!((info.entry.etag, info.entry.size), (Some(ETag::new(&digest(text.as_bytes()))), Some(text.len() as u64)));
    }
}

async fn a_manifest_under_a_wrong_digest_is_refused(bench: &Bench) {
    let text = bench.image("p/digest", b"layer").await;
    let wrong = ObjectKey::new(format!("p/digest@{}", digest(b"other")));
    assert_eq!(bench.put(&wrong, whole(text.as_bytes())).await.unwrap_err().kind(), ErrorKind::Invalid);
    bench.is_missing(&wrong).await;
    for text in ["", "[]", "<html>", "{\"config\":1}"] {
        let put = bench.put(&"p/digest:v1".into(), whole(text.as_bytes())).await;
        assert_eq!(put.unwrap_err().kind(), ErrorKind::Invalid, "{text}");
    }
}

async fn a_manifest_needs_its_children(bench: &Bench) {
    if !bench.checks_children {
        return;
    }
    let text = bench.image("p/children", b"layer").await.replace(&digest(b"layer"), &digest(b"nowhere"));
    let error = bench.put(&"p/children:v1".into(), whole(text.as_bytes())).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.is_retryable(), "{}", error.chain());
    bench.is_missing(&"p/children:v1".into()).await;
}

async fn a_pinned_read_outlives_its_tag(bench: &Bench) {
    let (key, first) = ("p/pin:v1".into(), bench.tagged("p/pin:v1", b"first").await);
    let family = bench.source.children(&Entry::new("p/pin:v1", 0, None)).await.unwrap();
    let pin = family.entry.etag.clone();
    assert_eq!((family.children.len(), pin.as_ref().unwrap().as_str()), (2, digest(first.as_bytes()).as_str()));
    assert!(family.children.iter().any(|child| child.key == blob("p/pin", b"first") && child.size == Some(5)), "{family:?}");
    let second = bench.tagged("p/pin:v1", b"second").await;
    let pinned = ReadOptions { if_match: pin, ..ReadOptions::default() };
    assert_eq!(bench.get(&key, &pinned).await.unwrap().0, first.into_bytes());
    assert_eq!(bench.get(&key, &ReadOptions::default()).await.unwrap().0, second.into_bytes());
    let family = bench.source.children(&Entry::new("p/pin:v1", 0, None)).await.unwrap();
    assert!(family.children.iter().any(|child| child.key == blob("p/pin", b"second")), "{family:?}");
    let no_children = bench.source.children(&Entry::new(blob("p/pin", b"second"), 6, None)).await.unwrap();
    assert!(no_children.children.is_empty());
}

async fn what_is_missing_is_not_found(bench: &Bench) {
    bench.tagged("p/there:v1", b"layer").await;
    for key in ["p/there:v2", "p/nowhere:v1", &format!("p/there@{}", digest(b"x")), &format!("p/there#{}", digest(b"x"))] {
        bench.is_missing(&key.into()).await;
    }
    let keys = ["p/there:v1", "p/there:v2", "p/nowhere:v1"].map(ObjectKey::from);
    let found: Vec<bool> = bench.sink.find(&keys).await.unwrap().iter().map(Option::is_some).collect();
    assert_eq!(found, [true, false, false]);
}

async fn a_listing_is_whole_and_in_order(bench: &Bench) {
    let mut keys: Vec<String> =
        ["l/a:v1", "l/a:v2", "l/a-b:v1", "l/a.b:v1", "l/a/b:v1", "l/a0:v1", "l/a_b:v1", "l/ab:x"].map(str::to_owned).into();
    for (n, key) in keys.iter().enumerate() {
        bench.tagged(key, &[n as u8 + 1]).await;
    }
    keys.sort();
    for max in [1, 3, 1000] {
        let mut request = ListRequest { prefix: "l/".into(), max: Some(max), ..ListRequest::default() };
        let mut listed = Vec::new();
        for _ in 0..100 {
            let page = bench.source.list(&request).await.unwrap();
            assert!(page.entries.len() <= max as usize);
            listed.extend(page.entries.into_iter().map(|e| e.key.as_str().to_owned()));
            let Some(next) = page.next else { break };
            request.from = ListFrom::Token(next);
        }
        assert_eq!(listed, keys, "in pages of {max}");
    }
    for (at, key) in keys.iter().enumerate() {
        let request = ListRequest { prefix: "l/".into(), from: ListFrom::After(key.as_str().into()), max: Some(1) };
        let page = bench.source.list(&request).await.unwrap();
        assert_eq!(page.entries.first().map(|e| e.key.as_str()), keys.get(at + 1).map(String::as_str), "behind {key}");
    }
    let one = ListRequest { prefix: "l/a:v1".into(), max: Some(1), ..ListRequest::default() };
    assert_eq!(bench.source.list(&one).await.unwrap().entries.len(), 1);
}

async fn a_deleted_tag_is_gone(bench: &Bench) {
    bench.tagged("p/delete:v1", b"one").await;
    bench.tagged("p/delete:v2", b"two").await;
    bench.sink.delete(&"p/delete:v1".into(), &Condition::None).await.unwrap();
    bench.is_missing(&"p/delete:v1".into()).await;
    bench.source.head(&"p/delete:v2".into(), None).await.unwrap();
    bench.sink.delete(&"p/delete:v1".into(), &Condition::None).await.unwrap();
    bench.sink.delete(&"p/never:v1".into(), &Condition::None).await.unwrap();
    if bench.deletes == Deletes::Images {
        return;
    }
    // The same digest under another tag: that tag stays, whatever becomes of the deletion.
    bench.tagged("p/delete:v3", b"two").await;
    let deleted = bench.sink.delete(&"p/delete:v3".into(), &Condition::None).await;
    assert_eq!(deleted.is_ok(), bench.deletes == Deletes::Tags, "{deleted:?}");
    bench.source.head(&"p/delete:v2".into(), None).await.unwrap();
}

async fn keys_of_no_image_are_refused(bench: &Bench) {
    for key in ["", "a", "A:v1", "../a:v1", "a:v1/x", "a@sha256:00", "a#sha256:../../../etc/passwd", "a\n:v1", "a:v 1"] {
        let key = ObjectKey::from(key);
        assert!(!bench.sink.carries(&key), "{key}");
        let options = PutOptions { attributes: Attributes::default(), ..PutOptions::default() };
        let put = bench.sink.put(&key, whole(b"{}"), &options).await;
        assert_eq!(put.unwrap_err().kind(), ErrorKind::Unrepresentable, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the servers of `cargo xtask test`"]
async fn stores_of_images_keep_their_promises() {
    let (folder, venv) = (tempfile::tempdir().unwrap(), venv());
    let (open, token, emulator) =
        tokio::join!(DockerRegistry::start(Auth::Open), DockerRegistry::start(Auth::Token(60)), Server::ministack(&venv));
    let emulator = emulator.unwrap();
    let (as_ecr, certificate) = Rig::as_ecr(host(&emulator)).await;
    let of_ecr = EcrConfig { create: Some(RepositorySettings::default()), ..EcrConfig::default() };
    let proxy = Proxy::Url { url: format!("http://{}", as_ecr.host), user: None, password: None, no_proxy: None };
    let config = RegistryConfig { ca_file: Some(certificate.ca_file()), proxy, ..RegistryConfig::default() };
    let ecr = Ecr::new(&emulator.aws(None).await, of_ecr).registry(config).await.unwrap().build().unwrap();
    assert!(format!("{ecr:?}").contains(ECR_HOST));
    let registry = |config| Registry::new(config).unwrap();
    let bench = |store: Registry, checks_children, deletes| {
        let store = Arc::new(store);
        Bench { source: Arc::clone(&store) as _, sink: store, checks_children, deletes, ranges: true }
    };
    let layout = Arc::new(OciLayout::create(folder.path().join("layout"), "image").unwrap());
    let layout = Bench { source: Arc::clone(&layout) as _, sink: layout, checks_children: true, deletes: Deletes::Tags, ranges: true };
    let benches = [
        ("registry", bench(registry(open.config()), true, Deletes::Digests)),
        ("registry with tokens", bench(registry(token.config_of_user()), true, Deletes::Digests)),
        ("ECR", Bench { ranges: false, ..bench(ecr, false, Deletes::Images) }),
        ("layout", layout),
    ];
    let mut broken = Vec::new();
    for (backend, bench) in &benches {
        for (name, promise) in PROMISES {
            if AssertUnwindSafe(promise(bench)).catch_unwind().await.is_err() {
                broken.push(format!("{backend}: {name}"));
            }
        }
        println!("{backend}: {} promises of images tried", PROMISES.len());
    }
    assert!(broken.is_empty(), "{broken:#?}");
    for (backend, bench) in &benches {
        let graph = GraphBench::new(Arc::clone(&bench.source), Arc::clone(&bench.sink), Arc::new(Images));
        let held = hold_graph(&graph).await;
        println!("{backend}: {held} promises of graphs held");
        assert_eq!(held, if bench.checks_children { 7 } else { 8 }, "{backend}");
    }
}
