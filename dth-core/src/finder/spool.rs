//! Brings a listing into the order of its destination keys, on disk: sorted runs, merged.

use crate::{
    error::{Error, ErrorKind, Op, Result},
    key_map::KeyMap,
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

/// An entry of a listing, and where it stands in the order of both sides.
#[derive(Debug)]
pub(crate) struct Found {
    /// What is compared with the other side: the source key where the map keeps its order, the destination key otherwise.
    pub(crate) at: ObjectKey,
    /// Grows from entry to entry, so that a finder can go on behind it: of entries of one destination key, too.
    pub(crate) place: ObjectKey,
    pub(crate) entry: Entry,
    /// Another source key becomes the same destination key.
    pub(crate) collides: bool,
}

impl Found {
    /// An entry of a listing whose order is that of both sides.
    pub(super) fn in_order(entry: Entry) -> Self {
        Self { at: entry.key.clone(), place: entry.key.clone(), entry, collides: false }
    }

    fn by(keys: &KeyMap, entry: Entry) -> Self {
        if keys.is_ordered() {
            return Self::in_order(entry);
        }
        let at = keys.to_destination(&entry.key);
        Self { place: place(&at, entry.key.as_str()), at, entry, collides: false }
    }
}

/// A text in the order of the destination key, then of the source key.
pub(super) fn place(at: &ObjectKey, key: &str) -> ObjectKey {
    ObjectKey::new(format!("{}\0\0{key}", at.as_str().replace('\0', "\0\u{1}")))
}

/// The destination key of a place.
pub(super) fn at(place: &ObjectKey) -> ObjectKey {
    let at = place.as_str().split_once("\0\0").map_or(place.as_str(), |(at, _)| at);
    ObjectKey::new(at.replace("\0\u{1}", "\0"))
}

/// An entry as a line; its destination key where it is what the order is by.
#[derive(Serialize, Deserialize)]
struct Line(ObjectKey, Option<u64>, Option<ETag>, Option<Timestamp>, Option<VersionId>, Option<Arc<str>>, Option<ObjectKey>);

impl From<Found> for Line {
    fn from(found: Found) -> Self {
        let at = (found.place != found.at).then_some(found.at);
        let e = found.entry;
        Self(e.key, e.size, e.etag, e.modified, e.version, e.storage_class, at)
    }
}

impl From<Line> for Found {
    fn from(Line(key, size, etag, modified, version, storage_class, at): Line) -> Self {
        let entry = Entry { key, size, etag, modified, version, storage_class };
        match at {
            None => Self::in_order(entry),
            Some(at) => Self { place: place(&at, entry.key.as_str()), at, entry, collides: false },
        }
    }
}

/// Takes entries in any order; its files have no names and go with it.
#[derive(Debug)]
pub(crate) struct Sorter {
    keys: KeyMap,
    held: Vec<Found>,
    runs: Vec<File>,
    run: usize,
}

impl Sorter {
    pub(crate) fn new() -> Self {
        Self::by(KeyMap::default())
    }

    /// By the keys that a map makes, where it does not keep their order.
    pub(crate) fn by(keys: KeyMap) -> Self {
        Self { keys, held: Vec::new(), runs: Vec::new(), run: RUN }
    }

    pub(crate) fn push(&mut self, entries: Vec<Entry>) -> Result<()> {
        self.held.extend(entries.into_iter().map(|entry| Found::by(&self.keys, entry)));
        if self.held.len() < self.run {
            return Ok(());
        }
        self.held.sort_by(|a, b| a.place.cmp(&b.place));
        let held = std::mem::take(&mut self.held);
        let run = write_run(held.into_iter().map(Ok)).map_err(broken)?;
        self.runs.push(run);
        if self.runs.len() >= FAN_IN {
            let merged = write_run(Sorted::new(Vec::new(), std::mem::take(&mut self.runs))?).map_err(broken)?;
            self.runs.push(merged);
        }
        Ok(())
    }

    /// All entries in order, each key once.
    pub(crate) fn finish(mut self) -> Result<Sorted> {
        self.held.sort_by(|a, b| a.place.cmp(&b.place));
        Sorted::new(self.held, self.runs)
    }
}

fn write_run(entries: impl Iterator<Item = Result<Found>>) -> Result<File, Box<dyn std::error::Error + Send + std::marker::Sync>> {
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

/// Entries in order, from several sorted runs.
#[derive(Debug)]
pub(crate) struct Sorted {
    heads: BinaryHeap<Reverse<(ObjectKey, usize)>>,
    first: Vec<Option<Found>>,
    held: std::vec::IntoIter<Found>,
    runs: Vec<BufReader<File>>,
    last: Option<ObjectKey>,
}

impl Sorted {
    fn new(held: Vec<Found>, runs: Vec<File>) -> Result<Self> {
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
        let next: Option<Found> = match self.runs.get_mut(run) {
            None => self.held.next(),
            Some(file) => {
                let mut line = String::new();
                match file.read_line(&mut line).map_err(broken)? {
                    0 => None,
                    _ => Some(serde_json::from_str::<Line>(&line).map_err(broken)?.into()),
                }
            }
        };
        if let Some(found) = &next {
            self.heads.push(Reverse((found.place.clone(), run)));
        }
        self.first[run] = next;
        Ok(())
    }

    /// The next entries, at most `max`; none at the end.
    pub(super) fn page(&mut self, max: usize) -> Result<Vec<Found>> {
        self.take(max).collect()
    }

    /// Takes the first entry of all, and what repeats it: a listing without an order may show a key twice.
    fn pop(&mut self) -> Result<Option<Found>> {
        let Some(Reverse((place, run))) = self.heads.pop() else { return Ok(None) };
        let found = self.first[run].take();
        self.advance(run)?;
        while self.heads.peek().is_some_and(|head| head.0.0 == place)
            && let Some(Reverse((_, run))) = self.heads.pop()
        {
            self.advance(run)?;
        }
        Ok(found)
    }
}

impl Iterator for Sorted {
    type Item = Result<Found>;

    fn next(&mut self) -> Option<Result<Found>> {
        let mut found = match self.pop() {
            Ok(found) => found?,
            Err(error) => return Some(Err(error)),
        };
        let next = self.heads.peek().and_then(|Reverse((_, run))| self.first[*run].as_ref());
        found.collides = self.last.as_ref() == Some(&found.at) || next.is_some_and(|next| next.at == found.at);
        self.last = Some(found.at.clone());
        Some(Ok(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_map::KeyRules;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn all(mut sorter: Sorter, run: usize, keys: &[String]) -> Vec<Found> {
        sorter.run = run;
        for chunk in keys.chunks(3) {
            sorter.push(chunk.iter().map(|k| Entry::new(k.as_str(), k.len() as u64, Some(ETag::new(k)))).collect()).unwrap();
        }
        let mut sorted = sorter.finish().unwrap();
        let mut found = Vec::new();
        loop {
            let page = sorted.page(7).unwrap();
            if page.is_empty() {
                return found;
            }
            found.extend(page);
        }
    }

    proptest! {
        #[test]
        fn sorted_on_disk_is_sorted(keys in proptest::collection::vec("[a-c/\\n\u{e9}]{0,4}", 0..200), run in 1usize..20) {
            let found: Vec<String> = all(Sorter::new(), run, &keys).into_iter().map(|f| f.entry.key.as_str().to_owned()).collect();
            let expected: Vec<String> = keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
            prop_assert_eq!(found, expected);
        }

        /// By the keys that a pattern makes; those of which two become one are marked, all of them, and places grow.
        #[test]
        fn collisions_are_marked(keys in proptest::collection::vec("[ab]{0,2}\u{0}?[xy]{0,2}", 0..60), run in 1usize..20) {
            let rules = KeyRules { pattern: Some("a|x$".into()), ..KeyRules::default() };
            let map = KeyMap::new("to").with_rules(&rules).unwrap();
            let found = all(Sorter::by(map.clone()), run, &keys);
            let unique: BTreeSet<&String> = keys.iter().collect();
            let mut by_destination: BTreeMap<ObjectKey, Vec<&String>> = BTreeMap::new();
            for key in &unique {
                by_destination.entry(map.to_destination(&key.as_str().into())).or_default().push(key);
            }
            prop_assert_eq!(found.len(), unique.len());
            prop_assert!(found.is_sorted_by(|a, b| a.place < b.place && a.at <= b.at));
            for f in &found {
                prop_assert_eq!(&f.at, &map.to_destination(&f.entry.key));
                prop_assert_eq!(&at(&f.place), &f.at);
                prop_assert_eq!(f.collides, by_destination[&f.at].len() > 1, "{:?}", f);
            }
        }
    }
}
