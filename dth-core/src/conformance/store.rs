//! What the engine relies on in a store, as a source, as a sink, and as a pair of both.

use super::{Broken, Checked, StoreBench, Verdict, hold, promises};
use crate::{
    checksum::{Algorithm, Checksum},
    error::{Error, ErrorKind, Op},
    index::{ListFrom, ListOrder, ListRequest},
    key_map::KeyMap,
    memory::{MemoryQueue, MemoryState},
    object::{Attributes, ETag, Entry, EtagKind, ObjectKey},
    sink::{Body, Condition, MultipartLimits, Part, PutOptions, UploadId, Written},
    source::{ByteStream, ReadOptions, ReadRange},
    state::StateStore,
    sync::Sync,
    transfer::TransferSettings,
    versions::history,
    worker::WorkerSettings,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::{sync::Arc, time::Duration};

promises! { $ store, StoreBench, conformance_store:
    what_is_written_is_read
    an_overwrite_replaces_the_whole
    a_missing_key_is_not_found
    a_listing_is_whole_and_in_order
    a_listing_starts_behind_a_key
    a_listing_keeps_to_its_prefix
    keys_stay_themselves
    a_key_that_is_not_carried_is_refused
    a_range_is_that_range
    a_range_that_is_not_there_is_an_error
    a_pinned_read_is_of_that_version
    the_first_part_tells_the_layout
    metadata_comes_back
    tags_come_back
    a_write_honours_its_condition
    a_wrong_checksum_is_refused
    checksums_that_are_told_are_right
    a_body_that_breaks_shows_nothing
    a_write_that_is_given_up_shows_nothing
    parts_make_the_whole
    nothing_shows_before_completion
    parts_are_listed
    a_part_sent_again_replaces_the_first
    a_wrong_part_is_refused
    a_completion_honours_its_condition
    an_upload_that_ended_is_not_found
    uploads_are_listed_by_prefix
    a_deleted_key_is_gone
    a_delete_honours_its_condition
    a_copy_is_the_same
    versions_keep_their_order
    a_task_arrives_whole_and_does_nothing_twice
    hostile_keys_travel_exactly
}

const HOSTILE: [&str; 18] = [
    "plain",
    "k",
    "k ",
    " k",
    "a b",
    "plus+plus",
    "per%cent",
    "%2F",
    "amp&<>\"'",
    "hash#q?x=y",
    "back\\slash",
    "é",
    "e\u{301}",
    "🦀",
    "日本",
    "new\nline",
    "\u{1}",
    "a//b/../c/.",
];

/// Keys that break things: 400 by rule (every ASCII character alone, before and behind a letter; what URLs, XML, JSON, paths and
/// shells take for something else), then as many as wanted by a seed, of all of Unicode. All differ in their first bytes, so that a
/// directory can hold them.
pub fn hostile_keys(generated: usize, seed: u64) -> Vec<String> {
    const ODD: [&str; 19] = [
        "../x",
        "a/../b",
        "./.",
        "a//b",
        "//",
        "%",
        "%zz",
        "%00",
        "+",
        "a+b c%20d",
        "e\u{301}",
        "\u{feff}",
        "\u{202e}txt",
        "\u{fffd}",
        "\u{10ffff}",
        "]]>",
        "${HOME}`id`",
        "{\"k\":1}",
        "-rf",
    ];
    let ascii = (1..0x80u8).flat_map(|c| [format!("{}", c as char), format!("{}x", c as char), format!("x{}", c as char)]);
    let mut keys: Vec<String> = ascii.chain(ODD.map(str::to_owned)).collect();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for _ in 0..generated {
        let len = 1 + draw(24);
        let any = (0..len).map(|_| match draw(4) {
            0 => char::from(32 + draw(95) as u8),
            1 => ['/', '.', '+', '%', '&', ' ', '\\', '?', '#'][draw(9) as usize],
            2 => char::from_u32(0xa0 + draw(0x2000) as u32).unwrap_or('x'),
            _ => char::from_u32(1 + draw(0x10_FFFE) as u32).unwrap_or('y'),
        });
        keys.push(any.collect());
    }
    keys.iter().enumerate().map(|(i, key)| format!("{i:05}{key}")).collect()
}

fn text(len: usize) -> Bytes {
    (0..len).map(|i| (i ^ (i >> 7) ^ (i >> 13)) as u8).collect::<Vec<_>>().into()
}

fn whole(body: &Bytes) -> Body {
    Body::Bytes(if body.is_empty() { Vec::new() } else { vec![body.clone()] })
}

fn streamed(body: &Bytes) -> Body {
    let chunks: Vec<_> = body.chunks(16 << 10).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    Body::Stream { len: body.len() as u64, stream: stream::iter(chunks).boxed() }
}

pub(super) fn refused<T>(answer: &Result<T, Error>, kinds: &[ErrorKind]) -> bool {
    matches!(answer, Err(error) if kinds.contains(&error.kind()))
}

/// All of a body.
pub(super) async fn gathered(mut body: ByteStream) -> Result<Bytes, Error> {
    let mut all = Vec::new();
    while let Some(chunk) = body.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all.into())
}

impl StoreBench {
    fn key(&self, name: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{name}", self.prefix))
    }

    async fn put(&self, key: &ObjectKey, body: &Bytes) -> Result<Written, Broken> {
        Ok(self.sink.put(key, whole(body), &PutOptions::default()).await?)
    }

    async fn get(&self, key: &ObjectKey, options: &ReadOptions) -> Result<(Bytes, std::ops::Range<u64>, Entry), Error> {
        let read = self.source.read(key, options).await?;
        Ok((gathered(read.body).await?, read.range, read.info.entry))
    }

    async fn reads(&self, key: &ObjectKey, body: &Bytes) -> Result<(), Broken> {
        let (found, range, _) = self.get(key, &ReadOptions::default()).await?;
        hold!(found == *body, "`{key}`: {} bytes were written, {} other bytes read", body.len(), found.len());
        hold!(range == (0..body.len() as u64), "`{key}`: the range of the whole is {range:?}");
        Ok(())
    }

    async fn is_absent(&self, key: &ObjectKey) -> Result<(), Broken> {
        for looked in [self.sink.head(key, None).await.map(|_| ()), self.source.read(key, &ReadOptions::default()).await.map(|_| ())] {
            hold!(refused(&looked, &[ErrorKind::NotFound]), "`{key}` must not be there: {looked:?}");
        }
        Ok(())
    }

    async fn listed(&self, prefix: &str, from: ListFrom, max: u32) -> Result<Vec<Entry>, Broken> {
        let mut request = ListRequest { prefix: format!("{}{prefix}", self.prefix), from, max: Some(max) };
        let mut entries = Vec::new();
        for _ in 0..1000 {
            let page = self.source.list(&request).await?;
            hold!(page.entries.len() <= max as usize, "{} entries in a page of {max}", page.entries.len());
            entries.extend(page.entries);
            let Some(token) = page.next else { return Ok(entries) };
            request.from = ListFrom::Token(token);
        }
        Err(Broken("a listing does not end".into()))
    }

    async fn listed_names(&self, prefix: &str, from: ListFrom, max: u32) -> Result<Vec<String>, Broken> {
        let entries = self.listed(prefix, from, max).await?;
        Ok(entries.iter().map(|e| e.key.as_str().strip_prefix(&self.prefix).unwrap_or(e.key.as_str()).to_owned()).collect())
    }

    fn multipart(&self) -> Option<(MultipartLimits, usize)> {
        let limits = self.sink.sink_capability().multipart?;
        Some((limits, limits.min_part.max(1000) as usize))
    }

    async fn upload(&self, key: &ObjectKey) -> Result<UploadId, Broken> {
        Ok(self.sink.create_upload(key, &PutOptions::default()).await?)
    }

    async fn part(&self, key: &ObjectKey, upload: &UploadId, number: u32, body: &Bytes) -> Result<Part, Broken> {
        let part = self.sink.put_part(key, upload, number, streamed(body), None).await?;
        hold!(part.number == number && part.size == body.len() as u64, "part {number} of {} bytes became {part:?}", body.len());
        Ok(part)
    }
}

const NO_PARTS: Checked = Ok(Verdict::NotMade("it has no multipart uploads"));

/// Bytes, size and etag come back: in the answer to the write, in headers, reads and listings alike.
pub async fn what_is_written_is_read(bench: &StoreBench) -> Checked {
    for (i, len) in [0, 1, 1000, 200_000].into_iter().enumerate() {
        let (key, body) = (bench.key(&format!("size-{len}")), text(len));
        let put = bench.sink.put(&key, if i % 2 == 0 { whole(&body) } else { streamed(&body) }, &PutOptions::default()).await?;
        bench.reads(&key, &body).await?;
        let (_, _, read) = bench.get(&key, &ReadOptions::default()).await?;
        let head = bench.source.head(&key, None).await?;
        hold!(head.entry.size == Some(len as u64) && read.size == head.entry.size, "`{key}` has the size {:?}", head.entry.size);
        hold!(head.entry.etag == read.etag, "`{key}`: etags {:?} and {:?}", head.entry.etag, read.etag);
        hold!(put.etag.is_none() || put.etag == head.entry.etag, "`{key}` was written as {:?} and is {:?}", put.etag, head.entry.etag);
        if bench.sink.index_capability().etag == EtagKind::Md5 && !put.opaque_etag {
            let md5 = ETag::of_md5(&Checksum::of(Algorithm::Md5, std::slice::from_ref(&body)).value);
            hold!(head.entry.etag.as_ref() == Some(&md5), "`{key}`: the etag {:?} is not the MD5 {md5}", head.entry.etag);
        }
        if let Some(sum) = &head.checksum {
            hold!(*sum == Checksum::of(sum.algorithm, std::slice::from_ref(&body)), "`{key}`: {sum} is not its checksum");
        }
    }
    for entry in bench.listed("", ListFrom::Beginning, 1000).await? {
        let head = bench.source.head(&entry.key, None).await?.entry;
        hold!(entry.size == head.size, "`{}` is listed with {:?} bytes and has {:?}", entry.key, entry.size, head.size);
        hold!(entry.etag.is_none() || entry.etag == head.etag, "`{}` is listed as {:?} and is {:?}", entry.key, entry.etag, head.etag);
    }
    Ok(Verdict::Held)
}

/// Nothing of the object that was there before shines through.
pub async fn an_overwrite_replaces_the_whole(bench: &StoreBench) -> Checked {
    let (key, body) = (bench.key("k"), text(10));
    let attributes = Attributes { content_type: Some("text/old".into()), ..Attributes::default() };
    bench.sink.put(&key, whole(&text(5000)), &PutOptions { attributes, ..PutOptions::default() }).await?;
    let before = bench.source.head(&key, None).await?.entry.etag;
    bench.put(&key, &body).await?;
    bench.reads(&key, &body).await?;
    let head = bench.source.head(&key, None).await?;
    hold!(head.attributes.content_type.as_deref() != Some("text/old"), "the old content type is there");
    hold!(head.entry.etag != before, "the etag is the old one");
    Ok(Verdict::Held)
}

/// What is not there is `NotFound`, and nothing else is.
pub async fn a_missing_key_is_not_found(bench: &StoreBench) -> Checked {
    bench.put(&bench.key("dir/k"), &text(3)).await?;
    for key in ["nothing", "dir/k2", "di", "dir/"].map(|name| bench.key(name)) {
        if bench.sink.carries(&key) {
            bench.is_absent(&key).await?;
        }
    }
    Ok(Verdict::Held)
}

/// A listing, however small its pages, has every key once, in byte order where it says so.
pub async fn a_listing_is_whole_and_in_order(bench: &StoreBench) -> Checked {
    let mut names: Vec<String> = ["a", "a b", "a!", "a-", "a.b", "aé", "b", "Z", "_", "~", "é", "日本", "🦀"].map(str::to_owned).into();
    names.extend((0..20).map(|n| format!("d{}/{n}", n % 3)));
    names.retain(|n| bench.sink.carries(&bench.key(n)));
    for name in &names {
        bench.put(&bench.key(name), &text(name.len())).await?;
    }
    names.sort_unstable();
    for max in [1, 3, 1000] {
        let mut listed = bench.listed_names("", ListFrom::Beginning, max).await?;
        if bench.source.index_capability().order == ListOrder::Unordered {
            listed.sort_unstable();
        }
        hold!(listed == names, "in pages of {max}: {listed:?} instead of {names:?}");
    }
    Ok(Verdict::Held)
}

/// A listing can begin behind a key, whether that key is there or not.
pub async fn a_listing_starts_behind_a_key(bench: &StoreBench) -> Checked {
    if !bench.source.index_capability().start_after {
        return Ok(Verdict::NotMade("its listings always begin at the beginning"));
    }
    for name in ["a", "b", "b/x", "c"] {
        if bench.sink.carries(&bench.key(name)) && name != "b" {
            bench.put(&bench.key(name), &text(1)).await?;
        }
    }
    for (after, rest) in [("a", vec!["b/x", "c"]), ("b", vec!["b/x", "c"]), ("b/x", vec!["c"]), ("z", vec![])] {
        let listed = bench.listed_names("", ListFrom::After(bench.key(after)), 1).await?;
        hold!(listed == rest, "behind `{after}`: {listed:?} instead of {rest:?}");
    }
    Ok(Verdict::Held)
}

/// A prefix is a prefix, not a folder.
pub async fn a_listing_keeps_to_its_prefix(bench: &StoreBench) -> Checked {
    for name in ["p/a", "p/b", "px", "q"] {
        bench.put(&bench.key(name), &text(1)).await?;
    }
    for (prefix, keys) in [("p", vec!["p/a", "p/b", "px"]), ("p/", vec!["p/a", "p/b"]), ("p/a", vec!["p/a"]), ("x", vec![])] {
        let mut listed = bench.listed_names(prefix, ListFrom::Beginning, 2).await?;
        listed.sort_unstable();
        hold!(listed == keys, "under `{prefix}`: {listed:?} instead of {keys:?}");
    }
    Ok(Verdict::Held)
}

/// A key is carried byte for byte through writes, listings, headers and reads.
pub async fn keys_stay_themselves(bench: &StoreBench) -> Checked {
    let names: Vec<&str> = HOSTILE.into_iter().filter(|n| bench.sink.carries(&bench.key(n))).collect();
    for (i, name) in names.iter().enumerate() {
        bench.put(&bench.key(name), &text(i + 1)).await?;
    }
    let mut listed = bench.listed_names("", ListFrom::Beginning, 5).await?;
    listed.sort_unstable();
    let mut expected = names.clone();
    expected.sort_unstable();
    hold!(listed == expected, "written {expected:?}, listed {listed:?}");
    for (i, name) in names.iter().enumerate() {
        bench.reads(&bench.key(name), &text(i + 1)).await?;
    }
    Ok(Verdict::Held)
}

/// A key that a sink says it does not carry is refused, and harms nothing.
pub async fn a_key_that_is_not_carried_is_refused(bench: &StoreBench) -> Checked {
    let long = "x".repeat(bench.sink.index_capability().max_key);
    let names: Vec<_> = HOSTILE.into_iter().chain([long.as_str()]).filter(|n| !bench.sink.carries(&bench.key(n))).collect();
    hold!(!names.is_empty(), "a key longer than `max_key` is carried");
    for name in names {
        let put = bench.sink.put(&bench.key(name), whole(&text(3)), &PutOptions::default()).await;
        hold!(refused(&put, &[ErrorKind::Unrepresentable, ErrorKind::Invalid]), "`{name:.40}` was answered {put:?}");
    }
    hold!(bench.listed("", ListFrom::Beginning, 1000).await?.is_empty(), "a refused key left something behind");
    Ok(Verdict::Held)
}

/// A range is answered with exactly these bytes, and says so.
pub async fn a_range_is_that_range(bench: &StoreBench) -> Checked {
    if !bench.source.source_capability().ranged {
        return Ok(Verdict::NotMade("it reads whole objects only"));
    }
    let (key, body) = (bench.key("k"), text(1000));
    bench.put(&key, &body).await?;
    for range in [0..1, 0..1000, 17..18, 500..1000, 999..1000] {
        let options = ReadOptions { range: ReadRange::Bytes(range.clone()), ..ReadOptions::default() };
        let (found, answered, entry) = bench.get(&key, &options).await?;
        hold!(answered == range, "asked for {range:?}, answered {answered:?}");
        hold!(found == body[range.start as usize..range.end as usize], "the bytes of {range:?} are others");
        hold!(entry.size == Some(1000), "within a range, the whole has {:?} bytes", entry.size);
    }
    Ok(Verdict::Held)
}

/// A range that the object does not have is an error, not other bytes.
pub async fn a_range_that_is_not_there_is_an_error(bench: &StoreBench) -> Checked {
    if !bench.source.source_capability().ranged {
        return Ok(Verdict::NotMade("it reads whole objects only"));
    }
    let key = bench.key("k");
    bench.put(&key, &text(100)).await?;
    for range in [100..110, 500..600, 90..110] {
        let options = ReadOptions { range: ReadRange::Bytes(range.clone()), ..ReadOptions::default() };
        match bench.get(&key, &options).await {
            Err(error) => hold!(error.kind() != ErrorKind::NotFound, "a range beyond the end is `{}`", error.kind().as_str()),
            Ok((found, answered, _)) => {
                hold!(
                    answered != range && answered.end - answered.start == found.len() as u64,
                    "{range:?} of 100 bytes was answered {answered:?}"
                );
            }
        }
    }
    Ok(Verdict::Held)
}

/// A read that is pinned to an etag brings that version or `Precondition`.
pub async fn a_pinned_read_is_of_that_version(bench: &StoreBench) -> Checked {
    if !bench.source.source_capability().conditional_read {
        return Ok(Verdict::NotMade("it has no conditional reads"));
    }
    let (key, body) = (bench.key("k"), text(2000));
    bench.put(&key, &body).await?;
    let pinned = ReadOptions { if_match: bench.source.head(&key, None).await?.entry.etag, ..ReadOptions::default() };
    hold!(bench.get(&key, &pinned).await?.0 == body, "a pinned read of the same version brings other bytes");
    bench.put(&key, &text(2001)).await?;
    for range in [ReadRange::Full, ReadRange::Bytes(0..10)] {
        if matches!(range, ReadRange::Bytes(_)) && !bench.source.source_capability().ranged {
            continue;
        }
        let read = bench.get(&key, &ReadOptions { range, ..pinned.clone() }).await;
        hold!(refused(&read, &[ErrorKind::Precondition]), "a read pinned to the old version: {read:?}");
    }
    Ok(Verdict::Held)
}

/// The first part of an object in parts tells how it was made.
pub async fn the_first_part_tells_the_layout(bench: &StoreBench) -> Checked {
    let Some((_, len)) = bench.multipart().filter(|_| bench.source.source_capability().first_part) else {
        return Ok(Verdict::NotMade("it does not read by part number"));
    };
    let key = bench.key("k");
    let upload = bench.upload(&key).await?;
    let parts = [bench.part(&key, &upload, 1, &text(len)).await?, bench.part(&key, &upload, 2, &text(77)).await?];
    bench.sink.complete_upload(&key, &upload, &parts, &PutOptions::default()).await?;
    let first = ReadOptions { range: ReadRange::FirstPart, ..ReadOptions::default() };
    let (body, range, entry) = bench.get(&key, &first).await?;
    hold!(range == (0..len as u64) && body == text(len), "the first part is {range:?}");
    hold!(entry.size == Some(len as u64 + 77), "the whole has {:?} bytes", entry.size);
    Ok(Verdict::Held)
}

/// Content headers and user metadata come back, except those that the sink says it does not carry.
pub async fn metadata_comes_back(bench: &StoreBench) -> Checked {
    let key = bench.key("k");
    let user = [("key".to_owned(), Bytes::from_static(b"value")), ("other-key".to_owned(), Bytes::from_static(b"a b"))];
    let written = Attributes {
        content_type: Some("text/x-odd; charset=utf-8".into()),
        content_encoding: Some("gzip".into()),
        content_language: Some("de".into()),
        content_disposition: Some("attachment; filename=\"a b\"".into()),
        cache_control: Some("max-age=60".into()),
        user: user.into(),
        ..Attributes::default()
    };
    bench.sink.put(&key, whole(&text(5)), &PutOptions { attributes: written.clone(), ..PutOptions::default() }).await?;
    let lost = bench.sink.not_carried(&written);
    let read = bench.source.read(&key, &ReadOptions::default()).await?.info.attributes;
    let pairs = [
        ("content-type", &written.content_type, &read.content_type),
        ("content-encoding", &written.content_encoding, &read.content_encoding),
        ("content-language", &written.content_language, &read.content_language),
        ("content-disposition", &written.content_disposition, &read.content_disposition),
        ("cache-control", &written.cache_control, &read.cache_control),
    ];
    for (name, written, read) in pairs {
        let told = lost.iter().any(|l| l.to_lowercase().replace('_', "-") == name);
        hold!(told || written == read, "{name} was {written:?} and is {read:?}; not carried, it says: {lost:?}");
    }
    let told = lost.iter().any(|l| l.contains("key") || l.contains("meta"));
    hold!(told || read.user == written.user, "metadata was {:?} and is {:?}; not carried, it says: {lost:?}", written.user, read.user);
    Ok(Verdict::Held)
}

/// Tags come back, and their number is told with the object.
pub async fn tags_come_back(bench: &StoreBench) -> Checked {
    if !bench.sink.sink_capability().tags || !bench.source.source_capability().tags {
        return Ok(Verdict::NotMade("it has no tags"));
    }
    let key = bench.key("k");
    let tags = vec![("a".to_owned(), "1".to_owned()), ("key two".to_owned(), "x=y&z".to_owned())];
    bench.sink.put(&key, whole(&text(5)), &PutOptions { tags: tags.clone(), ..PutOptions::default() }).await?;
    let mut found = bench.source.tags(&key, None).await?;
    found.sort_unstable();
    hold!(found == tags, "written {tags:?}, found {found:?}");
    let count = bench.source.read(&key, &ReadOptions::default()).await?.info.tag_count;
    hold!(count == Some(2) || count.is_none(), "two tags, and the object tells of {count:?}");
    Ok(Verdict::Held)
}

/// A write on a condition that does not hold is refused and changes nothing.
pub async fn a_write_honours_its_condition(bench: &StoreBench) -> Checked {
    let conditions = bench.sink.sink_capability().conditions;
    if !conditions.absent && !conditions.unchanged {
        return Ok(Verdict::NotMade("it has no conditional writes"));
    }
    let (key, old, new) = (bench.key("k"), text(10), text(11));
    let on = |condition| PutOptions { condition, ..PutOptions::default() };
    bench.sink.put(&key, whole(&old), &on(Condition::Absent)).await?;
    let etag = bench.sink.head(&key, None).await?.entry.etag.ok_or_else(|| Broken("conditions without etags".into()))?;
    let kinds = [ErrorKind::Precondition, ErrorKind::Conflict];
    let broken = [Condition::Absent, Condition::Match(ETag::new("00000000000000000000000000000000"))];
    for condition in broken.into_iter().filter(|c| conditions.honours(c)) {
        let put = bench.sink.put(&key, whole(&new), &on(condition.clone())).await;
        hold!(refused(&put, &kinds), "{condition:?} over an object was answered {put:?}");
        bench.reads(&key, &old).await?;
    }
    if !conditions.unchanged {
        return Ok(Verdict::Held);
    }
    bench.sink.put(&key, whole(&new), &on(Condition::Match(etag.clone()))).await?;
    bench.reads(&key, &new).await?;
    let put = bench.sink.put(&bench.key("other"), whole(&new), &on(Condition::Match(etag))).await;
    hold!(refused(&put, &[ErrorKind::Precondition, ErrorKind::Conflict, ErrorKind::NotFound]), "an etag, where nothing is: {put:?}");
    bench.is_absent(&bench.key("other")).await?;
    Ok(Verdict::Held)
}

/// A store that takes checksums by itself tells those of the bytes that it holds: of an object put at once, of a part, and of the whole.
pub async fn checksums_that_are_told_are_right(bench: &StoreBench) -> Checked {
    let Some(algorithm) = bench.sink.sink_capability().checksums.first().copied() else {
        return Ok(Verdict::NotMade("it tells no checksum of its own"));
    };
    let sum = |bodies: &[Bytes]| Some(Checksum::of(algorithm, bodies));
    let (key, body) = (bench.key("put"), text(500));
    let written = bench.sink.put(&key, streamed(&body), &PutOptions::default()).await?;
    let looked = bench.sink.head(&key, None).await?.checksum;
    let read = bench.source.read(&key, &ReadOptions::default()).await?.info.checksum;
    for (what, told) in [("a put", written.checksum), ("a look", looked), ("a read", read)] {
        hold!(told == sum(std::slice::from_ref(&body)), "{what} of {:?} tells {told:?}", sum(std::slice::from_ref(&body)));
    }
    let Some((_, len)) = bench.multipart() else { return Ok(Verdict::Held) };
    let (key, bodies) = (bench.key("parts"), [text(len), text(100)]);
    let upload = bench.upload(&key).await?;
    let mut parts = Vec::new();
    for (number, body) in (1..).zip(&bodies) {
        let part = bench.part(&key, &upload, number, body).await?;
        hold!(part.checksum == sum(std::slice::from_ref(body)), "part {number} tells {:?}", part.checksum);
        parts.push(part);
    }
    let whole = bench.sink.complete_upload(&key, &upload, &parts, &PutOptions::default()).await?.checksum;
    hold!(whole == sum(&bodies), "the completion tells {whole:?} of {:?}", sum(&bodies));
    Ok(Verdict::Held)
}

/// A body that does not have the checksum given with it never becomes visible.
pub async fn a_wrong_checksum_is_refused(bench: &StoreBench) -> Checked {
    let verifies = bench.sink.sink_capability().verifies;
    if verifies.is_empty() {
        return Ok(Verdict::NotMade("it verifies no checksum"));
    }
    for algorithm in verifies {
        let body = text(500);
        let sum = |body: &Bytes| Some(Checksum::of(*algorithm, std::slice::from_ref(body)));
        let key = bench.key(algorithm.as_str());
        for stream in [false, true] {
            let send = if stream { streamed(&body) } else { whole(&body) };
            let put = bench.sink.put(&key, send, &PutOptions { checksum: sum(&text(501)), ..PutOptions::default() }).await;
            hold!(refused(&put, &[ErrorKind::Corrupt]), "{}: a wrong checksum was answered {put:?}", algorithm.as_str());
            bench.is_absent(&key).await?;
        }
        bench.sink.put(&key, whole(&body), &PutOptions { checksum: sum(&body), ..PutOptions::default() }).await?;
        bench.reads(&key, &body).await?;
    }
    Ok(Verdict::Held)
}

/// A body that breaks off shows nothing, and leaves what was there.
pub async fn a_body_that_breaks_shows_nothing(bench: &StoreBench) -> Checked {
    let old = text(40);
    for there in [false, true] {
        let key = bench.key(if there { "there" } else { "new" });
        if there {
            bench.put(&key, &old).await?;
        }
        for short in [false, true] {
            let mut chunks = vec![Ok(text(50_000))];
            if !short {
                chunks.push(Err(Error::new(ErrorKind::Unavailable, Op::Read, "broken on purpose")));
            }
            let body = Body::Stream { len: 100_000, stream: stream::iter(chunks).boxed() };
            let put = bench.sink.put(&key, body, &PutOptions::default()).await;
            hold!(put.is_err(), "half a body was taken for whole: {put:?}");
            if there {
                bench.reads(&key, &old).await?;
            } else {
                bench.is_absent(&key).await?;
            }
        }
    }
    Ok(Verdict::Held)
}

/// A write whose caller goes away shows nothing.
pub async fn a_write_that_is_given_up_shows_nothing(bench: &StoreBench) -> Checked {
    let key = bench.key("k");
    let body = stream::iter([Ok(text(50_000))]).chain(stream::pending()).boxed();
    let options = PutOptions::default();
    let put = bench.sink.put(&key, Body::Stream { len: 100_000, stream: body }, &options);
    let ended = tokio::time::timeout(Duration::from_millis(300), put).await;
    hold!(ended.is_err(), "half a body was answered {ended:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    bench.is_absent(&key).await?;
    Ok(Verdict::Held)
}

/// Parts, in whatever order they came, make the object in the order of their numbers.
pub async fn parts_make_the_whole(bench: &StoreBench) -> Checked {
    let Some((_, len)) = bench.multipart() else { return NO_PARTS };
    let key = bench.key("k");
    let upload = bench.upload(&key).await?;
    let bodies = [text(len), text(len + 1).slice(1..), text(77)];
    let last = bench.part(&key, &upload, 3, &bodies[2]).await?;
    let parts = [bench.part(&key, &upload, 1, &bodies[0]).await?, bench.part(&key, &upload, 2, &bodies[1]).await?, last];
    let written = bench.sink.complete_upload(&key, &upload, &parts, &PutOptions::default()).await?;
    bench.reads(&key, &bodies.concat().into()).await?;
    let etag = bench.source.head(&key, None).await?.entry.etag;
    hold!(written.etag.is_none() || written.etag == etag, "completed as {:?}, and it is {etag:?}", written.etag);
    if bench.sink.index_capability().etag == EtagKind::Md5 && !written.opaque_etag {
        let md5 = |body: &Bytes| Checksum::of(Algorithm::Md5, std::slice::from_ref(body)).value.try_into().unwrap_or([0; 16]);
        let expected = ETag::of_parts(&bodies.iter().map(md5).collect::<Vec<_>>());
        hold!(etag.as_ref() == Some(&expected), "the etag {etag:?} is not that of its parts, {expected}");
    }
    Ok(Verdict::Held)
}

/// An object in parts is not there, in whole or in part, before it is completed.
pub async fn nothing_shows_before_completion(bench: &StoreBench) -> Checked {
    let Some((_, len)) = bench.multipart() else { return NO_PARTS };
    let key = bench.key("k");
    let upload = bench.upload(&key).await?;
    let part = bench.part(&key, &upload, 1, &text(len)).await?;
    bench.is_absent(&key).await?;
    hold!(bench.listed("", ListFrom::Beginning, 10).await?.is_empty(), "an unfinished object is listed");
    bench.sink.complete_upload(&key, &upload, &[part], &PutOptions::default()).await?;
    bench.reads(&key, &text(len)).await?;
    Ok(Verdict::Held)
}

/// The parts of an upload are listed as they were answered.
pub async fn parts_are_listed(bench: &StoreBench) -> Checked {
    let Some((_, len)) = bench.multipart().filter(|(limits, _)| limits.list_parts) else {
        return Ok(Verdict::NotMade("it does not list parts"));
    };
    let key = bench.key("k");
    let upload = bench.upload(&key).await?;
    hold!(bench.sink.list_parts(&key, &upload).await?.is_empty(), "a new upload has parts");
    let sent = [bench.part(&key, &upload, 2, &text(len)).await?, bench.part(&key, &upload, 5, &text(len + 1)).await?];
    let mut listed = bench.sink.list_parts(&key, &upload).await?;
    listed.sort_by_key(|p| p.number);
    let as_pairs = |parts: &[Part]| parts.iter().map(|p| (p.number, p.size, p.etag.clone())).collect::<Vec<_>>();
    hold!(as_pairs(&listed) == as_pairs(&sent), "sent {sent:?}, listed {listed:?}");
    bench.sink.abort_upload(&key, &upload).await?;
    Ok(Verdict::Held)
}

/// A part that is sent a second time replaces the first.
pub async fn a_part_sent_again_replaces_the_first(bench: &StoreBench) -> Checked {
    let Some((_, len)) = bench.multipart() else { return NO_PARTS };
    let key = bench.key("k");
    let upload = bench.upload(&key).await?;
    bench.part(&key, &upload, 1, &text(len)).await?;
    let other = text(len + 9).slice(9..);
    let part = bench.part(&key, &upload, 1, &other).await?;
    bench.sink.complete_upload(&key, &upload, &[part], &PutOptions::default()).await?;
    bench.reads(&key, &other).await?;
    Ok(Verdict::Held)
}

/// A completion that names a part which is not there, or is another one, is refused.
pub async fn a_wrong_part_is_refused(bench: &StoreBench) -> Checked {
    let Some((_, len)) = bench.multipart() else { return NO_PARTS };
    let key = bench.key("k");
    let upload = bench.upload(&key).await?;
    let part = bench.part(&key, &upload, 1, &text(len)).await?;
    let other = Part { etag: ETag::new("00000000000000000000000000000000"), ..part.clone() };
    let missing = Part { number: 2, ..part.clone() };
    for parts in [vec![other], vec![part.clone(), missing]] {
        let completed = bench.sink.complete_upload(&key, &upload, &parts, &PutOptions::default()).await;
        hold!(completed.is_err(), "{parts:?} were completed: {completed:?}");
        bench.is_absent(&key).await?;
    }
    bench.sink.abort_upload(&key, &upload).await?;
    Ok(Verdict::Held)
}

/// A completion on a condition that does not hold is refused and changes nothing.
pub async fn a_completion_honours_its_condition(bench: &StoreBench) -> Checked {
    let conditions = bench.sink.sink_capability().conditions;
    if !conditions.absent {
        return Ok(Verdict::NotMade("it has no conditional writes"));
    }
    let Some((_, len)) = bench.multipart() else { return NO_PARTS };
    let (key, old) = (bench.key("k"), text(10));
    bench.put(&key, &old).await?;
    let etag = bench.sink.head(&key, None).await?.entry.etag.ok_or_else(|| Broken("conditions without etags".into()))?;
    let upload = bench.upload(&key).await?;
    let part = bench.part(&key, &upload, 1, &text(len)).await?;
    let on = |condition| PutOptions { condition, ..PutOptions::default() };
    let refusal = bench.sink.complete_upload(&key, &upload, std::slice::from_ref(&part), &on(Condition::Absent)).await;
    hold!(refused(&refusal, &[ErrorKind::Precondition, ErrorKind::Conflict]), "over an object: {refusal:?}");
    bench.reads(&key, &old).await?;
    if !conditions.unchanged {
        return Ok(Verdict::Held);
    }
    let completed = bench.sink.complete_upload(&key, &upload, std::slice::from_ref(&part), &on(Condition::Match(etag))).await;
    // Some stores end an upload whose completion was refused.
    if !refused(&completed, &[ErrorKind::NotFound]) {
        completed?;
        bench.reads(&key, &text(len)).await?;
    }
    Ok(Verdict::Held)
}

/// What was aborted is no upload any more. (Only a look tells that of a completion: some stores answer it with a server error.)
pub async fn an_upload_that_ended_is_not_found(bench: &StoreBench) -> Checked {
    let Some((limits, len)) = bench.multipart() else { return NO_PARTS };
    let key = bench.key("k");
    let upload = bench.upload(&key).await?;
    let part = bench.part(&key, &upload, 1, &text(len)).await?;
    bench.sink.abort_upload(&key, &upload).await?;
    let completed = bench.sink.complete_upload(&key, &upload, &[part], &PutOptions::default()).await;
    hold!(completed.is_err(), "an aborted upload was completed: {completed:?}");
    let sent = bench.sink.put_part(&key, &upload, 1, streamed(&text(10)), None).await;
    hold!(refused(&sent, &[ErrorKind::NotFound]), "an aborted upload took a part: {sent:?}");
    if limits.list_parts {
        let listed = bench.sink.list_parts(&key, &upload).await;
        hold!(refused(&listed, &[ErrorKind::NotFound]), "an aborted upload listed its parts: {listed:?}");
    }
    let again = bench.sink.abort_upload(&key, &upload).await;
    hold!(again.is_ok() || refused(&again, &[ErrorKind::NotFound]), "a second abort: {again:?}");
    bench.is_absent(&key).await?;
    Ok(Verdict::Held)
}

/// Unfinished uploads are listed with their exact key.
pub async fn uploads_are_listed_by_prefix(bench: &StoreBench) -> Checked {
    if !bench.multipart().is_some_and(|(limits, _)| limits.list_uploads) {
        return Ok(Verdict::NotMade("it does not list uploads"));
    }
    let names: Vec<&str> = ["big", "big.bak", "big/é 1+%", "other"].into_iter().filter(|n| bench.sink.carries(&bench.key(n))).collect();
    let mut begun = Vec::new();
    for name in &names {
        begun.push((bench.key(name), bench.upload(&bench.key(name)).await?));
    }
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let (page, next) = bench.sink.list_uploads(&format!("{}big", bench.prefix), token.as_deref()).await?;
        found.extend(page.into_iter().map(|u| (u.key, u.id)));
        token = next;
        if token.is_none() {
            break;
        }
    }
    found.sort();
    let mut expected: Vec<_> = begun.iter().filter(|(key, _)| *key != bench.key("other")).cloned().collect();
    expected.sort();
    hold!(found == expected, "begun {expected:?}, listed {found:?}");
    for (key, upload) in begun {
        bench.sink.abort_upload(&key, &upload).await?;
    }
    Ok(Verdict::Held)
}

/// A deleted key is gone, its neighbours are not, and deleting nothing harms nobody.
pub async fn a_deleted_key_is_gone(bench: &StoreBench) -> Checked {
    for name in ["k", "k2"] {
        bench.put(&bench.key(name), &text(5)).await?;
    }
    bench.sink.delete(&bench.key("k"), &Condition::None).await?;
    bench.is_absent(&bench.key("k")).await?;
    bench.reads(&bench.key("k2"), &text(5)).await?;
    let again = bench.sink.delete(&bench.key("k"), &Condition::None).await;
    hold!(again.is_ok() || refused(&again, &[ErrorKind::NotFound]), "deleting nothing: {again:?}");
    Ok(Verdict::Held)
}

/// A delete on a condition that does not hold is refused.
pub async fn a_delete_honours_its_condition(bench: &StoreBench) -> Checked {
    if !bench.sink.sink_capability().conditions.delete {
        return Ok(Verdict::NotMade("it has no conditional deletes"));
    }
    let key = bench.key("k");
    bench.put(&key, &text(5)).await?;
    let old = bench.sink.head(&key, None).await?.entry.etag.ok_or_else(|| Broken("conditions without etags".into()))?;
    bench.put(&key, &text(6)).await?;
    let deleted = bench.sink.delete(&key, &Condition::Match(old)).await;
    hold!(refused(&deleted, &[ErrorKind::Precondition, ErrorKind::Conflict]), "a newer object was deleted: {deleted:?}");
    bench.reads(&key, &text(6)).await?;
    let now = bench.sink.head(&key, None).await?.entry.etag.unwrap_or_else(|| ETag::new(""));
    bench.sink.delete(&key, &Condition::Match(now)).await?;
    bench.is_absent(&key).await?;
    Ok(Verdict::Held)
}

/// A copy inside the store is of the version that was meant, or none.
pub async fn a_copy_is_the_same(bench: &StoreBench) -> Checked {
    let (from, to, body) = (bench.key("from é+"), bench.key("to"), text(3000));
    let Some(origin) = bench.source.copy_origin(&from, None).filter(|o| bench.sink.can_copy(o)) else {
        return Ok(Verdict::NotMade("it does not copy inside the store"));
    };
    bench.put(&from, &body).await?;
    let etag = bench.source.head(&from, None).await?.entry.etag.ok_or_else(|| Broken("copies without etags".into()))?;
    bench.sink.copy(&origin, &etag, &to, &PutOptions::default()).await?;
    bench.reads(&to, &body).await?;
    bench.put(&from, &text(3001)).await?;
    let copied = bench.sink.copy(&origin, &etag, &bench.key("never"), &PutOptions::default()).await;
    hold!(refused(&copied, &[ErrorKind::Precondition]), "another version was copied: {copied:?}");
    bench.is_absent(&bench.key("never")).await?;
    Ok(Verdict::Held)
}

/// A worker that may copy inside the store, or lets all bytes go through itself.
fn moving(server_copy: bool) -> WorkerSettings {
    WorkerSettings { transfer: TransferSettings { server_copy, ..TransferSettings::default() }, ..WorkerSettings::default() }
}

/// Versions and delete markers are listed with the youngest first, key by key, and each is read as it was.
pub async fn versions_keep_their_order(bench: &StoreBench) -> Checked {
    if !bench.sink.keeps_versions().await? {
        return Ok(Verdict::NotMade("it keeps no versions"));
    }
    let key = bench.key("k");
    let neighbour = bench.key("k ");
    for body in ["one", "three", "", "two"] {
        if body.is_empty() {
            bench.sink.delete(&key, &Condition::None).await?;
        } else {
            bench.put(&key, &Bytes::from_static(body.as_bytes())).await?;
        }
        bench.put(&neighbour, &Bytes::from_static(b"x")).await?;
    }
    let listed = history(&*bench.source, &key).await?;
    let told: Vec<_> = listed.iter().map(|version| (version.marker, version.entry.size)).collect();
    hold!(told == [(false, Some(3)), (false, Some(5)), (true, None), (false, Some(3))], "the oldest first: {told:?}");
    for (version, body) in listed.iter().zip(["one", "three", "", "two"]).filter(|(version, _)| !version.marker) {
        let options = ReadOptions { version: version.entry.version.clone(), ..ReadOptions::default() };
        let (found, _, entry) = bench.get(&key, &options).await?;
        hold!(entry.etag == version.entry.etag, "{version:?} was read as {entry:?}");
        let head = bench.source.head(&key, version.entry.version.as_ref()).await?;
        hold!(head.entry.size == version.entry.size, "{version:?} was looked at as {:?}", head.entry);
        let body = Bytes::from_static(body.as_bytes());
        hold!(found == body, "version {:?} is {found:?}, not {body:?}", version.entry.version);
    }
    // Page by page, and behind a key.
    let mut request = ListRequest { prefix: bench.key("").as_str().to_owned(), max: Some(3), ..ListRequest::default() };
    let mut keys = Vec::new();
    loop {
        let page = bench.source.versions(&request).await?;
        hold!(page.versions.len() <= 3, "a page of {} for 3", page.versions.len());
        keys.extend(page.versions.into_iter().map(|version| version.entry.key));
        let Some(token) = page.next else { break };
        request.from = ListFrom::Token(token);
    }
    let expected = [&key, &neighbour].into_iter().flat_map(|key| vec![key.clone(); 4]).collect::<Vec<_>>();
    hold!(keys == expected, "in pages: {keys:?}");
    let behind = ListRequest { from: ListFrom::After(key), max: None, ..request };
    let behind = bench.source.versions(&behind).await?.versions;
    hold!(behind.iter().all(|version| version.entry.key == neighbour) && behind.len() == 4, "behind the first key: {behind:?}");
    Ok(Verdict::Held)
}

/// The pair: a task from one prefix to another arrives byte for byte, through us and (where it can) inside the store, and a second
/// run finds nothing to do.
pub async fn a_task_arrives_whole_and_does_nothing_twice(bench: &StoreBench) -> Checked {
    let mut objects = Vec::new();
    for (i, name) in HOSTILE.into_iter().enumerate() {
        let (key, there) = (bench.key(&format!("from/{name}")), bench.key(&format!("to/from/{name}")));
        if bench.sink.carries(&key) && bench.sink.carries(&there) {
            bench.put(&key, &text(i * 700)).await?;
            objects.push((key, text(i * 700)));
        }
    }
    if let Some((_, len)) = bench.multipart() {
        let key = bench.key("from/large");
        let upload = bench.upload(&key).await?;
        let parts = [bench.part(&key, &upload, 1, &text(len)).await?, bench.part(&key, &upload, 2, &text(99)).await?];
        bench.sink.complete_upload(&key, &upload, &parts, &PutOptions::default()).await?;
        objects.push((key, [text(len), text(99)].concat().into()));
    }
    let inside = bench.source.copy_origin(&bench.key("from/"), None).is_some_and(|origin| bench.sink.can_copy(&origin));
    for (server_copy, to) in [(false, "copy"), (true, "inside")] {
        if server_copy && !inside {
            continue;
        }
        let keys = KeyMap::new(&format!("{}{to}", bench.prefix));
        let state = Arc::new(MemoryState::new());
        let finder = crate::finder::FinderSettings { prefix: format!("{}from/", bench.prefix), ..Default::default() };
        let task = || {
            Sync::new(Arc::clone(&bench.source), Arc::clone(&bench.sink))
                .with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _)
                .with_keys(keys.clone())
                .with_finder(finder.clone())
                .with_worker(moving(server_copy))
        };
        let first = task().run().await?;
        let copied = first.run.outcomes_like("copied").objects;
        hold!(first.is_success() && copied == objects.len() as u64, "{} objects, {copied} copied: {:?}", objects.len(), first.run.outcomes);
        for (key, body) in &objects {
            bench.reads(&keys.to_destination(key), body).await?;
        }
        let second = task().run().await?;
        hold!(second.is_success() && second.run.totals.queued.objects == 0, "the second run: {:?}", second.run.totals);
    }
    Ok(Verdict::Held)
}

/// 400 keys by rule and 2,000 generated ones: written, listed, queued, moved, recorded and read, each byte for byte.
pub async fn hostile_keys_travel_exactly(bench: &StoreBench) -> Checked {
    let keys = KeyMap::new(&format!("{}copy", bench.prefix));
    let all = hostile_keys(2000, 7).into_iter().map(|name| bench.key(&format!("h/{name}")));
    let mut sent: Vec<ObjectKey> = all.filter(|key| bench.sink.carries(key) && bench.sink.carries(&keys.to_destination(key))).collect();
    sent.sort_unstable();
    let body = |key: &ObjectKey| Bytes::copy_from_slice(key.as_str().as_bytes());
    let mut writes = stream::iter(sent.clone()).map(|key| async move { bench.put(&key, &body(&key)).await }).buffer_unordered(16);
    while let Some(written) = writes.next().await {
        written?;
    }
    let prefix = format!("{}h/", bench.prefix);
    let state = Arc::new(MemoryState::new());
    let report = Sync::new(Arc::clone(&bench.source), Arc::clone(&bench.sink))
        .with_state(Arc::new(MemoryQueue::new()), Arc::clone(&state) as _)
        .with_keys(keys.clone())
        .with_finder(crate::finder::FinderSettings { prefix, ..Default::default() })
        .with_worker(moving(false))
        .run()
        .await?;
    let copied = report.run.outcomes_like("copied").objects;
    hold!(report.is_success() && copied == sent.len() as u64, "{} keys, {copied} copied: {:?}", sent.len(), report.run.outcomes);
    let recorded: Vec<ObjectKey> = state.query(&crate::state::RecordQuery::default(), 10_000).await?.into_iter().map(|r| r.key).collect();
    hold!(recorded == sent, "{} keys sent, {} recorded", sent.len(), recorded.len());
    let mut reads = stream::iter(sent)
        .map(|key| {
            let there = keys.to_destination(&key);
            async move { bench.reads(&there, &body(&key)).await }
        })
        .buffer_unordered(16);
    while let Some(read) = reads.next().await {
        read?;
    }
    Ok(Verdict::Held)
}
