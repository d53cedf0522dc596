//! Brings a listing of another order into ours, on disk: sorted runs, merged.

use crate::{
    error::{Error, ErrorKind, Op, Result},
    object::{ETag, Entry, ObjectKey, VersionId},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Seek, Write},
    sync::Arc,
};

/// Entries of a run, held in memory while it is filled: some 20 MB.
const RUN: usize = 100_000;
/// Runs that are merged at once, each with an open file.
const FAN_IN: usize = 64;

/// An entry as a line.
#[derive(Serialize, Deserialize)]
struct Line(ObjectKey, Option<u64>, Option<ETag>, Option<Timestamp>, Option<VersionId>, Option<Arc<str>>);

impl From<Entry> for Line {
    fn from(e: Entry) -> Self {
        Self(e.key, e.size, e.etag, e.modified, e.version, e.storage_class)
    }
}

impl From<Line> for Entry {
    fn from(Line(key, size, etag, modified, version, storage_class): Line) -> Self {
        Self { key, size, etag, modified, version, storage_class }
    }
}

/// Takes entries in any order; its files have no names and go with it.
#[derive(Debug)]
pub(crate) struct Sorter {
    held: Vec<Entry>,
    runs: Vec<File>,
    run: usize,
}

impl Sorter {
    pub(crate) fn new() -> Self {
        Self { held: Vec::new(), runs: Vec::new(), run: RUN }
    }

    pub(crate) fn push(&mut self, entries: Vec<Entry>) -> Result<()> {
        self.held.extend(entries);
        if self.held.len() < self.run {
            return Ok(());
        }
        self.held.sort_by(|a, b| a.key.cmp(&b.key));
        let held = std::mem::take(&mut self.held);
        let run = write_run(held.into_iter().map(Ok)).map_err(broken)?;
        self.runs.push(run);
        if self.runs.len() >= FAN_IN {
            let merged = write_run(Sorted::new(Vec::new(), std::mem::take(&mut self.runs))?).map_err(broken)?;
            self.runs.push(merged);
        }
        Ok(())
    }

    /// All entries by key, each key once.
    pub(crate) fn finish(mut self) -> Result<Sorted> {
        self.held.sort_by(|a, b| a.key.cmp(&b.key));
        Sorted::new(self.held, self.runs)
    }
}

fn write_run(entries: impl Iterator<Item = Result<Entry>>) -> Result<File, Box<dyn std::error::Error + Send + std::marker::Sync>> {
    let mut out = BufWriter::with_capacity(256 << 10, tempfile::tempfile()?);
    for entry in entries {
        serde_json::to_writer(&mut out, &Line::from(entry?))?;
        out.write_all(b"\n")?;
    }
    let mut file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file)
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + std::marker::Sync>>) -> Error {
    Error::new(ErrorKind::Unavailable, Op::List, "the temporary folder").with_source(error)
}

/// Entries by key, from several sorted runs.
#[derive(Debug)]
pub(crate) struct Sorted {
    heads: BinaryHeap<Reverse<(ObjectKey, usize)>>,
    first: Vec<Option<Entry>>,
    held: std::vec::IntoIter<Entry>,
    runs: Vec<BufReader<File>>,
    last: Option<ObjectKey>,
}

impl Sorted {
    fn new(held: Vec<Entry>, runs: Vec<File>) -> Result<Self> {
        let runs: Vec<_> = runs.into_iter().map(|f| BufReader::with_capacity(64 << 10, f)).collect();
        let count = runs.len() + 1;
        let mut sorted =
            Self { heads: BinaryHeap::new(), first: (0..count).map(|_| None).collect(), held: held.into_iter(), runs, last: None };
        for run in 0..count {
            sorted.advance(run)?;
        }
        Ok(sorted)
    }

    fn advance(&mut self, run: usize) -> Result<()> {
        let next = match self.runs.get_mut(run) {
            None => self.held.next(),
            Some(file) => {
                let mut line = String::new();
                match file.read_line(&mut line).map_err(broken)? {
                    0 => None,
                    _ => Some(serde_json::from_str::<Line>(&line).map_err(broken)?.into()),
                }
            }
        };
        if let Some(entry) = &next {
            self.heads.push(Reverse((entry.key.clone(), run)));
        }
        self.first[run] = next;
        Ok(())
    }

    /// The next entries, at most `max`; none at the end.
    pub(super) fn page(&mut self, max: usize) -> Result<Vec<Entry>> {
        self.take(max).collect()
    }
}

impl Iterator for Sorted {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            let Reverse((key, run)) = self.heads.pop()?;
            let entry = self.first[run].take();
            if let Err(error) = self.advance(run) {
                return Some(Err(error));
            }
            // A listing without an order may show a key twice.
            if self.last.as_ref() != Some(&key) {
                self.last = Some(key);
                return entry.map(Ok);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorted_on_disk_is_sorted(keys in proptest::collection::vec("[a-c/\\n\u{e9}]{0,4}", 0..200), run in 1usize..20) {
            let mut sorter = Sorter { run, ..Sorter::new() };
            for chunk in keys.chunks(3) {
                sorter.push(chunk.iter().map(|k| Entry::new(k.as_str(), k.len() as u64, Some(ETag::new(k)))).collect()).unwrap();
            }
            let mut sorted = sorter.finish().unwrap();
            let mut found = Vec::new();
            loop {
                let page = sorted.page(7).unwrap();
                if page.is_empty() {
                    break;
                }
                found.extend(page.into_iter().map(|e| e.key.as_str().to_owned()));
            }
            let expected: Vec<String> = keys.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
            prop_assert_eq!(found, expected);
        }
    }
}
