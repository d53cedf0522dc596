//! What a task has put where, one line of JSON a key, so that anyone can check it later against both sides.
//!
//! Copied objects have records, which are exported. Objects that a finder found equal have none: where a manifest of all is
//! wanted, the finder spools their lines into a folder ([`Spool`]).

use crate::{
    checksum::Checksum,
    error::{Error, ErrorKind, Op, Result},
    index::Index,
    key_map::KeyMap,
    object::{ETag, Entry, ObjectInfo, ObjectKey},
    sink::Sink,
    source::Source,
    state::{RecordQuery, RunId, Shard, SourceVersion, StateStore, Status, Verified},
    versions,
};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, BufWriter, Write},
    path::PathBuf,
};

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

impl Line {
    /// The line of an object that both listings show alike.
    pub fn unchanged(source: &Entry, destination: &Entry) -> Self {
        Self {
            key: source.key.clone(),
            destination: destination.key.clone(),
            source: SourceVersion::of(source),
            etag: destination.etag.clone(),
            checksum: None,
            verified: None,
        }
    }
}

/// A folder with the lines of objects that were found equal: a folder a run, a file a step of the finder.
///
/// A step that is done again after a crash writes the same file again, so that each key has one line.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// A spool in this folder, which is made when it is needed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn failed(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::new(ErrorKind::Unavailable, Op::SaveState, self.folder.display().to_string()).with_source(error)
    }

    /// Writes the lines of one step, whole or not at all.
    pub(crate) async fn write(&self, run: &RunId, shard: &Shard, lines: Vec<Line>) -> Result<()> {
        let (spool, folder) = (self.clone(), self.folder.join(run.as_str()));
        let name = format!("{:06}-{:010}.jsonl", shard.id, shard.version);
        let written = tokio::task::spawn_blocking(move || {
            let write = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
                std::fs::create_dir_all(&folder)?;
                let mut out = BufWriter::new(tempfile::NamedTempFile::new_in(&folder)?);
                for line in &lines {
                    serde_json::to_writer(&mut out, line)?;
                    out.write_all(b"\n")?;
                }
                let file = out.into_inner()?;
                file.as_file().sync_data()?;
                file.persist(folder.join(name))?;
                Ok(())
            };
            write().map_err(|e| spool.failed(e))
        });
        written.await.map_err(|e| self.failed(e))?
    }

    /// Writes the lines of a run to `out`, but for keys with a record of their own, which [`export`] writes; answers how many.
    pub async fn export(&self, run: &RunId, state: &dyn StateStore, out: &mut (dyn Write + Send)) -> Result<u64> {
        let mut files: Vec<PathBuf> = match std::fs::read_dir(self.folder.join(run.as_str())) {
            Ok(found) => found.map(|file| file.map(|f| f.path())).collect::<Result<_, _>>().map_err(|e| self.failed(e))?,
            Err(_) if state.run(run).await?.totals.unchanged.objects == 0 => Vec::new(),
            Err(error) => return Err(self.failed(error)),
        };
        files.retain(|path| path.extension().is_some_and(|e| e == "jsonl"));
        files.sort();
        let mut count = 0;
        for path in files {
            let mut lines = Vec::new();
            for line in BufReader::new(std::fs::File::open(&path).map_err(|e| self.failed(e))?).lines() {
                lines.push(serde_json::from_str::<Line>(&line.map_err(|e| self.failed(e))?).map_err(|e| self.failed(e))?);
            }
            let keys: Vec<ObjectKey> = lines.iter().map(|line| line.key.clone()).collect();
            let records = state.records(&keys).await?;
            for (line, _) in lines.iter().zip(records).filter(|(_, r)| r.as_ref().is_none_or(|r| r.status != Status::Done)) {
                serde_json::to_writer(&mut *out, line).map_err(|e| self.failed(e))?;
                out.write_all(b"\n").map_err(|e| self.failed(e))?;
                count += 1;
            }
        }
        Ok(count)
    }
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
    /// Both sides are as recorded, and what the entry needs is there.
    pub good: u64,
    /// The source is another version by now, or gone; the destination is as recorded. What such an entry needs was not looked for.
    pub source_moved_on: u64,
    /// Children of the entries that were looked for, each once.
    pub children: u64,
    /// Destination keys that are not as recorded, or lack something.
    pub wrong: Vec<ObjectKey>,
    /// Children that are there, and those that are not.
    #[serde(skip)]
    looked: HashMap<ObjectKey, bool>,
}

/// Compares one line with both sides by a header request each; of an entry with children also each of these, at the destination.
pub async fn verify(line: &Line, source: &dyn Source, sink: &dyn Sink, keys: &KeyMap, result: &mut Verification) -> Result<()> {
    result.checked += 1;
    let is_history = versions::is_history(line.source.etag.as_ref());
    let there = gone_is_none(look(sink, &line.destination, is_history).await)?;
    // The destination may hold older versions besides.
    let same_there = there.is_some_and(|info| info.entry.etag == line.etag && (is_history || info.entry.size == Some(line.source.size)));
    if !same_there {
        result.wrong.push(line.destination.clone());
        return Ok(());
    }
    let here = gone_is_none(look(source, &line.key, is_history).await)?;
    let Some(here) = here.filter(|info| SourceVersion::of(&info.entry).etag == line.source.etag) else {
        result.source_moved_on += 1;
        return Ok(());
    };
    if source.source_capability().children && !are_there(&here.entry, source, sink, keys, result).await? {
        result.wrong.push(line.destination.clone());
    } else {
        result.good += 1;
    }
    Ok(())
}

/// Looks at an object, or at all of its versions.
async fn look(index: &dyn Index, key: &ObjectKey, history: bool) -> Result<ObjectInfo> {
    if history { versions::head(index, key).await } else { index.head(key, None).await }
}

/// Whether all that an entry needs, and what that needs, is at the destination.
fn are_there<'a>(
    parent: &'a Entry,
    source: &'a dyn Source,
    sink: &'a dyn Sink,
    keys: &'a KeyMap,
    result: &'a mut Verification,
) -> BoxFuture<'a, Result<bool>> {
    Box::pin(async move {
        let mut all = true;
        for child in source.children(parent).await?.children {
            let key = keys.to_destination(&child.key);
            let there = match result.looked.get(&key) {
                Some(there) => *there,
                None => {
                    result.children += 1;
                    let found = gone_is_none(sink.head(&key, None).await)?;
                    let same = found.is_some_and(|f| f.entry.etag == child.etag && child.size.is_none_or(|s| f.entry.size == Some(s)));
                    // Known before its own children are looked at: a graph that goes round ends here.
                    result.looked.insert(key.clone(), same);
                    let there = same && are_there(&child, source, sink, keys, result).await?;
                    result.looked.insert(key, there);
                    there
                }
            };
            all &= there;
        }
        Ok(all)
    })
}

fn gone_is_none(answer: Result<ObjectInfo>) -> Result<Option<ObjectInfo>> {
    match answer {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
