//! Wrong variants of the engine, which the simulation must find; a blind simulation looks green.
//!
//! `DTH_BLESS=1 cargo xtask seeded-bugs` writes what was found into `docs/seeded-bugs.md`.

use crate::{
    on_all_cores, on_paused_time, run,
    scenarios::race,
    setting,
    world::{HOT, IMAGES, Outcome, UNPINNED},
};
use dth_core::proof::{Bug, plant};
use std::{fmt::Write as _, sync::Mutex};

struct Found {
    seed: u64,
    schedules: u64,
    violation: String,
}

/// The first schedule of the general mix that shows the bug, where it is the bug alone that shows; then of the mixes that are
/// made for races.
fn hunt(bug: Bug, most: u64) -> Option<Found> {
    let from = setting("DTH_FROM", 0);
    hunt_among(bug, (from..from + most).map(|seed| (seed - from, seed)), run, "")
        .or_else(|| {
            // Worlds that are one in sixteen of the general mix.
            [(HOT, " (few keys)"), (UNPINNED, " (reads not pinned)"), (IMAGES, " (images)")]
                .into_iter()
                .find_map(|((every, at), how)| hunt_among(bug, (0..most).map(|n| (n, (from + n) * every + at)), run, how))
        })
        .or_else(|| hunt_among(bug, (0..10 * most).map(|n| (n, from + n)), |seed| on_paused_time(race(seed)), " (race)"))
}

fn hunt_among(bug: Bug, seeds: impl Iterator<Item = (u64, u64)>, play: impl Fn(u64) -> Outcome, how: &str) -> Option<Found> {
    for (tried, seed) in seeds {
        plant(Some(bug));
        let wrong = play(seed);
        plant(None);
        if let Some(violation) = wrong.violations.first() {
            let right = play(seed);
            let invariant = if right.violations.is_empty() {
                violation.split(':').next().unwrap_or_default().to_owned()
            } else {
                format!("FAILS WITHOUT IT TOO: {:?}", right.violations)
            };
            return Some(Found { seed, schedules: tried + 1, violation: format!("{invariant}{how}") });
        }
    }
    None
}

#[test]
fn every_seeded_bug_is_found() {
    // Poisoned workers die loudly.
    std::panic::set_hook(Box::new(|_| {}));
    let most = setting("DTH_SEEDS", 2_000);
    let found: Mutex<Vec<(Bug, Option<Found>)>> = Mutex::default();
    on_all_cores(Bug::ALL.len() as u64, |index| {
        let bug = Bug::ALL[index as usize];
        if bug.is_covered() && most <= 2_000 {
            return;
        }
        // One of them alone: `DTH_BUG=UploadsForgotten`.
        if std::env::var("DTH_BUG").is_ok_and(|only| only != format!("{bug:?}")) {
            return;
        }
        let hunted = std::panic::catch_unwind(|| hunt(bug, most)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            Some(Found { seed: 0, schedules: 1, violation: format!("panic: {text}") })
        });
        found.lock().unwrap().push((bug, hunted));
    });
    let _ = std::panic::take_hook();
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(bug, _)| *bug);
    let mut table = String::from("| wrong variant | schedules to find it | seed | what shows it |\n|---|---|---|---|\n");
    for (bug, hunted) in &found {
        match hunted {
            Some(f) => writeln!(table, "| {} | {} | {} | {} |", bug.text(), f.schedules, f.seed, f.violation).unwrap(),
            None => writeln!(table, "| {} | not within {most} | | |", bug.text()).unwrap(),
        }
    }
    for bug in Bug::ALL.iter().filter(|bug| found.iter().all(|(b, _)| b != *bug)) {
        writeln!(table, "| {} | one of many thousands: the others cover for it | | |", bug.text()).unwrap();
    }
    println!("{table}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/seeded-bugs.md");
    let (begin, end) = ("<!-- generated: begin -->\n", "<!-- generated: end -->");
    let page = std::fs::read_to_string(path).unwrap();
    let (head, rest) = page.split_once(begin).unwrap();
    let (old, tail) = rest.split_once(end).unwrap();
    if std::env::var_os("DTH_BLESS").is_some() {
        std::fs::write(path, format!("{head}{begin}{table}{end}{tail}")).unwrap();
    } else {
        for bug in Bug::ALL {
            assert!(old.contains(bug.text()), "docs/seeded-bugs.md lacks `{}`: run with DTH_BLESS=1", bug.text());
        }
    }
    assert!(!table.contains("FAILS WITHOUT IT TOO"), "{table}");
    let missed: Vec<_> = found.iter().filter(|(_, hunted)| hunted.is_none()).map(|(bug, _)| bug.text()).collect();
    assert!(missed.is_empty(), "not found within {most} schedules: {missed:#?}");
}
