//! 24 kinds of faults in HTTP, each at 14 operations of a real server, through a proxy that keeps signatures valid: what an
//! answer is taken for, and what comes of it in the whole engine. `docs/faults.md` is what must come out; `DTH_BLESS=1` writes it.

mod proxy;
mod scenes;

use crate::support::venv;
use dth_core::error::Retry;
use dth_examples::servers::Server;
use futures_util::{StreamExt, stream};
use proxy::{Fault, Operation};
use std::{
    fmt::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::timeout;

/// Why a fault cannot be at an operation.
fn impossible(operation: Operation, fault: Fault) -> Option<&'static str> {
    use Operation::*;
    match fault {
        Fault::MalformedDocument if !operation.answers_a_document() => Some("its answer is no document"),
        Fault::ErrorIn200 if operation == HeadObject => Some("an answer to HEAD has no body"),
        Fault::BitFlip if matches!(operation, HeadObject | AbortMultipartUpload | DeleteObject) => Some("no body in either direction"),
        Fault::BitFlip if matches!(operation, ListObjectsV2 | GetObjectTagging) => {
            Some("nobody could see it: what it lists has no checksum (TLS has)")
        }
        Fault::WrongEtag if matches!(operation, GetObjectTagging | CreateMultipartUpload) => Some("its answer has no etag"),
        Fault::WrongEtag if matches!(operation, AbortMultipartUpload | ListMultipartUploads | DeleteObject) => {
            Some("its answer has no etag")
        }
        _ => None,
    }
}

/// What a cell came to.
struct Cell {
    /// What the answer is taken for.
    taken: String,
    /// What comes of it.
    end: String,
    violations: Vec<String>,
}

/// No cell takes so long: one that hangs is to be named.
const PATIENCE: Duration = Duration::from_mins(5);

async fn cell(server: &Server, operation: Operation, fault: Fault, elsewhere: &str, number: usize) -> Cell {
    let mut violations = Vec::new();
    let taken = match timeout(PATIENCE, scenes::ask(server, operation, fault, elsewhere, number)).await {
        Err(_) => "nothing, for minutes".to_owned(),
        Ok(Ok(())) => "good".to_owned(),
        Ok(Err(error)) => {
            let again = match error.retry() {
                Retry::Never => "not tried again".to_owned(),
                Retry::Backoff => "tried again".to_owned(),
                Retry::After(time) => format!("tried again after {} s", time.as_secs()),
            };
            let applied = if error.maybe_applied() { ", looked at first" } else { "" };
            format!("{}, {again}{applied}", error.kind())
        }
    };
    let play = scenes::play(server, operation, fault, elsewhere, number, &mut violations);
    let end = timeout(PATIENCE, play).await.unwrap_or_else(|_| "nothing, for minutes".to_owned());
    Cell { taken, end, violations }
}

/// R4. Cells run side by side, each on buckets and proxies of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn every_fault_at_every_operation_ends_as_expected() {
    let server = match std::env::var("DTH_FAULTS_AT").as_deref() {
        Ok("seaweedfs") => Server::seaweedfs(&venv()).await,
        Ok("radosgw") => Server::radosgw().await,
        _ => Server::ministack(&venv()).await,
    };
    let server = server.unwrap();
    // Nobody may ever be sent to this one.
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let elsewhere = format!("http://{}/", listener.local_addr().unwrap());
    let strayed = Arc::new(AtomicU32::new(0));
    let mut tasks = dth_core::scope::TaskScope::new();
    let count = Arc::clone(&strayed);
    tasks.spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, SeqCst);
        }
    });
    let only = std::env::var("DTH_CELL").ok();
    let cells: Vec<(Operation, Fault)> = Operation::ALL
        .iter()
        .flat_map(|o| Fault::ALL.iter().map(|f| (*o, *f)))
        .filter(|(o, f)| only.as_ref().is_none_or(|only| format!("{o:?}/{f:?}").contains(only.as_str())))
        .collect();
    let (server, elsewhere) = (&server, &elsewhere);
    let results: Vec<Option<Cell>> = stream::iter(cells.iter().enumerate())
        .map(async |(number, (operation, fault))| match impossible(*operation, *fault) {
            Some(_) => None,
            None => Some(cell(server, *operation, *fault, elsewhere, number).await),
        })
        .buffered(12)
        .collect()
        .await;
    let mut text = String::from(HEAD);
    let mut run = 0;
    let mut violations = Vec::new();
    for ((operation, fault), result) in cells.iter().zip(&results) {
        if *fault == Fault::Refuse {
            let _ = write!(text, "\n## {operation:?}\n\n| fault | taken for | end |\n|---|---|---|\n");
        }
        match result {
            Some(cell) => {
                run += 1;
                let _ = writeln!(text, "| {} | {} | {} |", fault.text(), cell.taken, cell.end);
                violations.extend(cell.violations.iter().map(|v| format!("{operation:?}, {fault:?}: {v}")));
            }
            None => {
                let _ = writeln!(text, "| {} | – | {} |", fault.text(), impossible(*operation, *fault).unwrap());
            }
        }
    }
    println!("{run} of {} cells can be, and were", cells.len());
    if only.is_some() || std::env::var_os("DTH_FAULTS_AT").is_some() {
        println!("{text}");
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    assert_eq!(strayed.load(SeqCst), 0, "a redirect was followed");
    if only.is_some() || std::env::var_os("DTH_FAULTS_AT").is_some() {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/faults.md");
    if std::env::var_os("DTH_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let differing: Vec<String> = expected.lines().zip(text.lines()).filter(|(a, b)| a != b).map(|(a, b)| format!("- {a}\n+ {b}")).collect();
    assert!(expected == text, "docs/faults.md says otherwise:\n{}", differing.join("\n"));
}

const HEAD: &str = "\
# Faults in HTTP, and what comes of them

Written by `every_fault_at_every_operation_ends_as_expected` (`DTH_BLESS=1 cargo xtask test` writes it anew), which runs every cell
against a real server behind a proxy that makes one request or answer go wrong. *Taken for* is the error that a caller of `dth-s3`
gets; *end* is what comes of it in the whole engine:

- **done**: the run reports success, the destination equals the source, no upload is left;
- **told**: the run's report (or its error) names what is missing; the next run ends as done;
- **done, but for an upload**: the sweep at the end of the run failed (its log says so) or missed one; the next run removes it.

In every cell: never a success over a wrong destination, never bytes under a key that no version of the source had, nobody is
contacted by a redirect. Cells with a dash cannot be.
";

/// Assembling and copying may take a store minutes: its answer is waited for, and nothing is done twice.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn long_work_is_waited_for() {
    let server = Server::ministack(&venv()).await.unwrap();
    for (number, operation) in [Operation::CompleteMultipartUpload, Operation::CopyObject].into_iter().enumerate() {
        let cell = cell(&server, operation, Fault::LongWork, "", number).await;
        assert_eq!((cell.taken.as_str(), cell.end.as_str(), cell.violations.as_slice()), ("good", "done", &[][..]), "{operation:?}");
    }
}

/// A page of a gateway is no answer of the store, whatever its status.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn a_page_of_a_gateway_is_no_answer() {
    let server = &Server::ministack(&venv()).await.unwrap();
    let cells: Vec<(Operation, Cell)> = stream::iter(Operation::ALL.into_iter().enumerate())
        .map(async |(number, operation)| (operation, cell(server, operation, Fault::ForeignPage, "", number).await))
        .buffered(7)
        .collect()
        .await;
    for (operation, cell) in cells {
        assert!(cell.taken.contains(", tried again"), "{operation:?}: {}", cell.taken);
        assert_eq!((cell.end.as_str(), cell.violations.as_slice()), ("done", &[][..]), "{operation:?}");
    }
}

/// A bit that flips on the way from a source which offers no checksum (its etags are no MD5, as with KMS keys) can be seen by
/// nobody: the report does not call it verified.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn what_cannot_be_verified_is_reported_so() {
    let server = Server::ministack(&venv()).await.unwrap();
    for (opaque, expected) in [(true, "copied:transport_only"), (false, "copied")] {
        let (report, equal) = scenes::flipped(&server, opaque).await;
        assert_eq!(report.run.outcomes.keys().collect::<Vec<_>>(), [expected], "{report}");
        assert_eq!(equal, !opaque, "a flipped bit is mended where a checksum shows it");
    }
}
