//! The CNCF's distribution registry (Debian's `docker-registry`), and who gives tokens for it.

use crate::support::venv;
use dth_ecr::{CredentialsConfig, RegistryConfig};
use dth_examples::servers::{Server, reserve_ports};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::time::sleep;
use tokio_rustls::rustls::{
    self,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// How a registry lets people in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auth {
    Open,
    /// `user` and `pass:word`.
    Basic,
    /// The same, at a token service; tokens are good for so many seconds.
    Token(u32),
}

/// A server's certificate, and the authority that vouches for it and for nothing else.
pub(crate) struct Certificate {
    folder: tempfile::TempDir,
}

impl Certificate {
    pub(crate) fn of(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/registries/certificates.py");
        let made = Command::new(venv().join("bin/python")).arg(script).arg(folder.path()).args(names).status().unwrap();
        assert!(made.success(), "certificates");
        Self { folder }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// What clients have to trust.
    pub(crate) fn ca_file(&self) -> String {
        self.file("ca.pem")
    }

    pub(crate) fn of_server(&self) -> rustls::ServerConfig {
        let chain = CertificateDer::pem_file_iter(self.file("server.pem")).unwrap().collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(self.file("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        config.with_no_client_auth().with_single_cert(chain, key).unwrap()
    }
}

/// A registry, which stops when this is dropped.
pub(crate) struct DockerRegistry {
    pub(crate) host: String,
    pub(crate) folder: tempfile::TempDir,
    children: Vec<Child>,
    /// Where it speaks TLS.
    pub(crate) certificate: Option<Certificate>,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn wait_for(port: u16, child: &mut Child) {
    for _ in 0..600 {
        assert!(child.try_wait().unwrap().is_none(), "a server ended before it answered");
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("no server at port {port}");
}

impl DockerRegistry {
    pub(crate) async fn start(auth: Auth) -> Self {
        Self::start_with(auth, None).await
    }

    /// Over TLS, with a certificate of an authority of its own.
    pub(crate) async fn start_tls(auth: Auth) -> Self {
        Self::start_with(auth, Some(Certificate::of(&["127.0.0.1"]))).await
    }

    async fn start_with(auth: Auth, certificate: Option<Certificate>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [port, token_port] = reserve_ports().unwrap();
        let tls = certificate.as_ref().map_or_else(String::new, |certificate| {
            format!(", tls: {{certificate: {}, key: {}}}", certificate.file("server.pem"), certificate.file("server.key"))
        });
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {0}/data}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '127.0.0.1:{port}', secret: s{tls}}}\ncompatibility: {{schema1: {{enabled: true}}}}\n",
            folder.path().display()
        );
        let mut children = Vec::new();
        match auth {
            Auth::Open => {}
            Auth::Basic => {
                let made = Command::new("htpasswd").args(["-Bbn", "user", "pass:word"]).output().unwrap();
                assert!(made.status.success(), "htpasswd (Debian's apache2-utils)");
                std::fs::write(folder.path().join("users"), made.stdout).unwrap();
                writeln!(config, "auth: {{htpasswd: {{realm: r, path: {}/users}}}}", folder.path().display()).unwrap();
            }
            Auth::Token(ttl) => {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/registries/token_server.py");
                let mut command = Command::new(venv().join("bin/python"));
                command.arg(script).arg(folder.path()).args([token_port.to_string(), ttl.to_string()]).stdout(Stdio::null());
                let mut child = command.spawn().unwrap();
                for _ in 0..600 {
                    assert!(child.try_wait().unwrap().is_none(), "the token server ended");
                    if folder.path().join("token.crt").exists() {
                        break;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
                children.push(child);
                writeln!(
                    config,
                    "auth: {{token: {{realm: 'http://127.0.0.1:{token_port}/token', service: registry, issuer: dth-test, rootcertbundle: {}/token.crt}}}}",
                    folder.path().display()
                )
                .unwrap();
            }
        }
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.path().join("access")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file).stdout(log).stderr(Stdio::null());
        let mut child = command.spawn().expect("Debian's docker-registry: `cargo xtask test` installs it");
        wait_for(port, &mut child).await;
        children.push(child);
        Self { host: format!("127.0.0.1:{port}"), folder, children, certificate }
    }

    /// Settings of this registry.
    pub(crate) fn config(&self) -> RegistryConfig {
        let ca_file = self.certificate.as_ref().map(Certificate::ca_file);
        RegistryConfig { registry: self.host.clone(), insecure: ca_file.is_none(), ca_file, ..RegistryConfig::default() }
    }

    /// The same with its one user.
    pub(crate) fn config_of_user(&self) -> RegistryConfig {
        let credentials = CredentialsConfig::Static { username: "user".into(), password: dth_core::secret::Secret::new("pass:word") };
        RegistryConfig { credentials, ..self.config() }
    }

    fn access(&self) -> PathBuf {
        self.folder.path().join("access")
    }

    /// Requests by method, kind and status, as the registry itself logs them; since the last call.
    pub(crate) async fn requests(&self) -> BTreeMap<String, u64> {
        // Each line is written after its answer.
        sleep(Duration::from_millis(300)).await;
        let text = std::fs::read_to_string(self.access()).unwrap();
        std::fs::OpenOptions::new().write(true).truncate(true).open(self.access()).unwrap();
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split('"').nth(1).unwrap_or_default().split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let status = line.split('"').nth(2).and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
            let kind = match path {
                _ if path.contains("/manifests/") => "manifest",
                _ if path.contains("mount=") => "mount",
                _ if path.contains("/blobs/uploads/") => "upload",
                _ if path.contains("/blobs/") => "blob",
                _ if path.contains("/tags/") => "tags",
                _ if path.contains("_catalog") => "catalog",
                _ if path.contains("/referrers/") => "referrers",
                _ => "other",
            };
            if !method.is_empty() {
                *counts.entry(format!("{method} {kind} {status}")).or_insert(0) += 1;
            }
        }
        counts
    }

    /// What the token service was asked.
    pub(crate) fn asked_for_tokens(&self) -> Vec<String> {
        let asked = std::fs::read_to_string(self.folder.path().join("asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }
}

/// An emulator of Amazon ECR, and a registry beside it.
pub(crate) async fn ecr_and_registry() -> (Server, DockerRegistry) {
    let venv = venv();
    let (ecr, registry) = tokio::join!(Server::ministack(&venv), DockerRegistry::start(Auth::Open));
    (ecr.unwrap(), registry)
}

/// Where a server is reached without TLS, as registries are named.
pub(crate) fn host(server: &Server) -> &str {
    server.endpoint.trim_start_matches("http://")
}

/// The sum of what begins so.
pub(crate) fn sum(requests: &BTreeMap<String, u64>, begins: &str) -> u64 {
    requests.iter().filter(|(kind, _)| kind.starts_with(begins)).map(|(_, n)| n).sum()
}

/// What Debian's skopeo says.
pub(crate) fn skopeo(arguments: &[&str]) -> String {
    let out = Command::new("skopeo").arg("--insecure-policy").args(arguments).output().expect("Debian's skopeo");
    assert!(out.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}
