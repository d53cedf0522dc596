#!/usr/bin/env python3
"""27 images, about 1 GB, shared base layers, an index of three platforms, between two docker-registries in memory: `ecr_copy` with
durable state, skopeo sync, skopeo ten at a time, and a bare floor (each blob once, GET -> PUT, no checks, no state), in turn.

usage: benches/registries.py [ROUNDS] [SCALE]; Debian's docker-registry and skopeo, and `cargo build --release --bin ecr_copy`.
After every run each manifest and blob of the destination is read and hashed: a wrong result has no time."""
import collections, gzip, hashlib, http.client, io, json, multiprocessing, os, queue, random, re, shutil, socket, subprocess, sys, tarfile, tempfile, threading, time

NUMBERS = [a for a in sys.argv[1:] if not a.startswith("--") and ":" not in a]
ROUNDS, SCALE = int(NUMBERS[0]) if NUMBERS else 3, float(NUMBERS[1]) if len(NUMBERS) > 1 else 1.0
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = None if "--floor" in sys.argv else tempfile.mkdtemp(prefix="dth-registries-", dir="/dev/shm")
ACCEPT = ",".join(["application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
                   "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json"])
NAMES = [f"app{i:02d}" for i in range(27)]

class Registry:
    def __init__(self, name):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.folder, self.host = f"{WORK}/{name}", f"127.0.0.1:{self.port}"
        os.makedirs(self.folder)
        with open(f"{self.folder}/config.yml", "w") as f:
            f.write(f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {self.folder}/data}}}}\nhttp: {{addr: '{self.host}'}}\n")
        self.log = open(f"{self.folder}/access", "ab")
        self.child = subprocess.Popen(["docker-registry", "serve", f"{self.folder}/config.yml"], stdout=self.log, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                return self.call("GET", "/v2/") and None
            except OSError:
                time.sleep(0.05)

    def stop(self):
        self.child.kill(); self.child.wait(); shutil.rmtree(self.folder)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300, blocksize=1 << 20)

    def call(self, method, path, body=None, headers={}, connection=None):
        c = connection or self.connect()
        c.request(method, path, body, headers)
        answer = c.getresponse()
        return answer, answer.read()

    def requests(self):
        """By kind, since the last call; the second value is the bytes of blobs that were read."""
        time.sleep(0.3)
        counts, read = collections.Counter(), 0
        with open(f"{self.folder}/access", errors="replace") as f:
            for line in f:
                if m := re.search(r'"(\w+) (\S+) HTTP/1.1" (\d+) (\d+) ', line):
                    path = m[2]
                    kind = next((k for k, sign in [("manifest", "/manifests/"), ("mount", "mount="), ("upload", "/uploads/"), ("blob", "/blobs/")] if sign in path), "other")
                    counts[f"{m[1]} {kind} {m[3]}"] += 1
                    read += int(m[4]) if (m[1], kind) == ("GET", "blob") else 0
        os.truncate(f"{self.folder}/access", 0)
        return counts, read

def digest(b):
    return "sha256:" + hashlib.sha256(b).hexdigest()

def push(registry):
    c, have = registry.connect(), {}
    pool = random.Random(7).randbytes(48 << 20)
    def layer(seed, mib):
        size, at, out = int(mib * (1 << 20) * SCALE), (seed * 1_000_003) % (8 << 20), io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as t:
            entry = tarfile.TarInfo(f"data/{seed}.bin"); entry.size = size
            t.addfile(entry, io.BytesIO(seed.to_bytes(8, "big") + pool[at:at + size - 8]))
        return gzip.compress(out.getvalue(), 1, mtime=0)
    def blob(name, b):
        d = digest(b)
        if d in have:
            if registry.call("POST", f"/v2/{name}/blobs/uploads/?mount={d}&from={have[d]}", b"", connection=c)[0].status == 201:
                return d
        begun, _ = registry.call("POST", f"/v2/{name}/blobs/uploads/", b"", connection=c)
        to = begun.getheader("Location"); to = to[to.index("/v2/"):]
        done, text = registry.call("PUT", f"{to}&digest={d}", b, {"Content-Type": "application/octet-stream"}, connection=c)
        assert done.status == 201, text
        have.setdefault(d, name)
        return d
    def image(name, layers, arch, tag=None):
        config = json.dumps({"architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "author": name + arch}).encode()
        media = "application/vnd.oci.image"
        m = {"schemaVersion": 2, "mediaType": f"{media}.manifest.v1+json",
             "config": {"mediaType": f"{media}.config.v1+json", "digest": blob(name, config), "size": len(config)},
             "layers": [{"mediaType": f"{media}.layer.v1.tar+gzip", "digest": blob(name, b), "size": len(b)} for b in layers]}
        b = json.dumps(m).encode()
        done, text = registry.call("PUT", f"/v2/{name}/manifests/{tag or digest(b)}", b, {"Content-Type": m["mediaType"]}, connection=c)
        assert done.status == 201, text
        return {"mediaType": m["mediaType"], "digest": digest(b), "size": len(b), "platform": {"os": "linux", "architecture": arch}}
    bases = [[layer(1000 + i, 30), layer(1100 + i, 10)] for i in range(3)]
    for i in range(26):
        image(NAMES[i], bases[i % 3] + [layer(i, 24), layer(100 + i, 4)], "amd64", "v1")
    platforms = [image("app26", [layer(200 + j, 15), layer(300 + j, 5)], a) for j, a in enumerate(("amd64", "arm64", "arm"))]
    index = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": platforms}).encode()
    done, text = registry.call("PUT", "/v2/app26/manifests/v1", index, {"Content-Type": "application/vnd.oci.image.index.v1+json"}, connection=c)
    assert done.status == 201, text

def graph(registry, hashing):
    """Every digest under each tag; of what is to be hashed, each blob is."""
    c, found, hashed = registry.connect(), {}, set()
    for name in NAMES:
        todo, found[name] = ["v1"], set()
        while todo:
            reference = todo.pop()
            answer, b = registry.call("GET", f"/v2/{name}/manifests/{reference}", headers={"Accept": ACCEPT}, connection=c)
            if answer.status != 200:
                return None
            found[name].add(digest(b))
            m = json.loads(b)
            todo += [x["digest"] for x in m.get("manifests", [])]
            for x in [m[k] for k in ["config"] if k in m] + m.get("layers", []):
                found[name].add(x["digest"])
                if hashing and x["digest"] not in hashed:
                    hashed.add(x["digest"])
                    answer, b = registry.call("GET", f"/v2/{name}/blobs/{x['digest']}", connection=c)
                    if digest(b) != x["digest"]:
                        return None
    return found

def floor(source, there):
    """Run as a process of its own: `--floor SOURCE DESTINATION`."""
    class At(Registry):
        def __init__(self, host):
            self.port = int(host.split(":")[1])
    source, there, local = At(source), At(there), threading.local()
    def on(side, name):
        if not hasattr(local, name):
            setattr(local, name, side.connect())
        return getattr(local, name)
    manifests, first, links = {}, {}, []
    def read(name, reference):
        answer, b = source.call("GET", f"/v2/{name}/manifests/{reference}", headers={"Accept": ACCEPT}, connection=on(source, "s"))
        m, under = json.loads(b), []
        for x in m.get("manifests", []):
            under += read(name, x["digest"])
        blobs = [(x["digest"], x["size"]) for x in [m[k] for k in ["config"] if k in m] + m.get("layers", [])]
        return under + [(reference, answer.getheader("Content-Type"), b, blobs)]
    def all_of(work, items):
        q = queue.Queue()
        for item in items:
            q.put(item)
        def run():
            while True:
                try:
                    item = q.get_nowait()
                except queue.Empty:
                    return
                work(item)
        threads = [threading.Thread(target=run) for _ in range(10)]
        [t.start() for t in threads]; [t.join() for t in threads]
    all_of(lambda name: manifests.__setitem__(name, read(name, "v1")), NAMES)
    for name in NAMES:
        for _, _, _, blobs in manifests[name]:
            for d, size in blobs:
                if d not in first:
                    first[d] = (name, size)
                elif first[d][0] != name:
                    links.append((name, d, first[d][0]))
    def copy(item):
        d, (name, size) = item
        begun, _ = there.call("POST", f"/v2/{name}/blobs/uploads/", b"", connection=on(there, "d"))
        to = begun.getheader("Location"); to = to[to.index("/v2/"):]
        g = on(source, "s"); g.request("GET", f"/v2/{name}/blobs/{d}"); answer = g.getresponse()
        c = on(there, "d"); c.putrequest("PUT", f"{to}&digest={d}")
        c.putheader("Content-Length", str(size)); c.putheader("Content-Type", "application/octet-stream"); c.endheaders()
        buffer = bytearray(1 << 20); view = memoryview(buffer)
        while n := answer.readinto(buffer):
            c.sock.sendall(view[:n])
        done = c.getresponse(); done.read(); assert done.status == 201
    all_of(copy, first.items())
    all_of(lambda l: there.call("POST", f"/v2/{l[0]}/blobs/uploads/?mount={l[1]}&from={l[2]}", b"", connection=on(there, "d")), sorted(set(links)))
    for name in NAMES:
        for reference, kind, b, _ in manifests[name]:
            assert there.call("PUT", f"/v2/{name}/manifests/{reference}", b, {"Content-Type": kind}, connection=on(there, "d"))[0].status == 201

def apart(work, registry, *more):
    """In a process of its own: a child's peak memory begins with that of who starts it, which is to stay small."""
    here, there = multiprocessing.Pipe(False)
    child = multiprocessing.Process(target=lambda: there.send(work(registry, *more)))
    child.start()
    result = here.recv()
    child.join()
    return result

def measure(command, out):
    began = time.time()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    _, status, usage = os.wait4(child.pid, 0)
    return time.time() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024, status

def main():
    source = Registry("source")
    apart(push, source)
    wanted = apart(graph, source, False)
    source.requests()
    medians = collections.defaultdict(list)
    out = open(f"{WORK}/out", "ab")
    try:
        for n in range(ROUNDS):
            for peer in ["dth", "skopeo sync", "skopeo x10", "floor"]:
                there = Registry(f"there{n}{peer.replace(' ', '')}")
                sync, state = f"{WORK}/sync.yml", f"{WORK}/state{n}.db"
                with open(sync, "w") as f:
                    f.write(f"{source.host}:\n  tls-verify: false\n  images:\n" + "".join(f'    {name}: ["v1"]\n' for name in NAMES))
                with open(f"{WORK}/task.toml", "w") as f:
                    images = ", ".join(f'"{name}:v1"' for name in NAMES)
                    f.write(f'state = "{state}"\n[source_registry]\nregistry = "{source.host}"\ninsecure = true\nselect.images = [{images}]\n'
                            f'[destination_registry]\nregistry = "{there.host}"\ninsecure = true\n')
                one = f"skopeo --insecure-policy copy -q --all --src-tls-verify=false --dest-tls-verify=false docker://{source.host}/@:v1 docker://{there.host}/@:v1"
                command = {
                    "dth": [f"{ROOT}/target/release/ecr_copy", "-c", f"{WORK}/task.toml"],
                    "skopeo sync": ["skopeo", "--insecure-policy", "sync", "--all", "--src", "yaml", "--dest", "docker", "--dest-tls-verify=false", sync, there.host],
                    "skopeo x10": ["bash", "-c", f"echo {' '.join(NAMES)} | tr ' ' '\\n' | xargs -P10 -I@ {one}"],
                    "floor": [sys.executable, os.path.abspath(__file__), "--floor", source.host, there.host],
                }[peer]
                shutil.rmtree("/var/lib/containers/cache", ignore_errors=True)
                wall, cpu, rss, status = measure(command, out)
                (asked, read), (written, _) = source.requests(), there.requests()
                right = status == 0 and apart(graph, there, True) == wanted
                source.requests(); there.requests()
                line = f"{peer:12} wall {wall:5.2f} s  cpu {cpu:5.2f} s  peak {rss:3} MiB  requests {sum(asked.values()):3} + {sum(written.values()):3}  blobs read {read / 1e6:.0f} MB"
                print(line if right else f"{peer:12} WRONG (status {status})", flush=True)
                if right:
                    medians[peer].append((wall, cpu, rss, sum(asked.values()), sum(written.values()), read))
                if peer == "dth":
                    print("    source", dict(sorted(asked.items())), "\n    destination", dict(sorted(written.items())))
                    wall, cpu, _, _ = measure(command, out)
                    (asked, _), (written, _) = source.requests(), there.requests()
                    print(f"    again: wall {wall:.2f} s  cpu {cpu:.2f} s ", dict(asked), dict(written), flush=True)
                there.stop()
        print("medians")
        for peer, runs in medians.items():
            wall, cpu, rss, asked, written, read = [sorted(values)[len(values) // 2] for values in zip(*runs)]
            print(f"{peer:12} wall {wall:5.2f} s  cpu {cpu:5.2f} s  peak {rss:3} MiB  requests {asked} + {written}  blobs read {read / 1e6:.0f} MB")
    finally:
        source.child.kill()
        shutil.rmtree(WORK, ignore_errors=True)

if sys.argv[1:2] == ["--floor"]:
    floor(*sys.argv[2:4])
else:
    main()
