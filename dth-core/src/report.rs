//! The ledger of a run, for people and for programs.

use crate::state::{Run, Tally};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Version of the JSON form. Fields are added, never renamed or removed, within one version.
pub const REPORT_VERSION: u32 = 1;

/// The JSON Schema (draft 2020-12) of the JSON form.
pub const REPORT_SCHEMA: &str = include_str!("../report.schema.json");

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this form.
    pub version: u32,
    /// The run, with both sides of its ledger.
    pub run: Run,
    /// Whether listed = unchanged + skipped + the ends of all jobs.
    pub closed: bool,
    /// Jobs that were given up.
    pub failed: Tally,
}

impl Report {
    /// The report of a run as it stands.
    pub fn new(run: Run) -> Self {
        let skipped: Tally = run.totals.skipped.values().copied().sum();
        let t = &run.totals;
        let found = t.listed.objects == t.unchanged.objects + skipped.objects + t.queued.objects;
        Self { version: REPORT_VERSION, closed: found && run.is_settled(), failed: run.outcomes_like("failed"), run }
    }

    /// Whether everything ended well: the ledger is closed and nothing failed.
    pub fn is_success(&self) -> bool {
        self.closed && self.failed.objects == 0 && !self.run.totals.deletes_withheld
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = &self.run;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, tally: Tally| {
            writeln!(f, "  {name:<28} {:>12}  {:>12}", tally.objects, human_bytes(tally.bytes))
        };
        let settled = run.is_settled() && !run.state.is_over();
        let state = if settled { "settled; its finder, run again, closes it" } else { run.state.as_str() };
        writeln!(f, "run {} is {state}", run.id)?;
        line(f, "listed at the source", run.totals.listed)?;
        line(f, "unchanged", run.totals.unchanged)?;
        let mut ends: BTreeMap<String, Tally> = run.outcomes.clone();
        for (reason, tally) in &run.totals.skipped {
            *ends.entry(format!("skipped:{reason}")).or_default() += *tally;
        }
        for (label, tally) in &ends {
            line(f, &label.replace('_', " ").replace(':', ": "), *tally)?;
        }
        let open = run.sent_jobs().saturating_sub(run.ended_jobs());
        if open > 0 {
            writeln!(f, "  {:<28} {open:>12}", "still to be done")?;
        }
        if run.totals.deletes_withheld {
            writeln!(f, "  {} deletions were withheld: more than the guard allows (finder.max_delete)", run.totals.extra_queued.objects)?;
        }
        writeln!(f, "  the ledger {}", if self.closed { "closes" } else { "does not close (yet)" })
    }
}

/// Bytes for people, in powers of 1,024.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        env::{Env, SystemEnv},
        state::{RunId, RunState},
    };

    #[test]
    fn success_needs_a_closed_ledger_without_failures() {
        let mut run = Run::new(RunId::new("r"), SystemEnv.now());
        run.state = RunState::Transferring;
        run.totals.listed = Tally { objects: 3, bytes: 3 };
        run.totals.unchanged = Tally::one(1);
        run.totals.queued = Tally { objects: 2, bytes: 2 };
        run.outcomes.insert("copied".into(), Tally::one(1));
        assert!(!Report::new(run.clone()).closed, "one job is open");
        run.outcomes.insert("failed:denied".into(), Tally::one(1));
        let report = Report::new(run);
        assert!(report.closed && !report.is_success());
        assert!(report.to_string().contains("failed: denied") && report.to_string().contains("settled;"), "{report}");
    }

    /// What is written and what the schema names are the same fields, at every level.
    #[test]
    fn the_schema_names_every_field() {
        use serde_json::Value;
        fn check(value: &Value, schema: &Value, root: &Value, at: &str) {
            let schema = match schema["$ref"].as_str() {
                Some(name) => &root["$defs"][name.rsplit('/').next().unwrap()],
                None => schema,
            };
            let Value::Object(fields) = value else {
                assert!(schema.get("properties").is_none(), "{at} is no object");
                return;
            };
            if let Some(inner) = schema.get("additionalProperties").filter(|inner| inner.is_object()) {
                fields.iter().for_each(|(name, value)| check(value, inner, root, &format!("{at}.{name}")));
                return;
            }
            let named: Vec<&String> =
                schema["properties"].as_object().unwrap_or_else(|| panic!("{at} is not in the schema")).keys().collect();
            assert_eq!(fields.keys().collect::<Vec<_>>(), named, "{at}");
            fields.iter().for_each(|(name, value)| check(value, &schema["properties"][name], root, &format!("{at}.{name}")));
        }
        let mut run = Run::new(RunId::new("r"), SystemEnv.now());
        run.totals.skipped.insert("filtered".into(), Tally::one(1));
        run.outcomes.insert("copied".into(), Tally::one(1));
        let schema: Value = serde_json::from_str(REPORT_SCHEMA).unwrap();
        check(&serde_json::to_value(Report::new(run)).unwrap(), &schema, &schema, "report");
        assert_eq!(schema["properties"]["version"]["const"], REPORT_VERSION);
    }

    #[test]
    fn bytes_for_people() {
        assert_eq!([human_bytes(1023), human_bytes(1536), human_bytes(u64::MAX)], ["1023 B", "1.5 KiB", "16384.0 PiB"]);
    }
}
