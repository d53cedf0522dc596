//! What the engine relies on in a store of entries with children, where each backend says in its own form which they are.

use super::{
    Broken, Checked, GraphBench, Verdict, hold, promises,
    store::{gathered, refused},
};
use crate::{
    checksum::{Algorithm, Checksum},
    error::{Error, ErrorKind},
    finder::FinderSettings,
    key_map::KeyMap,
    memory::{MemoryQueue, MemoryState},
    object::{Entry, ObjectKey},
    sink::{Body, Placed, PutOptions},
    source::{Family, ReadOptions},
    sync::Sync,
};
use bytes::Bytes;
use std::{collections::BTreeSet, fmt, sync::Arc};

promises! { $ graph, GraphBench, conformance_graph:
    children_are_told_with_their_parent
    children_are_those_of_what_is_read
    the_family_of_nothing_is_not_found
    a_child_is_placed_once_it_is_there
    another_child_is_not_taken_for_it
    looks_are_in_their_order
    a_graph_arrives_whole_and_does_nothing_twice
    a_graph_that_lacks_a_child_does_not_arrive
}

/// An entry as a backend wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Where it belongs.
    pub key: ObjectKey,
    /// Its bytes.
    pub body: Bytes,
}

/// How entries of a backend say which their children are. The same arguments make the same entry.
pub trait Shape: fmt::Debug + Send + std::marker::Sync {
    /// Content without children, within a place (a repository, a folder).
    fn leaf(&self, place: &str, content: &Bytes) -> Made;

    /// An entry with at least one child, found under a name, or, where it has none, only as somebody's child.
    fn parent(&self, place: &str, name: Option<&str>, children: &[Made]) -> Made;
}

/// The form of a [`MemoryStore`](crate::memory::MemoryStore) whose settings have [`children_named_in`]: a line for each child.
#[derive(Debug, Clone, Copy)]
pub struct Lines;

const NEEDS: &str = "needs ";

/// The keys behind `needs ` in the lines of a body.
pub fn children_named_in(body: &[u8]) -> Vec<ObjectKey> {
    String::from_utf8_lossy(body).lines().filter_map(|line| line.strip_prefix(NEEDS)).map(ObjectKey::from).collect()
}

impl Shape for Lines {
    fn leaf(&self, place: &str, content: &Bytes) -> Made {
        let sum = Checksum::of(Algorithm::Sha256, std::slice::from_ref(content)).to_hex();
        Made { key: format!("{place}/content/{sum}").into(), body: content.clone() }
    }

    fn parent(&self, place: &str, name: Option<&str>, children: &[Made]) -> Made {
        let lines: Vec<String> = children.iter().map(|child| format!("{NEEDS}{}", child.key)).collect();
        let body = Bytes::from(lines.join("\n"));
        match name {
            Some(name) => Made { key: format!("{place}/{name}").into(), body },
            None => self.leaf(place, &body),
        }
    }
}

impl GraphBench {
    fn place(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn put(&self, made: &Made) -> Result<(), Error> {
        let body = Body::Bytes(vec![made.body.clone()]);
        self.sink.put(&made.key, body, &PutOptions::default()).await.map(|_| ())
    }

    async fn put_all(&self, all: &[&Made]) -> Result<(), Broken> {
        for made in all {
            self.put(made).await?;
        }
        Ok(())
    }

    async fn get(&self, key: &ObjectKey, options: &ReadOptions) -> Result<Bytes, Error> {
        gathered(self.source.read(key, options).await?.body).await
    }

    async fn is_there(&self, key: &ObjectKey, made: &Made) -> Result<(), Broken> {
        let found = self.get(key, &ReadOptions::default()).await.map_err(|e| Broken(format!("`{key}`: {}", e.chain())))?;
        hold!(found == made.body, "`{key}` has {} other bytes than the {} of `{}`", found.len(), made.body.len(), made.key);
        Ok(())
    }

    async fn family(&self, of: &ObjectKey) -> Result<Family, Error> {
        self.source.children(&Entry { size: None, ..Entry::new(of.clone(), 0, None) }).await
    }

    /// What the source tells of something that is there.
    async fn entry(&self, made: &Made) -> Result<Entry, Broken> {
        Ok(self.source.head(&made.key, None).await?.entry)
    }

    /// As the engine asks: again, while another one is at it.
    async fn placed(&self, key: &ObjectKey, child: &Entry) -> Result<Placed, Broken> {
        for _ in 0..20 {
            match self.sink.place(key, child).await? {
                Placed::Awaited(time) => tokio::time::sleep(time).await,
                placed => return Ok(placed),
            }
        }
        Err(Broken(format!("`{key}` is awaited, and nobody sends it")))
    }

    fn family_of(&self, place: &str, name: &str, seed: &str) -> Graph {
        let leaf = |content: String| self.shape.leaf(place, &content.into());
        let leaves = [leaf(format!("first of {seed}")), leaf("shared".into())];
        let inner = self.shape.parent(place, None, &leaves);
        let root = self.shape.parent(place, Some(name), std::slice::from_ref(&inner));
        Graph { leaves, inner, root }
    }
}

/// Two leaves, one of them in every graph, under an entry by content, and that under one with a name.
struct Graph {
    leaves: [Made; 2],
    inner: Made,
    root: Made,
}

impl Graph {
    /// Each behind what it needs.
    fn all(&self) -> [&Made; 4] {
        let [first, shared] = &self.leaves;
        [first, shared, &self.inner, &self.root]
    }
}

/// A parent tells its own children, each with key, size and etag, and what it is itself; content has none.
pub async fn children_are_told_with_their_parent(bench: &GraphBench) -> Checked {
    hold!(bench.source.source_capability().children, "it says that its entries have no children");
    let graph = bench.family_of(&bench.place("told"), "v1", "told");
    bench.put_all(&graph.all()).await?;
    let Graph { leaves, inner, root } = &graph;
    for (parent, children) in [(root, vec![inner]), (inner, leaves.iter().collect()), (&leaves[0], vec![])] {
        let family = bench.family(&parent.key).await?;
        let told: BTreeSet<_> = family.children.iter().map(|c| c.key.as_str()).collect();
        let expected: BTreeSet<_> = children.iter().map(|c| c.key.as_str()).collect();
        hold!(told == expected, "`{}` has the children {expected:?}, and tells {told:?}", parent.key);
        for child in &family.children {
            let entry = bench.source.head(&child.key, None).await?.entry;
            hold!(child.etag.is_some() && child.etag == entry.etag, "the child `{}` is told as {:?} and is {:?}", child.key, child, entry);
            hold!(child.size.is_none() || child.size == entry.size, "the child `{}` is told as {:?} and is {:?}", child.key, child, entry);
        }
        if !children.is_empty() {
            let entry = bench.entry(parent).await?;
            hold!(family.entry.etag == entry.etag, "`{}` tells {:?} of itself, and is {:?}", parent.key, family.entry, entry);
        }
    }
    Ok(Verdict::Held)
}

/// What is read pinned to the entry that was told with its children has these children, or is not read.
pub async fn children_are_those_of_what_is_read(bench: &GraphBench) -> Checked {
    let place = bench.place("pinned");
    let old = bench.family_of(&place, "v1", "old");
    bench.put_all(&old.all()).await?;
    let old = &old.root;
    let family = bench.family(&old.key).await?;
    hold!(family.entry.etag.is_some(), "a parent without an etag cannot be pinned");
    let pinned = ReadOptions { if_match: family.entry.etag, ..ReadOptions::default() };
    hold!(bench.get(&old.key, &pinned).await? == old.body, "a pinned read of the same version brings other bytes");
    let new = bench.family_of(&place, "v1", "new");
    bench.put_all(&new.all()).await?;
    match bench.get(&old.key, &pinned).await {
        Ok(body) => hold!(body == old.body, "a read that is pinned to the old parent brings the new one"),
        read => hold!(refused(&read, &[ErrorKind::Precondition, ErrorKind::NotFound]), "a read that is pinned to the old parent: {read:?}"),
    }
    let told: Vec<_> = bench.family(&new.root.key).await?.children.into_iter().map(|c| c.key).collect();
    hold!(told == [new.inner.key.clone()], "the new parent tells {told:?} instead of `{}`", new.inner.key);
    Ok(Verdict::Held)
}

/// What is not there has no family: `NotFound`.
pub async fn the_family_of_nothing_is_not_found(bench: &GraphBench) -> Checked {
    let Graph { leaves, inner, root } = bench.family_of(&bench.place("nothing"), "v1", "nothing");
    bench.put_all(&[&leaves[0], &leaves[1]]).await?;
    for parent in [&root, &inner] {
        let family = bench.family(&parent.key).await;
        hold!(refused(&family, &[ErrorKind::NotFound]), "`{}` is not there: {family:?}", parent.key);
    }
    Ok(Verdict::Held)
}

/// A child is said to be there when it can be read, whether it was sent or linked, and then again and again.
pub async fn a_child_is_placed_once_it_is_there(bench: &GraphBench) -> Checked {
    let content = Bytes::from_static(b"placed");
    let first = bench.shape.leaf(&bench.place("place-1"), &content);
    bench.put(&first).await?;
    let child = bench.entry(&first).await?;
    let mut all = vec![first];
    for place in ["place-2", "place-3"] {
        let there = bench.shape.leaf(&bench.place(place), &content);
        match bench.placed(&there.key, &child_at(&child, &there)).await? {
            Placed::There => {}
            Placed::Absent | Placed::Unknown => bench.put(&there).await?,
            placed => return Err(Broken(format!("nothing is at `{}`, and it is {placed:?}", there.key))),
        }
        all.push(there);
        for made in &all {
            bench.is_there(&made.key, made).await?;
            let placed = bench.placed(&made.key, &child_at(&child, made)).await?;
            hold!(placed == Placed::There, "`{}` is there, and it is {placed:?}", made.key);
        }
    }
    Ok(Verdict::Held)
}

fn child_at(child: &Entry, at: &Made) -> Entry {
    Entry { key: at.key.clone(), ..child.clone() }
}

/// Other content under a child's key is not taken for the child; or it is not taken at all.
pub async fn another_child_is_not_taken_for_it(bench: &GraphBench) -> Checked {
    let leaf = |content: &'static str| bench.shape.leaf(&bench.place("other"), &Bytes::from_static(content.as_bytes()));
    let (right, other) = (leaf("right"), leaf("other"));
    bench.put_all(&[&right, &other]).await?;
    let (right_is, other_is) = (bench.entry(&right).await?, bench.entry(&other).await?);
    hold!(right_is.etag != other_is.etag, "different contents have the same etag {:?}", right_is.etag);
    let placed = bench.sink.place(&other.key, &child_at(&right_is, &other)).await;
    hold!(!matches!(placed, Ok(Placed::There)), "`{}` was taken for {:?}", other.key, right_is.etag);
    let wrong = Made { key: right.key.clone(), body: other.body.clone() };
    if bench.put(&wrong).await.is_ok() {
        let placed = bench.sink.place(&right.key, &right_is).await?;
        hold!(placed != Placed::There, "what replaced `{}` was taken for it", right.key);
    } else {
        bench.is_there(&right.key, &right).await?;
    }
    Ok(Verdict::Held)
}

/// A look at many keys answers each in its place.
pub async fn looks_are_in_their_order(bench: &GraphBench) -> Checked {
    let place = bench.place("look");
    let mut keys = Vec::new();
    for n in 0..5 {
        let graph = bench.family_of(&place, &format!("v{n}"), &format!("look {n}"));
        if n % 2 == 0 {
            bench.put_all(&graph.all()).await?;
        }
        keys.push(graph.root.key);
    }
    let found = bench.sink.find(&keys).await?;
    hold!(found.len() == keys.len(), "{} answers to {} looks", found.len(), keys.len());
    for (n, (key, entry)) in keys.iter().zip(&found).enumerate() {
        let is_it = entry.as_ref().map_or(n % 2 == 1, |e| n % 2 == 0 && e.key == *key && e.etag.is_some());
        hold!(is_it, "a look at `{key}` answered {entry:?}");
    }
    Ok(Verdict::Held)
}

impl GraphBench {
    fn task(&self, to: &str, state: &Arc<MemoryState>) -> (Sync, KeyMap) {
        let keys = KeyMap::new(&self.place(to));
        let task = Sync::new(Arc::clone(&self.source), Arc::clone(&self.sink))
            .with_state(Arc::new(MemoryQueue::new()), Arc::clone(state) as _)
            .with_keys(keys.clone())
            .with_finder(FinderSettings { prefix: self.place("from/"), ..FinderSettings::default() });
        (task, keys)
    }
}

/// One root, then all of a task: everything under them is at the destination, byte for byte; a second run finds nothing to do.
pub async fn a_graph_arrives_whole_and_does_nothing_twice(bench: &GraphBench) -> Checked {
    let mut graphs = Vec::new();
    for n in 0..4 {
        let graph = bench.family_of(&bench.place(&format!("from/app{}", n % 2)), &format!("v{n}"), &format!("{n}"));
        bench.put_all(&graph.all()).await?;
        graphs.push(graph);
    }
    let state = Arc::new(MemoryState::new());
    let (one, keys) = bench.task("copy", &state);
    one.copy_one(&graphs[0].root.key).await?;
    for made in graphs[0].all() {
        bench.is_there(&keys.to_destination(&made.key), made).await?;
    }
    let first = bench.task("copy", &state).0.run().await?;
    hold!(first.is_success(), "the first run: {:?}", first.run.outcomes);
    for made in graphs.iter().flat_map(Graph::all) {
        bench.is_there(&keys.to_destination(&made.key), made).await?;
    }
    let second = bench.task("copy", &state).0.run().await?;
    hold!(second.is_success() && second.run.totals.queued.objects == 0, "the second run: {:?}", second.run.totals);
    Ok(Verdict::Held)
}

/// A parent that names a child which is not there does not arrive.
pub async fn a_graph_that_lacks_a_child_does_not_arrive(bench: &GraphBench) -> Checked {
    let place = bench.place("from/lacking");
    let Graph { leaves, inner, root } = bench.family_of(&place, "v1", "lacking");
    bench.put(&leaves[1]).await?;
    if bench.put(&inner).await.is_err() || bench.put(&root).await.is_err() {
        return Ok(Verdict::NotMade("it takes no parent that lacks a child"));
    }
    let (task, keys) = bench.task("lacking", &Arc::new(MemoryState::new()));
    let ended = task.copy_one(&root.key).await;
    hold!(ended.is_err(), "a root without one of its children was copied: {ended:?}");
    for parent in [&root, &inner] {
        let looked = bench.sink.head(&keys.to_destination(&parent.key), None).await;
        hold!(refused(&looked, &[ErrorKind::NotFound]), "`{}` arrived without a child: {looked:?}", parent.key);
    }
    Ok(Verdict::Held)
}
