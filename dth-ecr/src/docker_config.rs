//! Docker's `config.json` and its credential helpers.
//!
//! <https://docs.docker.com/reference/cli/docker/login/#credential-stores>,
//! <https://github.com/docker/docker-credential-helpers#development>.

use crate::credentials::Login;
use base64::{Engine, engine::general_purpose::STANDARD};
use dth_core::{
    error::{Error, ErrorKind, Op, Result},
    secret::Secret,
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{io::AsyncWriteExt, process::Command};

/// The name under which Docker keeps what belongs to Docker Hub.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A helper that says nothing for so long hangs.
const HELPER_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    #[serde(rename = "auth")]
    pair: String,
    username: String,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

/// What a helper answers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// The login for a registry, where the file or one of its helpers knows it.
pub(crate) async fn login(path: Option<&Path>, registry: &str) -> Result<Option<Login>> {
    let Some(path) = path.map(Path::to_owned).or_else(default_path) else { return Ok(None) };
    let wrong = |why: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Invalid, Op::Configure, path.display().to_string()).with_source(why)
    };
    let text = match tokio::fs::read_to_string(&path).await {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.into())),
    };
    // The line is not shown: there may be a password in it.
    let file: File = serde_json::from_str(&text)
        .map_err(|e| wrong(format!("line {}, column {}: not a Docker configuration", e.line(), e.column()).into()))?;
    let names = names_of(registry);
    let helper = names.iter().find_map(|name| file.cred_helpers.get(name)).or(file.creds_store.as_ref());
    // An empty name turns a store off.
    let helper = helper.filter(|helper| !helper.is_empty());
    if let Some(helper) = helper {
        for name in &names {
            if let Some(login) = ask(helper, name).await? {
                return Ok(Some(login));
            }
        }
    }
    let auth = names.iter().find_map(|name| file.auths.get(name));
    auth.map(|auth| auth.login().map_err(wrong)).transpose().map(Option::flatten)
}

fn default_path() -> Option<PathBuf> {
    let folder = match std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(folder.join("config.json"))
}

/// The names under which a registry may be kept.
fn names_of(registry: &str) -> Vec<String> {
    if matches!(registry, "docker.io" | "index.docker.io" | "registry-1.docker.io") {
        return vec![DOCKER_HUB.into(), "docker.io".into(), "index.docker.io".into(), "registry-1.docker.io".into()];
    }
    let plain = registry.to_owned();
    vec![
        plain.clone(),
        format!("https://{plain}"),
        format!("https://{plain}/"),
        format!("https://{plain}/v1/"),
        format!("https://{plain}/v2/"),
    ]
}

impl Auth {
    fn login(&self) -> std::result::Result<Option<Login>, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(token) = self.identitytoken.clone().filter(|token| !token.expose().is_empty()) {
            return Ok(Some(Login::Identity(token)));
        }
        if !self.pair.is_empty() {
            let wrong = "`auth` is not user:password in base64";
            let pair = String::from_utf8(STANDARD.decode(self.pair.trim()).map_err(|_| wrong)?).map_err(|_| wrong)?;
            let (username, password) = pair.split_once(':').ok_or(wrong)?;
            let password = Secret::new(password.trim_end_matches('\0'));
            return Ok(Some(Login::Basic { username: username.into(), password }));
        }
        let password = self.password.clone().filter(|_| !self.username.is_empty());
        Ok(password.map(|password| Login::Basic { username: self.username.clone(), password }))
    }
}

async fn ask(helper: &str, name: &str) -> Result<Option<Login>> {
    let program = format!("docker-credential-{helper}");
    if helper.contains(['/', '\\']) {
        return Err(Error::new(ErrorKind::Invalid, Op::Configure, program).with_source("the name of a helper is no path"));
    }
    run(program, name).await
}

async fn run(program: String, name: &str) -> Result<Option<Login>> {
    let failed = |why: String| Error::new(ErrorKind::CredentialsExpired, Op::Configure, program.clone()).with_source(why);
    let mut command = Command::new(&program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| failed(format!("cannot be started: {e}")))?;
    let mut input = child.stdin.take();
    let talk = async {
        if let Some(input) = &mut input {
            // One that needs no name may be gone already.
            let _ = input.write_all(format!("{name}\n").as_bytes()).await;
        }
        drop(input);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_PATIENCE, talk).await.map_err(|_| failed(format!("no answer within {HELPER_PATIENCE:?}")))?;
    let output = output.map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        // The protocol's own words for "not here", on either stream.
        let told = [&output.stdout, &output.stderr].map(|s| String::from_utf8_lossy(s).to_lowercase());
        if told.iter().any(|text| text.contains("credentials not found")) {
            return Ok(None);
        }
        return Err(failed(format!("`{program} get` for {name} ended with {}", output.status)));
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("the answer is not that of a credential helper".into()))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Login::Identity(answer.secret),
        _ => Login::Basic { username: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn basic(username: &str, password: &str) -> Login {
        Login::Basic { username: username.into(), password: Secret::new(password) }
    }

    #[tokio::test]
    async fn logins_of_the_file_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let file = format!(
            r#"{{"auths": {{"r:5000": {{"auth": "{}"}}, "https://index.docker.io/v1/": {{"identitytoken": "t"}},
                "https://quay.io": {{"username": "u", "password": "p"}}, "empty": {{}}, "bad": {{"auth": "canary"}}}}, "other": 1}}"#,
            STANDARD.encode("user:pass:word")
        );
        std::fs::write(&path, file).unwrap();
        let of = |registry: &'static str| login(Some(&path), registry);
        assert_eq!(of("r:5000").await.unwrap(), Some(basic("user", "pass:word")));
        assert_eq!(of("docker.io").await.unwrap(), Some(Login::Identity(Secret::new("t"))));
        assert_eq!(of("quay.io").await.unwrap(), Some(basic("u", "p")));
        assert_eq!((of("empty").await.unwrap(), of("unknown").await.unwrap()), (None, None));
        let error = of("bad").await.unwrap_err().chain();
        assert!(error.contains("config.json") && !error.contains("canary"), "{error}");
        assert_eq!(login(Some(&folder.path().join("none")), "r").await.unwrap(), None);
        std::fs::write(&path, "{\"auths\": canary").unwrap();
        let error = login(Some(&path), "r").await.unwrap_err().chain();
        assert!(error.contains("line 1") && !error.contains("canary"), "{error}");
    }

    #[tokio::test]
    async fn helpers_are_asked() {
        let folder = tempfile::tempdir().unwrap();
        let helper = folder.path().join("helper");
        let script = "#!/bin/sh\nread name || true\ncase $name in\nr) echo '{\"ServerURL\":\"r\",\"Username\":\"u\",\"Secret\":\"s\"}';;\n\
                      t) echo '{\"Username\":\"<token>\",\"Secret\":\"s\"}';;\nx) echo canary; exit 3;;\n\
                      *) echo 'credentials not found in native keychain'; exit 1;;\nesac\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let ask = |name: &'static str| run(helper.display().to_string(), name);
        assert_eq!(ask("r").await.unwrap(), Some(basic("u", "s")));
        assert_eq!(ask("t").await.unwrap(), Some(Login::Identity(Secret::new("s"))));
        assert_eq!(ask("unknown").await.unwrap(), None);
        let error = ask("x").await.unwrap_err().chain();
        assert!(error.contains("exit status: 3") && !error.contains("canary"), "{error}");
        assert!(super::ask("../x", "r").await.unwrap_err().chain().contains("no path"));
    }
}
