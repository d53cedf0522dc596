//! Which images of a registry take part.

use crate::key::{ImageKey, is_digest, is_name, is_tag};
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    filter::Globs,
};
use oci_spec::distribution::Reference;
use regex::Regex;
use semver::{Version, VersionReq};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// Every tag of a repository, as the original system has it in its lists.
const ALL_TAGS: &str = "ALL_TAGS";

/// Which images there are of a source. Where neither `images` nor `repositories` names any, all of the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// `name`, `name:tag`, `name@digest`, `name:ALL_TAGS`, each perhaps with the registry's host before it; the tag is `latest` where
    /// there is none. One text may hold several, with commas or line ends between them.
    pub images: Vec<String>,
    /// A file with such lines; empty ones and those that begin with `#` are passed over.
    pub images_file: Option<PathBuf>,
    /// Names of repositories, or globs (`team/**`): their tags take part.
    pub repositories: Vec<String>,
    /// Which of these tags. Tags that `images` names take part in any case.
    pub tags: TagFilter,
    /// Only these platforms of an image that has several, as `linux/amd64` or `linux/arm/v7`; all where none is named. An index
    /// that lacks platforms is another one, with another digest: signatures of the whole do not hold for it.
    pub platforms: Vec<String>,
    /// Also what no tag names, where the registry can list it: Amazon ECR can, the distribution protocol cannot.
    pub untagged: bool,
    /// Also signatures, attestations, SBOMs and whatever else refers to an image: by the referrers API, by the tags that stand for
    /// it, and by those of cosign.
    pub referrers: bool,
}

/// Which tags of a repository. All that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TagFilter {
    /// Only tags in which this regular expression is found whole.
    pub include: Option<String>,
    /// No tags in which this one is.
    pub exclude: Option<String>,
    /// Only versions in this range, as Cargo writes it: `>=1.2, <2`. `v1.2` counts as `1.2.0`; what is no version does not take part.
    pub semver: Option<String>,
    /// Of what is left, the so many newest, by version; those that are no versions come last, by their names.
    pub newest: Option<usize>,
}

/// A selection that was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selected {
    /// Repositories that are named, with what of them.
    pub(crate) named: BTreeMap<String, Named>,
    globs: Globs,
    everything: bool,
    tags: Tags,
    pub(crate) platforms: Vec<String>,
    pub(crate) untagged: bool,
    pub(crate) referrers: bool,
}

/// What is named of a repository.
#[derive(Debug, Clone, Default)]
pub(crate) struct Named {
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    /// All tags, whatever the filter says.
    all: bool,
    /// Those that the filter takes.
    filtered: bool,
}

#[derive(Debug, Clone, Default)]
struct Tags {
    include: Option<Regex>,
    exclude: Option<Regex>,
    semver: Option<VersionReq>,
    newest: Option<usize>,
}

impl Selected {
    /// Reads a selection of images of `registry`. `Invalid`, with the line, for what cannot be read.
    pub(crate) fn new(selection: &Selection, registry: &str) -> Result<Self> {
        let globs: Vec<&String> = selection.repositories.iter().filter(|pattern| !is_name(pattern)).collect();
        let globs = Globs::new("select.repositories", &globs)?;
        let mut named: BTreeMap<String, Named> = BTreeMap::new();
        let file = match &selection.images_file {
            Some(path) => std::fs::read_to_string(path).map_err(|e| invalid("images_file", &path.display().to_string(), e))?,
            None => String::new(),
        };
        let of_file = file.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let entries = selection.images.iter().flat_map(|text| text.split(['\n', ','])).chain(of_file.flat_map(|line| line.split(',')));
        // A comma at the end names nothing.
        for entry in entries.map(str::trim).filter(|entry| !entry.is_empty()) {
            let (name, what) = image(entry, registry).map_err(|why| invalid("images", entry, why))?;
            let named = named.entry(name).or_default();
            match what {
                What::AllTags => named.all = true,
                What::Tag(tag) => drop(named.tags.insert(tag)),
                What::Digest(digest) => drop(named.digests.insert(digest)),
            }
        }
        for name in selection.repositories.iter().filter(|name| is_name(name)) {
            named.entry(name.clone()).or_default().filtered = true;
        }
        for platform in &selection.platforms {
            let parts = platform.split('/').count();
            if !(2..=3).contains(&parts) || platform.split('/').any(str::is_empty) {
                return Err(invalid("platforms", platform, "a platform is os/architecture or os/architecture/variant"));
            }
        }
        Ok(Self {
            // A list that names nothing is not the same as none.
            everything: selection.images.is_empty() && selection.repositories.is_empty() && selection.images_file.is_none(),
            named,
            globs,
            tags: Tags::new(&selection.tags)?,
            platforms: selection.platforms.clone(),
            untagged: selection.untagged,
            referrers: selection.referrers,
        })
    }

    /// Whether the registry must be asked which repositories it has.
    pub(crate) fn asks_for_repositories(&self) -> bool {
        self.everything || !self.globs.is_empty()
    }

    /// Whether tags of this repository are taken that nobody names.
    pub(crate) fn takes_tags_of(&self, name: &str) -> bool {
        self.takes_repository(name) || self.names(name)
    }

    /// Whether a repository is named of which there must be tags, therefore.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.named.get(name).is_some_and(|n| n.all || n.filtered)
    }

    /// Whether a repository takes part that nobody names.
    pub(crate) fn takes_repository(&self, name: &str) -> bool {
        self.everything || self.globs.matches(name)
    }

    /// The tags that take part, of those that a repository has.
    pub(crate) fn tags(&self, name: &str, all: BTreeSet<String>) -> BTreeSet<String> {
        let named = self.named.get(name);
        if named.is_some_and(|n| n.all) {
            return all;
        }
        let mut taken = BTreeSet::new();
        if self.takes_tags_of(name) {
            taken = self.tags.of(all);
        }
        taken.extend(named.into_iter().flat_map(|n| n.tags.iter().cloned()));
        taken
    }

    /// Whether an image that the source does not have would take part if it were there.
    pub(crate) fn covers(&self, key: &ImageKey) -> bool {
        let name = key.name();
        let named = self.named.get(name);
        match key {
            // They stand for a registry's API, and go with what they refer to.
            ImageKey::Tag { tag, .. } if is_digest(&tag.replacen('-', ":", 1)) => false,
            ImageKey::Tag { tag, .. } => {
                named.is_some_and(|n| n.all || n.tags.contains(tag)) || (self.takes_tags_of(name) && self.tags.takes(tag))
            }
            ImageKey::Manifest { digest, .. } => {
                named.is_some_and(|n| n.digests.contains(digest)) || ((self.untagged || self.referrers) && self.takes_tags_of(name))
            }
            ImageKey::Blob { .. } | ImageKey::Unlisted { .. } => false,
        }
    }
}

impl Tags {
    fn new(filter: &TagFilter) -> Result<Self> {
        let whole = |setting, text: &Option<String>| match text {
            Some(text) => Regex::new(&format!("^(?:{text})$")).map(Some).map_err(|e| invalid(setting, text, e)),
            None => Ok(None),
        };
        let semver = filter.semver.as_ref().map(|text| VersionReq::parse(text).map_err(|e| invalid("tags.semver", text, e))).transpose()?;
        Ok(Self {
            include: whole("tags.include", &filter.include)?,
            exclude: whole("tags.exclude", &filter.exclude)?,
            semver,
            newest: filter.newest,
        })
    }

    fn takes(&self, tag: &str) -> bool {
        self.include.as_ref().is_none_or(|r| r.is_match(tag))
            && self.exclude.as_ref().is_none_or(|r| !r.is_match(tag))
            && self.semver.as_ref().is_none_or(|range| version(tag).is_some_and(|v| range.matches(&v)))
    }

    fn of(&self, all: BTreeSet<String>) -> BTreeSet<String> {
        let mut taken: Vec<String> = all.into_iter().filter(|tag| self.takes(tag)).collect();
        if let Some(newest) = self.newest {
            taken.sort_by(|a, b| newest_first(a, b));
            taken.truncate(newest);
        }
        taken.into_iter().collect()
    }
}

fn newest_first(a: &str, b: &str) -> Ordering {
    match (version(a), version(b)) {
        (Some(x), Some(y)) => y.cmp(&x).then_with(|| b.cmp(a)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => b.cmp(a),
    }
}

/// A tag as a version: `v` before it, and missing numbers, are allowed for.
fn version(tag: &str) -> Option<Version> {
    let text = tag.strip_prefix('v').unwrap_or(tag);
    let numbers = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at(numbers);
    let filled = match core.split('.').count() {
        1 => format!("{core}.0.0"),
        2 => format!("{core}.0"),
        _ => core.to_owned(),
    };
    Version::parse(&format!("{filled}{rest}")).ok()
}

enum What {
    AllTags,
    Tag(String),
    Digest(String),
}

/// Reads one entry of a list.
fn image(entry: &str, registry: &str) -> std::result::Result<(String, What), String> {
    let first = entry.split('/').next().unwrap_or_default();
    let has_host = entry.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let rest = match entry.strip_prefix(registry).and_then(|rest| rest.strip_prefix('/')) {
        Some(rest) => rest,
        None if has_host => return Err(format!("it is of `{first}`, and this side is `{registry}`")),
        None => entry,
    };
    // Any host will do for the grammar, but that Docker Hub's names are read in a way of their own.
    let host = if matches!(registry, "docker.io" | "index.docker.io") { "docker.io" } else { "registry.invalid" };
    let reference: Reference = format!("{host}/{rest}").parse().map_err(|e| format!("{e}"))?;
    let name = reference.repository().to_owned();
    let (tag, digest) = (reference.tag().unwrap_or("latest"), reference.digest());
    if !is_name(&name) {
        return Err("the name is not that of a repository".into());
    }
    match digest {
        // Which of the two is meant, when they differ, nobody can tell.
        Some(_) if rest.rsplit_once('@').is_some_and(|(before, _)| before.contains(':')) => {
            Err("name either a tag or a digest, not both".into())
        }
        Some(digest) if is_digest(digest) => Ok((name, What::Digest(digest.to_owned()))),
        Some(_) => Err("the digest is not one of sha256 or sha512 in lower case".into()),
        None if tag == ALL_TAGS => Ok((name, What::AllTags)),
        None if is_tag(tag) => Ok((name, What::Tag(tag.to_owned()))),
        None => Err("the tag is none".into()),
    }
}

fn invalid(setting: &str, value: &str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Invalid, Op::Configure, format!("select.{setting} = {value}")).with_source(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn set(tags: &[&str]) -> BTreeSet<String> {
        tags.iter().map(|t| (*t).to_owned()).collect()
    }

    /// R9.
    #[test]
    fn lists_of_images_are_read() {
        let images = vec![format!("host:5000/a/b:1, x@{DIGEST},"), "plain\nall:ALL_TAGS\nhost:5000/deep/er/name_x:V-1.0_z".into()];
        let selected = Selected::new(&Selection { images, ..Selection::default() }, "host:5000").unwrap();
        let names: Vec<&str> = selected.named.keys().map(String::as_str).collect();
        assert_eq!(names, ["a/b", "all", "deep/er/name_x", "plain", "x"]);
        assert_eq!(selected.named["a/b"].tags, set(&["1"]));
        assert_eq!(selected.named["plain"].tags, set(&["latest"]));
        assert_eq!(selected.named["x"].digests, set(&[DIGEST]));
        assert_eq!(selected.tags("all", set(&["q", "r"])), set(&["q", "r"]));
        assert!(!selected.asks_for_repositories());
        for (bad, told) in [
            ("other:5000/a:1", "it is of `other:5000`"),
            ("quay.io/a:1", "it is of `quay.io`"),
            ("A:1", "select.images = A:1"),
            ("a:b:c", "a:b:c"),
            ("a@sha256:00", "a@sha256:00"),
            (&*format!("a:1@{DIGEST}"), "not both"),
        ] {
            let error = Selected::new(&Selection { images: vec![bad.into()], ..Selection::default() }, "host:5000").unwrap_err().chain();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn docker_hub_has_names_of_its_own() {
        let images = vec!["nginx:1.25".into(), "docker.io/library/redis".into(), "grafana/loki:v3".into()];
        let selected = Selected::new(&Selection { images, ..Selection::default() }, "docker.io").unwrap();
        let names: Vec<&str> = selected.named.keys().map(String::as_str).collect();
        assert_eq!(names, ["grafana/loki", "library/nginx", "library/redis"]);
    }

    #[test]
    fn tags_are_filtered() {
        let all = || set(&["v1.2.3", "1.2", "2.0.0-rc.1", "2.0.0", "10.0", "latest", "v1.9.0-alpine", "sha-1234"]);
        let of = |filter: TagFilter| Tags::new(&filter).unwrap().of(all());
        let filter = TagFilter::default;
        assert_eq!(of(filter()), all());
        assert_eq!(
            of(TagFilter { include: Some("v?1.*".into()), exclude: Some(".*alpine".into()), ..filter() }),
            set(&["v1.2.3", "1.2", "10.0"])
        );
        assert_eq!(of(TagFilter { semver: Some(">=1.2, <3".into()), ..filter() }), set(&["v1.2.3", "1.2", "2.0.0"]));
        assert_eq!(of(TagFilter { newest: Some(3), ..filter() }), set(&["10.0", "2.0.0", "2.0.0-rc.1"]));
        assert_eq!(of(TagFilter { include: Some("[a-z].*".into()), newest: Some(2), ..filter() }), set(&["v1.9.0-alpine", "v1.2.3"]));
        for bad in [TagFilter { include: Some("(".into()), ..filter() }, TagFilter { semver: Some(">=one".into()), ..filter() }] {
            assert_eq!(Tags::new(&bad).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn only_what_is_selected_is_extra() {
        let key = |text: &str| ImageKey::parse(&text.into()).unwrap();
        let selection =
            Selection { images: vec!["a:1,b:ALL_TAGS".into()], repositories: vec!["team/**".into(), "c".into()], ..Selection::default() };
        let tags = TagFilter { include: Some("v.*".into()), ..TagFilter::default() };
        let selected = Selected::new(&Selection { tags, ..selection }, "r").unwrap();
        for covered in ["a:1", "b:anything", "team/x/y:v1", "c:v2"] {
            assert!(selected.covers(&key(covered)), "{covered}");
        }
        for other in ["a:2", "team/x:latest", "d:v1", "c:1", &*format!("c@{DIGEST}")] {
            assert!(!selected.covers(&key(other)), "{other}");
        }
        assert!(Selected::new(&Selection::default(), "r").unwrap().covers(&key("x:y")));
        let stands_for_the_api = key(&format!("b:{}", DIGEST.replace(':', "-")));
        assert!(!selected.covers(&stands_for_the_api), "nothing would bring it back");
        let nothing = Selected::new(&Selection { images: vec![",".into()], ..Selection::default() }, "r").unwrap();
        assert!(!nothing.asks_for_repositories() && !nothing.covers(&key("x:y")), "an empty list is no registry");
    }

    #[test]
    fn a_file_holds_a_list() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# mirror\na:1\n\n  b:2 \nc,\n").unwrap();
        let selection = Selection { images_file: Some(file.path().into()), ..Selection::default() };
        assert_eq!(Selected::new(&selection, "r").unwrap().named.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        let none = Selection { images_file: Some("/does/not/exist".into()), ..Selection::default() };
        assert!(Selected::new(&none, "r").unwrap_err().chain().contains("/does/not/exist"));
    }
}
