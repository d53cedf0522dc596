//! Lists of prefixes: millions of lines in a file, and keys that begin with one of them.

mod within;

pub(crate) use within::Within;

use crate::{
    error::{Error, ErrorKind, Op, Result},
    finder::Sorter,
    object::{Entry, ObjectKey},
    source::ByteStream,
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    io::{BufWriter, Write},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;

/// Lines that are read at once, and of which the first is known in memory.
const BLOCK: usize = 256;
/// Blocks in memory: each shard of a finder is at one on each side.
const KEPT: usize = 32;
/// No store takes longer keys.
const LONGEST: usize = 4096;
/// Lines that are handed to the sorter at once.
const BATCH: usize = 10_000;

/// Prefixes, none of which begins with another, in byte order. They lie on disk; in memory is one in 256. Clones share them.
#[derive(Clone)]
pub struct PrefixList(Arc<Inner>);

struct Inner {
    file: File,
    /// The first prefix of each block, and where it stands.
    blocks: Vec<(Box<str>, u64)>,
    end: u64,
    count: u64,
    /// Blocks that were read last, the latest at the end.
    read: Mutex<VecDeque<(usize, Arc<Vec<String>>)>>,
}

impl fmt::Debug for PrefixList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrefixList({})", self.0.count)
    }
}

/// The same list, not an equal one.
impl PartialEq for PrefixList {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for PrefixList {}

impl PrefixList {
    /// Reads a file of one prefix a line. Blank lines and the ends of lines of other systems mean nothing, the order is any, and
    /// prefixes that begin with another one of the list are part of that. `Invalid`, with the line's number, for a line that cannot
    /// be a prefix, and for a list without any: nothing would be moved.
    pub async fn read(name: &str, mut lines: ByteStream) -> Result<Self> {
        // All of it on one thread: what is allocated on one and freed on another is kept by both.
        let (sender, mut chunks) = mpsc::channel::<Part>(4);
        let mut reader = Reader { name: name.to_owned(), sorter: Sorter::new(), batch: Vec::new(), line: Vec::new(), number: 1 };
        let reading = tokio::task::spawn_blocking(move || {
            loop {
                match chunks.blocking_recv() {
                    Some(Part::Chunk(chunk)) => reader.take(&chunk)?,
                    Some(Part::End) => return reader.finish(),
                    None => return Err(Error::new(ErrorKind::Unavailable, Op::List, &*reader.name).with_source("its reading was given up")),
                }
            }
        });
        while let Some(chunk) = lines.try_next().await? {
            // Whoever has stopped listening says why.
            if sender.send(Part::Chunk(chunk)).await.is_err() {
                break;
            }
        }
        let _ = sender.send(Part::End).await;
        match reading.await {
            Ok(read) => read,
            Err(error) => Err(Error::new(ErrorKind::Internal, Op::List, name).with_source(error)),
        }
    }

    /// How many there are, once those that begin with another one are part of it.
    pub fn count(&self) -> u64 {
        self.0.count
    }

    /// Whether a key begins with one of them.
    pub fn covers(&self, key: &str) -> Result<bool> {
        Ok(self.next(key)?.is_some_and(|prefix| key.starts_with(&prefix)))
    }

    /// One of them that does not begin so.
    pub(crate) fn outside(&self, prefix: &str) -> Result<Option<String>> {
        let first = self.next("")?.filter(|first| !first.starts_with(prefix));
        if first.is_some() { Ok(first) } else { self.next(&format!("{prefix}\u{10ffff}")) }
    }

    /// The prefix that a key begins with, or else the first one behind the key.
    pub(crate) fn next(&self, key: &str) -> Result<Option<String>> {
        let blocks = &self.0.blocks;
        // The block of the last prefix that is not behind the key.
        let at = blocks.partition_point(|(first, _)| **first <= *key).saturating_sub(1);
        let block = self.block(at)?;
        let behind = block.partition_point(|prefix| prefix.as_str() <= key);
        if let Some(before) = behind.checked_sub(1).map(|at| &block[at])
            && key.starts_with(before.as_str())
        {
            return Ok(Some(before.clone()));
        }
        Ok(block.get(behind).cloned().or_else(|| blocks.get(at + 1).map(|(first, _)| first.to_string())))
    }

    fn block(&self, at: usize) -> Result<Arc<Vec<String>>> {
        let inner = &*self.0;
        let known = |at: usize| self.read_blocks().iter().find(|(known, _)| *known == at).map(|(_, block)| Arc::clone(block));
        if let Some(block) = known(at) {
            return Ok(block);
        }
        let begin = inner.blocks[at].1;
        let end = inner.blocks.get(at + 1).map_or(inner.end, |(_, begin)| *begin);
        let mut bytes = vec![0; (end - begin) as usize];
        inner.file.read_exact_at(&mut bytes, begin).map_err(broken)?;
        let text = String::from_utf8(bytes).map_err(broken)?;
        let block = Arc::new(text.split_terminator('\n').map(str::to_owned).collect::<Vec<_>>());
        let mut read = self.read_blocks();
        read.push_back((at, Arc::clone(&block)));
        if read.len() > KEPT {
            read.pop_front();
        }
        Ok(block)
    }

    fn read_blocks(&self) -> MutexGuard<'_, VecDeque<(usize, Arc<Vec<String>>)>> {
        self.0.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Unavailable, Op::List, "the prefixes in the temporary folder").with_source(error)
}

/// What a file comes in.
enum Part {
    Chunk(Bytes),
    /// It is whole.
    End,
}

/// Takes the file as it comes.
struct Reader {
    name: String,
    sorter: Sorter,
    batch: Vec<Entry>,
    line: Vec<u8>,
    number: u64,
}

impl Reader {
    fn invalid(&self, why: impl Into<String>) -> Error {
        Error::new(ErrorKind::Invalid, Op::Configure, format!("{}, line {}", self.name, self.number)).with_source(why.into())
    }

    fn take(&mut self, chunk: &[u8]) -> Result<()> {
        let mut lines = chunk.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = lines.next() {
            if self.line.len() + part.len() > LONGEST {
                return Err(self.invalid(format!("a prefix of more than {LONGEST} bytes")));
            }
            self.line.extend_from_slice(part);
            if lines.peek().is_some() {
                self.end_line()?;
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<()> {
        let line = std::mem::take(&mut self.line);
        let line = if self.number == 1 { line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&line) } else { &line };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let prefix = std::str::from_utf8(line).map_err(|_| self.invalid("not UTF-8"))?;
        if !prefix.trim().is_empty() {
            self.batch.push(Entry::new(ObjectKey::new(prefix), 0, None));
        }
        self.number += 1;
        if self.batch.len() >= BATCH {
            self.sorter.push(std::mem::take(&mut self.batch))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<PrefixList> {
        if !self.line.is_empty() {
            self.end_line()?;
        }
        self.sorter.push(std::mem::take(&mut self.batch))?;
        let mut out = BufWriter::with_capacity(256 << 10, tempfile::tempfile().map_err(broken)?);
        let (mut blocks, mut end, mut count) = (Vec::new(), 0, 0);
        let mut last: Option<ObjectKey> = None;
        for entry in self.sorter.finish()? {
            let key = entry?.entry.key;
            if last.as_ref().is_some_and(|last| key.as_str().starts_with(last.as_str())) {
                continue;
            }
            if count % BLOCK as u64 == 0 {
                blocks.push((key.as_str().into(), end));
            }
            writeln!(out, "{}", key.as_str()).map_err(broken)?;
            end += key.as_str().len() as u64 + 1;
            count += 1;
            last = Some(key);
        }
        if count == 0 {
            let error = Error::new(ErrorKind::Invalid, Op::Configure, &*self.name);
            return Err(error.with_source("there is no prefix in it: nothing would be moved"));
        }
        let file = out.into_inner().map_err(|e| broken(e.into_error()))?;
        Ok(PrefixList(Arc::new(Inner { file, blocks, end, count, read: Mutex::default() })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt, stream};
    use proptest::prelude::*;

    pub(super) async fn list(text: &[u8], chunk: usize) -> Result<PrefixList> {
        let chunks: Vec<Result<Bytes>> = text.chunks(chunk).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        PrefixList::read("prefixes.txt", stream::iter(chunks).boxed()).await
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    proptest! {
        /// F5: blank lines, ends of lines, order and overlaps are harmless; what is covered is what begins with a line.
        #[test]
        fn a_list_covers_what_its_lines_say(
            lines in proptest::collection::vec("[ab/\u{e9}]{0,3}", 1..600),
            keys in proptest::collection::vec("[ab/\u{e9}]{0,5}", 20),
            windows in any::<bool>(),
            chunk in 1usize..64,
        ) {
            let text = lines.join(if windows { "\r\n" } else { "\n" });
            let filled: Vec<&String> = lines.iter().filter(|line| !line.is_empty()).collect();
            match block_on(list(text.as_bytes(), chunk)) {
                Err(error) => prop_assert!(filled.is_empty() && error.kind() == ErrorKind::Invalid, "{}", error.chain()),
                Ok(list) => for key in keys {
                    let covered = filled.iter().any(|line| key.starts_with(line.as_str()));
                    prop_assert_eq!(list.covers(&key).unwrap(), covered, "{}", key);
                    let next = filled.iter().filter(|line| key.starts_with(line.as_str()) || **line > &key).min_by_key(|l| l.as_str());
                    if !covered {
                        prop_assert_eq!(list.next(&key).unwrap(), next.map(|line| (*line).clone()));
                    }
                },
            }
        }
    }

    #[test]
    fn what_cannot_be_a_prefix_is_named_by_its_line() {
        for (text, told) in [
            (b"a\n\xff\n".to_vec(), "prefixes.txt, line 2"),
            ([b"a\n".as_slice(), &[b'x'; 5000]].concat(), "line 2"),
            (b"\n \r\n\n".to_vec(), "no prefix"),
            (Vec::new(), "no prefix"),
        ] {
            let error = block_on(list(&text, 7)).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.chain().contains(told), "{}", error.chain());
        }
        let marked = block_on(list("\u{feff}a/\r\n b\n".as_bytes(), 3)).unwrap();
        assert!(marked.covers("a/x").unwrap() && marked.covers(" b").unwrap() && !marked.covers("b").unwrap());
        assert_eq!(marked.count(), 2);
    }
}
