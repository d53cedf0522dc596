//! Items and expressions of DynamoDB.

use crate::row::corrupt;
use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use dth_core::{
    error::Result,
    state::{FinderTotals, Tally},
};
use std::collections::{BTreeMap, HashMap};

pub(crate) type Item = HashMap<String, AttributeValue>;

pub(crate) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

pub(crate) fn number(value: impl std::fmt::Display + Copy) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

pub(crate) fn bytes(value: Vec<u8>) -> AttributeValue {
    AttributeValue::B(Blob::new(value))
}

/// The key of an item.
pub(crate) fn key(pk: impl Into<String>, sk: impl Into<String>) -> Item {
    [("pk".to_owned(), text(pk)), ("sk".to_owned(), text(sk))].into()
}

pub(crate) fn get_text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

pub(crate) fn need_text<'a>(item: &'a Item, name: &str) -> Result<&'a str> {
    get_text(item, name).ok_or_else(|| missing(item, name))
}

pub(crate) fn get_number<T: std::str::FromStr>(item: &Item, name: &str) -> Option<T> {
    item.get(name)?.as_n().ok()?.parse().ok()
}

pub(crate) fn need_number<T: std::str::FromStr>(item: &Item, name: &str) -> Result<T> {
    get_number(item, name).ok_or_else(|| missing(item, name))
}

pub(crate) fn get_bytes<'a>(item: &'a Item, name: &str) -> Option<&'a [u8]> {
    item.get(name)?.as_b().ok().map(AsRef::as_ref)
}

fn missing(item: &Item, name: &str) -> dth_core::error::Error {
    let key = |name| get_text(item, name).unwrap_or_default();
    corrupt(&format!("item `{}` / `{}`", key("pk"), key("sk"))).with_source(format!("it lacks `{name}`"))
}

/// An update, or a condition, with its names and values.
#[derive(Debug, Default)]
pub(crate) struct Expression {
    names: HashMap<String, String>,
    values: HashMap<String, AttributeValue>,
    set: Vec<String>,
    remove: Vec<String>,
    add: Vec<String>,
    conditions: Vec<String>,
}

impl Expression {
    /// The placeholder of an attribute: many names are words of the language.
    pub(crate) fn name(&mut self, attribute: &str) -> String {
        if let Some((placeholder, _)) = self.names.iter().find(|(_, name)| *name == attribute) {
            return placeholder.clone();
        }
        let placeholder = format!("#n{}", self.names.len());
        self.names.insert(placeholder.clone(), attribute.to_owned());
        placeholder
    }

    pub(crate) fn value(&mut self, value: AttributeValue) -> String {
        let placeholder = format!(":v{}", self.values.len());
        self.values.insert(placeholder.clone(), value);
        placeholder
    }

    pub(crate) fn set(&mut self, attribute: &str, value: AttributeValue) {
        let (name, value) = (self.name(attribute), self.value(value));
        self.set.push(format!("{name} = {value}"));
    }

    pub(crate) fn set_first(&mut self, attribute: &str, value: AttributeValue) {
        let (name, value) = (self.name(attribute), self.value(value));
        self.set.push(format!("{name} = if_not_exists({name}, {value})"));
    }

    pub(crate) fn set_or_remove(&mut self, attribute: &str, value: Option<AttributeValue>) {
        match value {
            Some(value) => self.set(attribute, value),
            None => {
                let name = self.name(attribute);
                self.remove.push(name);
            }
        }
    }

    pub(crate) fn add(&mut self, attribute: &str, by: u64) {
        let (name, value) = (self.name(attribute), self.value(number(by)));
        self.add.push(format!("{name} {value}"));
    }

    /// What must hold for it to be done.
    pub(crate) fn when(&mut self, condition: String) {
        self.conditions.push(condition);
    }

    pub(crate) fn when_equal(&mut self, attribute: &str, value: AttributeValue) {
        let (name, value) = (self.name(attribute), self.value(value));
        self.when(format!("{name} = {value}"));
    }

    pub(crate) fn when_missing(&mut self, attribute: &str) {
        let name = self.name(attribute);
        self.when(format!("attribute_not_exists({name})"));
    }

    pub(crate) fn update(&self) -> String {
        let clause = |word: &str, parts: &[String]| match parts {
            [] => String::new(),
            parts => format!("{word} {} ", parts.join(", ")),
        };
        [clause("SET", &self.set), clause("REMOVE", &self.remove), clause("ADD", &self.add)].concat()
    }

    pub(crate) fn condition(&self) -> Option<String> {
        (!self.conditions.is_empty()).then(|| self.conditions.join(" AND "))
    }

    /// An empty table is refused.
    pub(crate) fn names(&self) -> Option<HashMap<String, String>> {
        (!self.names.is_empty()).then(|| self.names.clone())
    }

    pub(crate) fn values(&self) -> Option<HashMap<String, AttributeValue>> {
        (!self.values.is_empty()).then(|| self.values.clone())
    }
}

/// The totals as numbers that can be added to, by the names that they have in an item. Zeros are left out.
pub(crate) fn totals_to_numbers(totals: &FinderTotals) -> Vec<(String, u64)> {
    let tallies = [
        ("listed", totals.listed),
        ("unchanged", totals.unchanged),
        ("queued", totals.queued),
        ("unknown", totals.unknown),
        ("extra", totals.extra),
        ("extra_queued", totals.extra_queued),
    ];
    let skipped = totals.skipped.iter().map(|(reason, tally)| (format!("skipped:{reason}"), *tally));
    let mut numbers: Vec<(String, u64)> = Vec::new();
    for (name, tally) in tallies.into_iter().map(|(name, tally)| (name.to_owned(), tally)).chain(skipped) {
        numbers.extend(tally_to_numbers(&format!("t:{name}"), tally));
    }
    numbers.push(("t:deletes_withheld".into(), u64::from(totals.deletes_withheld)));
    numbers.push(("t:source_pages".into(), totals.source_pages));
    numbers.push(("t:destination_pages".into(), totals.destination_pages));
    numbers.retain(|(_, n)| *n > 0);
    numbers
}

/// The totals that an item holds.
pub(crate) fn totals_of(item: &Item) -> FinderTotals {
    let tally = |name: &str| tally_of(item, &format!("t:{name}"));
    FinderTotals {
        listed: tally("listed"),
        unchanged: tally("unchanged"),
        queued: tally("queued"),
        skipped: tallies_of(item, "t:skipped:"),
        unknown: tally("unknown"),
        extra: tally("extra"),
        extra_queued: tally("extra_queued"),
        deletes_withheld: get_number::<u64>(item, "t:deletes_withheld").is_some_and(|n| n > 0),
        source_pages: get_number(item, "t:source_pages").unwrap_or(0),
        destination_pages: get_number(item, "t:destination_pages").unwrap_or(0),
    }
}

pub(crate) fn tally_to_numbers(name: &str, tally: Tally) -> [(String, u64); 2] {
    [(format!("{name}|objects"), tally.objects), (format!("{name}|bytes"), tally.bytes)]
}

fn tally_of(item: &Item, name: &str) -> Tally {
    Tally {
        objects: get_number(item, &format!("{name}|objects")).unwrap_or(0),
        bytes: get_number(item, &format!("{name}|bytes")).unwrap_or(0),
    }
}

/// All tallies whose names begin so, by the rest of their names.
pub(crate) fn tallies_of(item: &Item, prefix: &str) -> BTreeMap<String, Tally> {
    let names = item.keys().filter_map(|name| name.strip_prefix(prefix)?.strip_suffix("|objects"));
    names.map(|name| (name.to_owned(), tally_of(item, &format!("{prefix}{name}")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_survive_as_numbers() {
        let totals = FinderTotals {
            listed: Tally { objects: 3, bytes: u64::MAX / 2 },
            skipped: [("a|b".to_owned(), Tally::one(0)), ("archived".to_owned(), Tally::one(7))].into(),
            deletes_withheld: true,
            destination_pages: 9,
            ..FinderTotals::default()
        };
        let item: Item = totals_to_numbers(&totals).into_iter().map(|(name, n)| (name, number(n))).collect();
        assert_eq!(totals_of(&item), totals);
    }
}
