//! R9: no secret in anything that the programs print or write, at TRACE, whether all goes well or not.

use crate::support::{bytes, ministacks, put};
use std::{
    path::Path,
    process::{Command, Stdio},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Duration, sleep},
};

/// A token and a password that nobody asks for, but that stand in settings and environment.
const PROXY_PASSWORD: &str = "canarypasswordoftheproxy";
const TOKEN: &str = "canarytokenofasession";
const WRONG_SECRET: &str = "canary/secret+that=is-wrong";

fn files_below(folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.extension().is_none_or(|e| e != "toml") {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap_or_default()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn no_secret_is_in_any_output() {
    let pair = ministacks().await;
    for n in 0..20 {
        put(&pair.source, &format!("k{n}"), bytes(1000, n)).await;
    }
    put(&pair.source, "large", bytes(9 << 20, 99)).await;
    let folder = pair.folder.path().join("outputs");
    std::fs::create_dir_all(&folder).unwrap();
    let [(from_id, from_secret), (to_id, to_secret)] = pair.keys();
    let config = |name: &str, secret: &str, more: &str| {
        let path = folder.join(name);
        let side = |bucket: &str, endpoint: &str, prefix: &str| {
            format!(
                "bucket = '{bucket}'\nregion = 'us-east-1'\nendpoint = '{endpoint}'\nprofile = 'compatible'\nconnect_timeout_seconds = 2\n\
                 credentials = {{ kind = 'environment_prefix', prefix = '{prefix}' }}\n{more}"
            )
        };
        let (source, sink) = (&pair.source_server().endpoint, &pair.sink_server().endpoint);
        let token = if secret == WRONG_SECRET { format!(", session_token = '{TOKEN}'") } else { String::new() };
        let static_keys = format!("credentials = {{ kind = 'static', access_key_id = '{to_id}', secret_access_key = '{secret}'{token} }}");
        let sink = side("destination", sink, "TO").replace("credentials = { kind = 'environment_prefix', prefix = 'TO' }", &static_keys);
        let text = format!(
            "state = '{0}.db'\nmanifest = '{0}.manifest'\n[worker.transfer]\nsingle_max = 1048576\nretry = {{ tries = 2, base_ms = 10, cap_ms = 50 }}\n\
             [source]\n{1}\n[destination]\n{sink}\n",
            path.display(),
            side("source", source, "FROM"),
        );
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let good = config("good.toml", &to_secret, "");
    let wrong = config("wrong.toml", WRONG_SECRET, "");
    let proxy = format!("proxy = {{ kind = 'url', url = 'http://127.0.0.1:1', user = 'u', password = '{PROXY_PASSWORD}' }}\n");
    let proxied = config("proxied.toml", &to_secret, &proxy);
    let command = |binary: &str, arguments: &[&str]| {
        let mut command = Command::new(binary);
        command.args(arguments).env("RUST_LOG", "trace").env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("FROM_ACCESS_KEY_ID", &from_id).env("FROM_SECRET_ACCESS_KEY", &from_secret);
        command
    };
    let mut outputs = Vec::new();
    let mut run = |binary: &str, arguments: &[&str], form: &str| {
        let out = command(binary, arguments).env("DTH_LOG", form).output().unwrap();
        let name = format!("{} {arguments:?}", Path::new(binary).file_name().unwrap().display());
        outputs.push((format!("{name}, stdout"), out.stdout));
        outputs.push((format!("{name}, stderr"), out.stderr));
        out.status.code()
    };
    let (transfer, doctor) = (env!("CARGO_BIN_EXE_transfer"), env!("CARGO_BIN_EXE_doctor"));
    for form in ["text", "json"] {
        for (config, ends) in [(&good, Some(0)), (&wrong, Some(1)), (&proxied, Some(1))] {
            assert_eq!(run(transfer, &["-c", config], form), ends, "{config}");
            run(transfer, &["-c", config, "--plan"], form);
            run(doctor, &["-c", config, "--write"], form);
        }
    }
    let (finder, explain, verify) = (env!("CARGO_BIN_EXE_finder"), env!("CARGO_BIN_EXE_explain"), env!("CARGO_BIN_EXE_verify"));
    for config in [&good, &wrong] {
        run(finder, &["-c", config], "text");
        run(explain, &["-c", config, "k1"], "text");
        run(verify, &["-c", config], "text");
        run(env!("CARGO_BIN_EXE_runs"), &["-c", config, "list"], "text");
    }
    // A worker, with what it shows to Prometheus.
    let [port] = dth_examples::servers::reserve_ports().unwrap();
    let address = format!("127.0.0.1:{port}");
    let mut worker = command(env!("CARGO_BIN_EXE_worker"), &["-c", &good, "--metrics", &address]);
    let log = folder.join("worker.log");
    let mut worker = worker.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let mut metrics = Vec::new();
    let mut socket = loop {
        match tokio::net::TcpStream::connect(&address).await {
            Ok(socket) => break socket,
            Err(_) if worker.try_wait().unwrap().is_none() => sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("the worker ended: {error}"),
        }
    };
    // Some of its requests are to be in what it tells.
    sleep(Duration::from_secs(1)).await;
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    socket.read_to_end(&mut metrics).await.unwrap();
    outputs.push(("metrics".into(), metrics));
    worker.kill().unwrap();
    worker.wait().unwrap();
    files_below(&folder, &mut outputs);
    let all: usize = outputs.iter().map(|(_, bytes)| bytes.len()).sum();
    let traced = outputs.iter().filter(|(name, bytes)| name.ends_with("stderr") && contains(bytes, b"TRACE")).count();
    assert!(traced > 10 && all > 100_000, "{traced} outputs at TRACE, {all} bytes in all: nothing was looked at");
    for (name, bytes) in &outputs {
        for secret in [from_secret.as_str(), &to_secret, WRONG_SECRET, TOKEN, PROXY_PASSWORD] {
            // As it is, in a URL, in basic authorization, in JSON.
            let forms = [secret.to_owned(), secret.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D"), secret.replace('/', "\\/")];
            for form in forms {
                assert!(!contains(bytes, form.as_bytes()), "{name} has the secret `{form}`");
            }
        }
        // `u:canarypasswordoftheproxy` in base64.
        assert!(!contains(bytes, b"dTpjYW5hcnlwYXNzd29yZG9mdGhlcHJveHk"), "{name} has the proxy's authorization");
    }
    println!("0 secrets in {} outputs, {all} bytes, {traced} of them at TRACE", outputs.len());
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|w| w == what)
}
