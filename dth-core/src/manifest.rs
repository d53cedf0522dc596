//! What a task has put where, one line of JSON a key, so that anyone can check it later against both sides.

use crate::{
    checksum::Checksum,
    error::{Error, ErrorKind, Op, Result},
    key_map::KeyMap,
    object::{ETag, ObjectKey},
    sink::Sink,
    source::Source,
    state::{RecordQuery, SourceVersion, StateStore, Status, Verified},
};
use serde::{Deserialize, Serialize};
use std::io::Write;

/// One object in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The source key.
    pub key: ObjectKey,
    /// The destination key.
    pub destination: ObjectKey,
    /// The source version that was copied.
    pub source: SourceVersion,
    /// The destination's etag.
    pub etag: Option<ETag>,
    /// A checksum of the whole object.
    pub checksum: Option<Checksum>,
    /// How strongly it was checked.
    pub verified: Option<Verified>,
}

/// Writes a line for each object that is done; answers how many.
pub async fn export(state: &dyn StateStore, keys: &KeyMap, out: &mut (dyn Write + Send)) -> Result<u64> {
    let mut query = RecordQuery { status: Some(Status::Done), ..RecordQuery::default() };
    let mut lines = 0;
    let failed = |e: std::io::Error| Error::new(ErrorKind::Unavailable, Op::SaveState, "manifest").with_source(e);
    loop {
        let page = state.query(&query, 1000).await?;
        let Some(last) = page.last() else { return Ok(lines) };
        query.after = Some(last.key.clone());
        for record in page {
            let Some(source) = record.source else { continue };
            let destination = keys.to_destination(&record.key);
            let line = Line {
                key: record.key,
                destination,
                source,
                etag: record.destination,
                checksum: record.checksum,
                verified: record.verified,
            };
            let json = serde_json::to_string(&line).expect("a line is plain data");
            writeln!(out, "{json}").map_err(failed)?;
            lines += 1;
        }
    }
}

/// What comparing a manifest with both sides showed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Lines checked.
    pub checked: u64,
    /// Both sides are as recorded.
    pub good: u64,
    /// The source is another version by now, or gone; the destination is as recorded.
    pub source_moved_on: u64,
    /// Destination keys that are not as recorded.
    pub wrong: Vec<ObjectKey>,
}

/// Compares one line with both sides by a header request each.
pub async fn verify(line: &Line, source: &dyn Source, sink: &dyn Sink, result: &mut Verification) -> Result<()> {
    result.checked += 1;
    let gone_is_none = |answer: Result<crate::object::ObjectInfo>| match answer {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let there = gone_is_none(sink.head(&line.destination, None).await)?;
    let same_there = there.is_some_and(|info| info.entry.etag == line.etag && info.entry.size == Some(line.source.size));
    if !same_there {
        result.wrong.push(line.destination.clone());
        return Ok(());
    }
    let here = gone_is_none(source.head(&line.key, None).await)?;
    if here.is_some_and(|info| SourceVersion::of(&info.entry).etag == line.source.etag) {
        result.good += 1;
    } else {
        result.source_moved_on += 1;
    }
    Ok(())
}
