//! R10, R11: memory does not grow with the number of keys, nor with the bytes; each in a process of its own, which ends with an
//! error when it ever took more.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::process::Command;

fn run(binary: &str, arguments: &[&str]) {
    let out = Command::new(binary).args(arguments).output().unwrap();
    println!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success());
}

#[test]
fn fifty_million_keys_are_compared_in_64_mib() {
    run(env!("CARGO_BIN_EXE_find_keys"), &["50000000", "64"]);
}

/// F5, at the size that the original system promises.
#[test]
fn ten_million_prefixes_fit_into_64_mib() {
    run(env!("CARGO_BIN_EXE_prefix_list"), &["10000000", "64"]);
}

#[test]
fn bytes_in_flight_keep_to_the_budget() {
    run(env!("CARGO_BIN_EXE_move_mix"), &["8", "256", "320"]);
    // Below a part of one object: they wait for each other, and nothing hangs.
    run(env!("CARGO_BIN_EXE_move_mix"), &["2", "4", "68"]);
}
