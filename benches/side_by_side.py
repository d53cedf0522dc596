"""The same work with each copier in turn, between two servers that count: `cargo xtask bench`.

    side_by_side.py --bin FOLDER --venv FOLDER --peers-bin FOLDER --servers FOLDER [--workload a,b,…] [--peers dth,rclone-default,…]
                    [--rounds N] [--real] [--out FILE]

Rounds are interleaved: each copier once, then each once more. After each run the destination is compared with the source by SHA-256, taken
by the servers over what they hold: a wrong result has no time. A time counts only if the same copier notices, and reports, an object of
which a bit is flipped on the way, and one that is overwritten while it is read (`--no-control` leaves this out).

With `--real`, the destination is SeaweedFS: slower, and it counts nothing, but nobody of us wrote it.

Client CPU is user and system time of the copier and its children; memory is the most that one process of it held.
"""

import argparse, datetime, http.client, json, os, pathlib, shutil, socket, statistics, subprocess, sys, tempfile, time, urllib.parse

KIB, MIB = 1 << 10, 1 << 20

# objects, bytes of each, bytes of a part (0: put at once), folders
SIZES = {
    "a": (10_000, 10 * KIB, 0, 10),
    "b": (40, 50 * MIB, 8 * MIB, 4),
    "c": (1, 2048 * MIB, 8 * MIB, 1),
    "d": (1_000, MIB, 0, 10),
    "e": (200_000, 16, 0, 100),
    "g": (200, 5 * MIB, 0, 10),
    "l": (2_000, 10 * KIB, 0, 10),
}
# name: sizes, weather at the source, weather at the destination, etags, in sync, another layout of parts
WORKLOADS = {
    "a": dict(size="a", what="10,000 x 10 KiB"),
    "b": dict(size="b", what="40 x 50 MiB"),
    "c": dict(size="c", what="1 x 2 GiB"),
    "d": dict(size="d", what="1,000 x 1 MiB"),
    "e": dict(size="e", what="200,000 keys in sync", synced=True),
    "fa": dict(size="a", what="(a), 20 ms at both servers", source=dict(latency=20), destination=dict(latency=20)),
    "fd": dict(size="d", what="(d), 20 ms at both servers", source=dict(latency=20), destination=dict(latency=20)),
    "l": dict(size="l", what="2,000 x 10 KiB, 150 ms at the source, 10 ms at the destination", source=dict(latency=150), destination=dict(latency=10)),
    "g": dict(
        size="g",
        what="200 x 5 MiB, 150 ms, 20 MB/s a body, 1 % 503, 0.1 % resets",
        source=dict(latency=150, rate=20_000_000, throttled=10, resets=1, seed=1),
        destination=dict(latency=150, throttled=10, resets=1, seed=2),
        timeout=600,
    ),
    "q": dict(size="a", what="(a) over emulated SQS and DynamoDB 5 ms away, 150 ms at the source", source=dict(latency=150), cluster=True),
    "he": dict(size="e", what="(e) with etags that never match", synced=True, etags="opaque"),
    "hb": dict(size="b", part=5 * MIB, what="(b) with parts of 5 MiB at the source"),
}


def ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found


class Server:
    """A measuring server."""

    def __init__(self, binary, port):
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([binary, str(port)])
        wait_for(port)

    def tell(self, command, **asked):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("GET", f"/__{command}?{urllib.parse.urlencode(asked)}")
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"{command} {asked}: {body.decode()}")
        return json.loads(body) if body else {}

    def stop(self):
        self.process.kill()
        self.process.wait()


def wait_for(port):
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


class SeaweedFs:
    """A real server, which is asked by boto3 what the measuring one tells by itself."""

    ASK = """
import boto3, hashlib, json, sys
url, command, bucket = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="xxxxxxxx", region_name="us-east-1")
if command == "clear" and bucket not in [known["Name"] for known in s3.list_buckets()["Buckets"]]:
    s3.create_bucket(Bucket=bucket)
sums = {}
for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
    keys = [found["Key"] for found in page.get("Contents", [])]
    if command == "clear" and keys:
        s3.delete_objects(Bucket=bucket, Delete=dict(Objects=[dict(Key=key) for key in keys], Quiet=True))
    if command == "sums":
        sums |= {key: hashlib.sha256(s3.get_object(Bucket=bucket, Key=key)["Body"].read()).hexdigest() for key in keys}
print(json.dumps(sums))
"""

    def __init__(self, servers, folder):
        self.python, self.folder = f"{servers}/bin/python", f"{folder}/weed"
        os.mkdir(self.folder)
        with open(f"{self.folder}/s3.json", "w") as file:
            keys = dict(accessKey="x", secretKey="xxxxxxxx")
            json.dump(dict(identities=[dict(name="x", credentials=[keys], actions=["Admin", "Read", "Write", "List", "Tagging"])]), file)
        listeners = [(part, kind) for part in ("master", "volume", "filer", "s3") for kind in ("", "grpc")]
        found = dict(zip(listeners, ports(len(listeners))))
        listen = [f"-{part}.port{kind and '.' + kind}={port}" for (part, kind), port in found.items()]
        self.left_behind = [f"/tmp/seaweedfs-{part}{kind and '-' + kind}-{port}.sock" for (part, kind), port in found.items()]
        port = found["s3", ""]
        self.url = f"http://127.0.0.1:{port}"
        command = [f"{servers}/bin/weed", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer=true", "-s3", f"-dir={self.folder}"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=5000", "-master.volumeSizeLimitMB=1024", f"-s3.config={self.folder}/s3.json"]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen([*command, *listen], start_new_session=True, **quiet)
        wait_for(port)
        for _ in range(100):
            if subprocess.run([self.python, "-c", self.ASK, self.url, "clear", "ready"], capture_output=True).returncode == 0:
                return
            time.sleep(0.2)
        raise SystemExit("SeaweedFS makes no bucket")

    def tell(self, command, bucket="", **asked):
        if command in ("clear", "sums"):
            return json.loads(subprocess.run([self.python, "-c", self.ASK, self.url, command, bucket], capture_output=True, check=True).stdout)
        if command == "seed" or asked:
            raise SystemExit("SeaweedFS has no weather, and no objects of its own: leave --real out for this workload")
        return dict(requests={})

    def stop(self):
        os.killpg(self.process.pid, 9)
        self.process.wait()
        for socket_file in self.left_behind:
            pathlib.Path(socket_file).unlink(missing_ok=True)


def launcher():
    """Runs what it is told, line by line, and tells wall, CPU seconds, peak in MiB, exit code.

    A process of its own, and small: the peak of a child is never less than that of the process that started it."""
    for line in sys.stdin:
        command, environment, out, timeout = json.loads(line)
        with open(out, "wb") as file:
            began = time.monotonic()
            child = subprocess.Popen(["bash", "-c", command], env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
            code = None
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    code = os.waitstatus_to_exitcode(status)
                    break
                if time.monotonic() - began > timeout:
                    os.killpg(child.pid, 9)
                    _, _, usage = os.wait4(child.pid, 0)
                    break
                time.sleep(0.002)
            child.returncode = 0
            wall = time.monotonic() - began
        print(json.dumps([wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, code]), flush=True)


class Bench:
    def __init__(self, arguments):
        self.launcher = subprocess.Popen([sys.executable, __file__, "launcher"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.bin, self.venv, self.arguments = arguments.bin, arguments.venv, arguments
        self.folder = tempfile.mkdtemp(prefix="dth-bench-")
        source, destination = ports(2)
        self.source = Server(f"{self.bin}/mems3", source)
        self.destination = SeaweedFs(arguments.servers, self.folder) if arguments.real else Server(f"{self.bin}/mems3", destination)
        self.out = f"{self.folder}/out"

    def close(self):
        self.launcher.stdin.close()
        self.launcher.wait()
        self.source.stop()
        self.destination.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self):
        names = dict(TYPE="s3", PROVIDER="Other", ACCESS_KEY_ID="x", SECRET_ACCESS_KEY="xxxxxxxx", REGION="us-east-1", FORCE_PATH_STYLE="true")
        sides = {"SRC": self.source.url, "DST": self.destination.url}
        rclone = {f"RCLONE_CONFIG_{side}_{name}": value for side in sides for name, value in names.items()}
        rclone |= {f"RCLONE_CONFIG_{side}_ENDPOINT": url for side, url in sides.items()}
        aws = dict(
            AWS_ACCESS_KEY_ID="x",
            AWS_SECRET_ACCESS_KEY="xxxxxxxx",
            AWS_REGION="us-east-1",
            AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true",
            AWS_CONFIG_FILE="/dev/null",
            AWS_SHARED_CREDENTIALS_FILE="/dev/null",
        )
        return dict(os.environ, RCLONE_CONFIG="/dev/null", **rclone, **aws)

    def dth(self, bucket, more=""):
        """One process with durable state, default settings, a new state file."""
        state = f"{self.folder}/state-{time.monotonic_ns()}.db"
        side = f'bucket = "{bucket}"\nregion = "us-east-1"\ncredentials = {{ kind = "static", access_key_id = "x", secret_access_key = "xxxxxxxx" }}\n'
        task = f"{self.folder}/task.toml"
        with open(task, "w") as file:
            file.write(f'state = "{state}"\n{more}')
            file.write(f'[source]\nendpoint = "{self.source.url}"\n{side}[destination]\nendpoint = "{self.destination.url}"\n{side}')
        return f"exec {self.bin}/transfer -c {task}"

    def command(self, name, bucket, workload, more=""):
        return self.dth(bucket, more) if name == "dth" else self.others(bucket, workload, name)[name]

    def others(self, bucket, workload, name=""):
        """The command lines of the floor and of the peers, at their defaults and tuned by hand: `rclone-64` and `s3sync-64` have so many
        objects in flight, and any other number as well."""
        number = name.removeprefix("rclone-").removeprefix("s3sync-")
        number = number if number.isdecimal() else "64"
        source, destination, hop = self.source.url, self.destination.url, f"{self.folder}/hop"
        synced = workload.get("synced")
        rclone = f"{self.venv}/bin/rclone {'sync' if synced else 'copy'} src:{bucket} dst:{bucket} -q"
        tuned = f"{rclone} --fast-list --s3-no-check-bucket --s3-list-version 2 --s3-no-head"
        if synced:
            tuned += " --size-only"
        s3sync = (
            f"{self.arguments.peers_bin}/s3sync --source-endpoint-url {source} --target-endpoint-url {destination} --source-force-path-style "
            f"--target-force-path-style --source-access-key x --source-secret-access-key xxxxxxxx --target-access-key x "
            f"--target-secret-access-key xxxxxxxx --source-region us-east-1 --target-region us-east-1 --disable-tagging -qq"
        )
        fast = "--disable-etag-verify --disable-multipart-verify --disable-payload-signing --disable-content-md5-header --disable-stalled-stream-protection"
        both = f"s3://{bucket} s3://{bucket}"
        s5cmd = f"{self.venv}/bin/s5cmd"
        pump = f"exec {self.bin}/pump"
        far = "source" in workload
        return {
            "floor": f"{pump} compare {source} {destination} {bucket}" if synced else f"{pump} copy {source} {destination} {bucket} {256 if far else 32}",
            "rclone-default": f"exec {rclone}",
            f"rclone-{number}": f"exec {tuned} --transfers {number} --checkers {number}",
            "rclone-big": f"exec {tuned} --transfers 8 --checkers 8 --s3-chunk-size 16M --s3-upload-concurrency 8 --multi-thread-streams 8 --multi-thread-cutoff 64M",
            "rclone-big16": f"exec {tuned} --transfers 16 --checkers 16 --s3-chunk-size 8M --s3-upload-concurrency 4 --multi-thread-streams 16 --multi-thread-cutoff 16M --multi-thread-chunk-size 16M",
            "s3sync-default": f"exec {s3sync} {both}",
            f"s3sync-{number}": f"exec {s3sync} --worker-size {number} {fast} {both}",
            "s3sync-big": f"exec {s3sync} --worker-size 4 --max-parallel-uploads 16 --multipart-threshold 16MiB --multipart-chunksize 16MiB {fast} {both}",
            "s5cmd": f"mkdir -p {hop} && {s5cmd} --endpoint-url {source} --log error cp 's3://{bucket}/*' {hop}/ && {s5cmd} --endpoint-url {destination} --log error cp {hop}/ s3://{bucket}/; r=$?; rm -rf {hop}; exit $r",
            "awscli": f"mkdir -p {hop} && {self.venv}/bin/aws s3 cp --recursive --only-show-errors --endpoint-url {source} s3://{bucket}/ {hop}/ && {self.venv}/bin/aws s3 cp --recursive --only-show-errors --endpoint-url {destination} {hop}/ s3://{bucket}/; r=$?; rm -rf {hop}; exit $r",
        }

    def run(self, command, timeout):
        """Wall, CPU seconds, peak in MiB, exit code; `None` for what did not end in time."""
        print(json.dumps([command, self.environment(), self.out, timeout]), file=self.launcher.stdin, flush=True)
        return json.loads(self.launcher.stdout.readline())

    def told(self):
        with open(self.out, errors="replace") as file:
            return file.read()[-2000:]

    def seed(self, server, bucket, workload):
        objects, size, part, folders = SIZES[workload["size"]]
        part = workload.get("part", part)
        server.tell("clear", bucket=bucket)
        server.tell("seed", bucket=bucket, objects=objects, size=size, part=part, folders=folders, etags=workload.get("etags", "md5"))

    def weather(self, workload):
        for server, side in ((self.source, "source"), (self.destination, "destination")):
            server.tell("weather", **workload.get(side, {}))

    def calm(self):
        for server in (self.source, self.destination):
            server.tell("weather")

    def control(self, name):
        """Whether a copier notices what is wrong: nothing wrong at the destination, the rest there, and an exit code that says so."""
        bucket = "control"
        for server in (self.source, self.destination):
            server.tell("clear", bucket=bucket)
            server.tell("reset")
        self.source.tell("seed", bucket=bucket, objects=20, size=24 * MIB, part=8 * MIB, folders=2)
        before = self.source.tell("sums", bucket=bucket)
        keys = sorted(before)
        flipped, overwritten = [keys[3], keys[12]], keys[7]
        for key in flipped:
            self.source.tell("tamper", key=key, how="flip")
        self.source.tell("tamper", key=overwritten, how="overwrite")
        quick = "[worker]\nmax_attempts = 2\nmax_delay_seconds = 1\n"
        _, _, _, code = self.run(self.command(name, bucket, {}, quick), 300)
        there, after = self.destination.tell("sums", bucket=bucket), self.source.tell("sums", bucket=bucket)
        found = []
        if code == 0:
            found.append("says done")
        if any(there.get(key) not in (None, before[key]) for key in flipped):
            found.append("stores a flipped bit")
        if there.get(overwritten) not in (None, before[overwritten], after[overwritten]):
            found.append("mixes two versions")
        rest = [key for key in keys if key not in (*flipped, overwritten)]
        if any(there.get(key) != before[key] for key in rest):
            found.append("leaves others behind")
        self.source.tell("clear", bucket=bucket)
        self.destination.tell("clear", bucket=bucket)
        return ", ".join(found) or "all noticed"

    def cannot(self, name, workload):
        """Why this is no work for a copier; `None` where it is."""
        if workload.get("synced") and name in ("s5cmd", "awscli"):
            return "compares no two endpoints"
        if name == "floor" and self.arguments.real:
            return "does not sign"
        if name != "dth" and workload.get("cluster"):
            return "no such thing"
        return None

    def measure(self, name, workload, bucket, expected):
        """One run, or the reason why it has no time."""
        if why := self.cannot(name, workload):
            return why
        recorded = name == "dth" and workload.get("etags") == "opaque"
        if workload.get("synced") and not recorded:
            self.seed(self.destination, bucket, workload)
        else:
            self.destination.tell("clear", bucket=bucket)
        if workload.get("cluster"):
            return self.measure_cluster(workload, bucket, expected)
        if recorded:
            return self.measure_recorded(workload, bucket, expected)
        return self.timed(self.command(name, bucket, workload), workload, bucket, expected)

    def measure_recorded(self, workload, bucket, expected):
        """With etags that never match, the state knows the pairs: a run before the one that is timed has recorded them."""
        first = self.dth(bucket)
        _, _, _, code = self.run(first, 400)
        if code != 0:
            return f"the run before failed: {self.told()}"
        return self.timed(first, workload, bucket, expected)

    def measure_cluster(self, workload, bucket, expected):
        """Finder and worker as one process, its queue and state in AWS: ministack, behind a line of 5 ms."""
        emulator, line = ports(2)
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        environment = dict(AUTH="true", BIND_HOST="127.0.0.1", GATEWAY_PORT=str(emulator), IOT_MTLS_ENABLED="0", LOG_LEVEL="ERROR", TMPDIR=self.folder)
        servers = [
            subprocess.Popen([f"{self.arguments.servers}/bin/ministack"], env=dict(os.environ, STATE_DIR=f"{self.folder}/ministack", **environment), **quiet),
            subprocess.Popen([f"{self.bin}/delay_line", str(line), str(emulator), "5"], **quiet),
        ]
        try:
            wait_for(emulator)
            command = self.dth(bucket)
            with open(f"{self.folder}/task.toml") as file:
                task = file.read().split("\n", 1)[1]
            with open(f"{self.folder}/task.toml", "w") as file:
                file.write(f'{task}[cluster]\nqueue = "jobs"\ntable = "jobs"\ncreate = true\nregion = "us-east-1"\nendpoint = "http://127.0.0.1:{line}"\n')
            keys = "AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test "
            return self.timed(keys + command.removeprefix("exec "), workload, bucket, expected)
        finally:
            for server in servers:
                server.kill()
                server.wait()

    def timed(self, command, workload, bucket, expected):
        for server in (self.source, self.destination):
            server.tell("reset")
        self.weather(workload)
        wall, cpu, peak, code = self.run(command, workload.get("timeout", 400))
        self.calm()
        if code is None:
            return f"not done after {wall:.0f} s"
        if code != 0:
            return f"exit code {code}: {self.told()}"
        if self.destination.tell("sums", bucket=bucket) != expected:
            return "another destination than the source"
        requests = [server.tell("stats") for server in (self.source, self.destination)]
        return dict(wall=wall, cpu=cpu, peak=peak, requests=requests)


def kinds(stats):
    return ", ".join(f"{count:,} {name}" for name, count in sorted(stats["requests"].items(), key=lambda pair: -pair[1]))


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report(name, workload, results, controls, write):
    objects, size, _, _ = SIZES[workload["size"]]
    counted = {peer: [run for run in runs if isinstance(run, dict)] for peer, runs in results.items()}
    median = lambda peer, what: statistics.median(run[what] for run in counted[peer])
    peers = [peer for peer in results if counted[peer]]
    others = [peer for peer in peers if peer not in ("dth", "floor")]
    best = {what: min((median(peer, what) for peer in others), default=None) for what in ("wall", "cpu")}
    write(f"\n## ({name}) {workload['what']}\n\n")
    write("| | wall s | client CPU s | peak MiB | objects/s | MB/s | CPU to floor | wall, CPU to best peer | wrong sources | requests at source; at destination |\n")
    write("|---|---|---|---|---|---|---|---|---|---|\n")
    for peer, runs in results.items():
        if not counted[peer]:
            write(f"| {peer} | {runs[0].splitlines()[0][:160] if runs else '-'} |||||||| |\n")
            continue
        wall, cpu = median(peer, "wall"), median(peer, "cpu")
        ratio = lambda mine, other: f"{mine / other:.2f}" if other else "-"
        floor = ratio(cpu, median("floor", "cpu")) if "floor" in peers and peer != "floor" else "-"
        to_best = f"{ratio(wall, best['wall'])}, {ratio(cpu, best['cpu'])}" if peer != "floor" else "-"
        source, destination = counted[peer][-1]["requests"]
        write(
            f"| {peer} | {spread([run['wall'] for run in counted[peer]])} | {spread([run['cpu'] for run in counted[peer]])} "
            f"| {max(run['peak'] for run in counted[peer]):.0f} | {objects / wall:,.0f} | {objects * size / wall / 1e6:,.0f} | {floor} | {to_best} "
            f"| {controls.get(peer, '-')} | {kinds(source)}; {kinds(destination)} |\n"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--venv", required=True)
    parser.add_argument("--peers-bin", required=True)
    parser.add_argument("--servers")
    parser.add_argument("--workload", default="a,b,c,d,e")
    parser.add_argument("--peers", default="floor,dth,rclone-default,rclone-64,rclone-big16,s3sync-default,s3sync-64,s3sync-big,s5cmd,awscli")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-control", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    names, peers = arguments.workload.split(","), arguments.peers.split(",")
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise SystemExit(f"no such workload: {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    out = open(arguments.out, "w") if arguments.out else None

    def write(text):
        print(text, end="", flush=True)
        if out:
            out.write(text)
            out.flush()

    bench = Bench(arguments)
    try:
        if unknown := [peer for peer in peers if peer != "dth" and peer not in bench.others("b", {}, peer)]:
            raise SystemExit(f"no such copier: {', '.join(unknown)}; there are dth, {', '.join(bench.others('b', {}))}, and other numbers")
        write(f"# {datetime.datetime.now():%Y-%m-%d %H:%M}, {os.cpu_count()} cores, {arguments.rounds} rounds, medians and spread\n")
        controls = {} if arguments.no_control else {peer: bench.control(peer) for peer in peers if peer != "floor"}
        for name in names:
            workload = WORKLOADS[name]
            bucket = f"bench-{name}"
            bench.seed(bench.source, bucket, workload)
            expected = bench.source.tell("sums", bucket=bucket)
            results = {peer: [] for peer in peers}
            for number in range(arguments.rounds):
                for peer in peers:
                    run = bench.measure(peer, workload, bucket, expected)
                    results[peer].append(run)
                    told = f"{run['wall']:.2f} s, cpu {run['cpu']:.2f} s, {run['peak']:.0f} MiB" if isinstance(run, dict) else run
                    print(f"# {name} round {number + 1} {peer}: {told}", file=sys.stderr, flush=True)
            report(name, workload, results, controls, write)
            for server in (bench.source, bench.destination):
                server.tell("clear", bucket=bucket)
    finally:
        bench.close()


if sys.argv[1:] == ["launcher"]:
    launcher()
else:
    main()
