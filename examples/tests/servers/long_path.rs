//! Latency, loss and silence in the kernel's own TCP. Optional: `cargo xtask long-path` makes a network namespace for it, in
//! which nothing but these tests is heard; it needs root.

use crate::support::{Pair, bytes, contents, ministacks, open_uploads, put, put_multipart, venv};
use dth_core::sink::PutOptions;
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::Instant;

/// A delay line on loopback while this lives.
struct Path(Option<Child>);

impl Path {
    /// Each packet comes `one_way` later, or not at all with the chance `loss`.
    fn new(one_way: Duration, loss: f64) -> Self {
        let mut command = Command::new(venv().join("bin/python"));
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/delay.py"));
        command.args(["0", &one_way.as_millis().to_string(), &loss.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut bound = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut bound).unwrap();
        assert_eq!(bound.trim(), "bound");
        rule(&["NFQUEUE", "--queue-num", "0"]);
        Self(Some(child))
    }

    /// Not a packet gets through, and nobody is told.
    fn dark() -> Self {
        rule(&["DROP"]);
        Self(None)
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        // First the rule: what is queued for nobody is lost.
        let _ = Command::new("iptables").args(["-F", "OUTPUT"]).status();
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn rule(target: &[&str]) {
    assert!(std::env::var_os("DTH_LONG_PATH").is_some(), "run this by `cargo xtask long-path`: it changes the firewall");
    let status = Command::new("iptables").args(["-A", "OUTPUT", "-o", "lo", "-p", "tcp", "-j"]).args(target).status().unwrap();
    assert!(status.success(), "iptables: {status}");
}

async fn filled(small: usize) -> Pair {
    let pair = ministacks().await;
    for i in 0..small {
        put(&pair.source, &format!("small/{i:04}"), bytes(10_240, i as u64)).await;
    }
    put_multipart(&pair.source, "parts", &bytes(40 << 20, 1), 8 << 20, &PutOptions::default()).await;
    put(&pair.source, "one", bytes(24 << 20, 2)).await;
    pair
}

/// The best of five: what the path takes when it loses nothing.
fn round_trip(pair: &Pair) -> Duration {
    let address = pair.source_server().endpoint.strip_prefix("http://").unwrap();
    let connect = || {
        let begun = Instant::now();
        drop(std::net::TcpStream::connect(address).unwrap());
        begun.elapsed()
    };
    (0..5).map(|_| connect()).min().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "changes the firewall: run `cargo xtask long-path`"]
async fn latency_and_loss_cost_time_and_nothing_else() {
    for (one_way, loss) in [(0, 0.0), (20, 0.0), (20, 0.01), (75, 0.001), (75, 0.01)] {
        let pair = filled(1000).await;
        let path = Path::new(Duration::from_millis(one_way), loss);
        let measured = round_trip(&pair);
        assert!(measured >= Duration::from_millis(2 * one_way), "{measured:?}: the path is not long");
        let begun = Instant::now();
        let report = pair.settings.task().await.unwrap().run().await.unwrap();
        let took = begun.elapsed();
        drop(path);
        println!("round trip {measured:.0?}, loss {:.1} %: 1,002 objects, 74 MiB in {took:.1?}", loss * 100.0);
        assert!(report.is_success() && report.run.outcomes_like("copied").objects == 1002, "{report}");
        assert_eq!(contents(&pair.source, true).await, contents(&pair.sink, true).await);
        assert_eq!(open_uploads(&pair.sink).await, 0);
    }
}

/// A path that goes dark in the middle tells nobody: requests in flight are given up by their own clocks, and tried again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "changes the firewall: run `cargo xtask long-path`"]
async fn a_path_that_goes_dark_is_waited_out() {
    let mut pair = filled(1500).await;
    for side in [&mut pair.settings.source, &mut pair.settings.destination] {
        side.connect_timeout_seconds = Some(2);
        side.idle_timeout_seconds = Some(3);
    }
    pair.settings.worker.transfer.requests_per_second = Some(400);
    let task = pair.settings.task().await.unwrap();
    let begun = Instant::now();
    let run = task.start().await.unwrap();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let dark = Path::dark();
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert!(run.progress().await.unwrap().ended_jobs() < 1502, "the dark came too late");
        drop(dark);
    }
    let report = run.wait().await.unwrap();
    println!("dark for 16 s of {:.1?}: {report}", begun.elapsed());
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 1502, "{report}");
    assert_eq!(contents(&pair.source, true).await, contents(&pair.sink, true).await);
    assert_eq!(open_uploads(&pair.sink).await, 0);
}
