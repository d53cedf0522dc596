//! Real S3 servers of others on loopback: `s3s-fs` inside this process, `ministack` as a process of its own.

use anyhow::Context;
use dth_core::scope::TaskScope;
use dth_s3::{CredentialsConfig, Profile, S3Config, Secret};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    net::SocketAddr,
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
    _tasks: TaskScope,
    child: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
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
        let mut tasks = TaskScope::new();
        tasks.spawn(async move {
            let mut connections = TaskScope::new();
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let service = service.clone();
                connections.spawn(async move {
                    let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Ok(Self {
            endpoint: format!("http://{address}"),
            access_key: access_key.into(),
            secret_key: secret_key.into(),
            profile: Profile::S3sFs,
            _tasks: tasks,
            child: None,
        })
    }

    /// Starts `ministack` of a Python environment (`cargo xtask test` installs it), with strict signatures and a user.
    pub async fn ministack(venv: &Path) -> anyhow::Result<Self> {
        // The kernel chooses a port; it is ours again a moment later.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let endpoint = format!("http://127.0.0.1:{port}");
        let child = Command::new(venv.join("bin/ministack"))
            .env("AUTH", "true")
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .env("IOT_MTLS_ENABLED", "0")
            .env("LOG_LEVEL", "ERROR")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start ministack of `{}`: `cargo xtask test` installs it", venv.display()))?;
        let mut server = Self {
            endpoint,
            access_key: String::new(),
            secret_key: String::new(),
            profile: Profile::Compatible,
            _tasks: TaskScope::new(),
            child: Some(child),
        };
        server.wait_for_port(port).await?;
        (server.access_key, server.secret_key) = make_user(venv, &server.endpoint).await?;
        Ok(server)
    }

    async fn wait_for_port(&mut self, port: u16) -> anyhow::Result<()> {
        for _ in 0..600 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                anyhow::bail!("ministack ended with {status} before it answered");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("ministack did not answer within a minute")
    }
}

const MAKE_USER: &str = r#"
import json, sys, boto3
iam = boto3.client("iam", endpoint_url=sys.argv[1], aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
iam.create_user(UserName="dth")
key = iam.create_access_key(UserName="dth")["AccessKey"]
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}]}
iam.put_user_policy(UserName="dth", PolicyName="p", PolicyDocument=json.dumps(policy))
print(key["AccessKeyId"], key["SecretAccessKey"])
"#;

async fn make_user(venv: &Path, endpoint: &str) -> anyhow::Result<(String, String)> {
    for _ in 0..20 {
        let out = Command::new(venv.join("bin/python")).args(["-c", MAKE_USER, endpoint]).stderr(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if let Some((access, secret)) = text.trim().split_once(' ').filter(|_| out.status.success()) {
            return Ok((access.to_owned(), secret.to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    anyhow::bail!("ministack did not make a user")
}
