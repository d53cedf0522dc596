#!/usr/bin/env bash
# 10,000 objects of 10 KiB between two in-memory servers (../shared/bench/mems3): the bare floor (GET -> PUT, no state, no
# checks) and `transfer` with durable state, in turn. Prints wall, CPU seconds of the client, peak memory, requests by kind.
# usage: benches/floor.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
cp -r ../shared/bench/mems3 "$work/mems3" && chmod -R u+w "$work/mems3"
export CARGO_TARGET_DIR=$PWD/target/mems3
cargo build --quiet --release --manifest-path "$work/mems3/Cargo.toml"
unset CARGO_TARGET_DIR
cargo build --quiet --release -p dth-examples --bin transfer
python3 - "$rounds" "$work" <<'P'
import http.client, os, socket, subprocess, sys, time

def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

def measure(name, command):
    began = time.time()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    cpu = usage.ru_utime + usage.ru_stime
    print(f"{name:6} wall {time.time() - began:.2f} s  cpu {cpu:.2f} s  peak {usage.ru_maxrss // 1024} MiB  exit {os.waitstatus_to_exitcode(status)}")

rounds, work = int(sys.argv[1]), sys.argv[2]
for _ in range(rounds):
    for name in ["floor", "dth"]:
        ports = [port(), port()]
        servers = [subprocess.Popen(["target/mems3/release/mems3", str(p)], stdout=subprocess.DEVNULL) for p in ports]
        time.sleep(0.5)
        for p in ports:
            c = http.client.HTTPConnection("127.0.0.1", p)
            c.request("PUT", "/b", headers={"content-length": "0"}); c.getresponse().read()
        c = http.client.HTTPConnection("127.0.0.1", ports[0])
        for i in range(10_000):
            body = (b"%08d" % i) * 1280
            c.request("PUT", f"/b/k/{i:06d}", body); c.getresponse().read()
        urls = [f"http://127.0.0.1:{p}" for p in ports]
        if name == "floor":
            command = ["target/mems3/release/pump", "copy", *urls, "b", "32"]
        else:
            state = f"{work}/state{time.time()}.db"
            side = 'bucket = "b"\nendpoint = "%s"\nprofile = "compatible"\ncredentials = { kind = "static", access_key_id = "a", secret_access_key = "b" }\n'
            with open(f"{work}/task.toml", "w") as f:
                f.write(f'state = "{state}"\n[source]\n{side % urls[0]}[destination]\n{side % urls[1]}')
            command = ["target/release/transfer", "-c", f"{work}/task.toml"]
        measure(name, command)
        for p in ports:
            c = http.client.HTTPConnection("127.0.0.1", p)
            c.request("GET", "/__stats"); print("   ", c.getresponse().read().decode()[:260])
        for s in servers:
            s.kill(); s.wait()
P
