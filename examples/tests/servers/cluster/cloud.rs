//! What a task takes from its cloud besides queue and table: secrets, roles, topics, events, and what the original system left.

use crate::{
    chaos::referee,
    features::{Tinyproxy, read},
    support::{Pair, ministacks, put, venv},
};
use dth_core::{
    env::SystemEnv,
    http::Proxy,
    index::Index,
    memory::MemoryState,
    object::ObjectKey,
    queue::Queue,
    source::ReadOptions,
    state::{RecordQuery, StateStore, Status},
};
use dth_examples::{
    servers::{Server, reserve_ports},
    settings::{Cluster, Settings, Stores},
};
use dth_s3::{CredentialsConfig, S3Config, S3Store, Secret};
use dth_state::{
    DynamoStore, SqsQueue,
    aws::{JobStatus, JobTable},
};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Makes a secret, or gives it a new value.
pub(super) const PUT_SECRET: &str = r#"
sm = client("secretsmanager")
name, value = sys.argv[1:]
try:
    sm.create_secret(Name=name, SecretString=value)
except sm.exceptions.ResourceExistsException:
    sm.put_secret_value(SecretId=name, SecretString=value)
"#;

/// Makes a topic and a queue that gets what is published there; prints the ARN of the topic.
pub(super) const MAKE_TOPIC: &str = r#"
sns, sqs = client("sns"), client("sqs")
url = sqs.create_queue(QueueName=sys.argv[1])["QueueUrl"]
arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
allow = {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage", "Resource": arn}
sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps({"Version": "2012-10-17", "Statement": [allow]})})
topic = sns.create_topic(Name=sys.argv[1])["TopicArn"]
sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
print(topic)
"#;

/// Prints all messages of a queue as a JSON list.
pub(super) const RECEIVE_ALL: &str = r#"
sqs = client("sqs")
url = sqs.get_queue_url(QueueName=sys.argv[1])["QueueUrl"]
bodies = []
while True:
    got = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
    if not got:
        break
    for message in got:
        bodies.append(message["Body"])
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
print(json.dumps(bodies))
"#;

/// Makes a role with all rights to S3; prints its ARN.
const MAKE_ROLE: &str = r#"
iam = client("iam")
trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole",
                                                 "Condition": {"StringEquals": {"sts:ExternalId": "given"}}}]}
try:
    role = iam.create_role(RoleName=sys.argv[1], AssumeRolePolicyDocument=json.dumps(trust))["Role"]
except iam.exceptions.EntityAlreadyExistsException:
    role = iam.get_role(RoleName=sys.argv[1])["Role"]
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}]}
iam.put_role_policy(RoleName=sys.argv[1], PolicyName="p", PolicyDocument=json.dumps(policy))
print(role["Arn"])
"#;

/// The JSON of a secret with the keys of a server.
pub(super) fn key_secret((access, secret): (&str, &str)) -> String {
    json!({ "access_key_id": access, "secret_access_key": secret }).to_string()
}

/// Credentials in a secret of this cloud.
pub(super) fn in_secret(cloud: &Server, name: &str) -> CredentialsConfig {
    CredentialsConfig::Secret { name: name.into(), region: Some("us-east-1".into()), endpoint: Some(cloud.endpoint.clone()) }
}

/// The rights of the process itself, with which secrets are read and notices are published.
pub(super) fn own_rights() -> Vec<(String, String)> {
    [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1"), ("AWS_EC2_METADATA_DISABLED", "true")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

async fn run(binary: &str, config: &Path, arguments: &[&str]) -> Output {
    run_as(binary, config, arguments, own_rights()).await
}

/// Runs a program with these variables in its environment.
pub(super) async fn run_as(binary: &str, config: &Path, arguments: &[&str], environment: Vec<(String, String)>) -> Output {
    let mut command = Command::new(binary);
    command.arg("--config").arg(config).args(arguments).envs(environment);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

pub(super) fn write_config(pair: &Pair) -> std::path::PathBuf {
    let config = pair.folder.path().join("task.toml");
    std::fs::write(&config, toml::to_string(&pair.settings).unwrap()).unwrap();
    config
}

/// Keys come from the secrets that the settings name. One that is not there is an error that says which, and the identity that
/// reads the secrets, which could do everything, does not step in.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn secrets_give_the_keys_of_each_side() {
    let mut pair = ministacks().await;
    let cloud = Server::ministack(&venv()).await.unwrap();
    for n in 0..50 {
        put(&pair.source, &format!("k{n:02}"), vec![n; 100]).await;
    }
    for (name, server) in [("dth/from", pair.source_server()), ("dth/to", pair.sink_server())] {
        cloud.python(&venv(), PUT_SECRET, &[name, &key_secret(server.keys())]).await.unwrap();
    }
    cloud.python(&venv(), PUT_SECRET, &["dth/odd", r#"{"access_key_id":"canary-key","secret":"canary-secret"}"#]).await.unwrap();
    pair.settings.source.credentials = in_secret(&cloud, "dth/from");
    for (bad, told) in [("dth/missing", "dth/missing"), ("dth/odd", "`secret_access_key` is missing")] {
        pair.settings.destination.credentials = in_secret(&cloud, bad);
        let out = run(env!("CARGO_BIN_EXE_transfer"), &write_config(&pair), &[]).await;
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!out.status.success() && text.contains(told) && !text.contains("canary"), "{text}");
        assert!(crate::support::contents(&pair.sink, false).await.is_empty());
    }
    pair.settings.destination.credentials = in_secret(&cloud, "dth/to");
    let out = run(env!("CARGO_BIN_EXE_transfer"), &write_config(&pair), &[]).await;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let verdict = referee(&pair);
    assert!(verdict.is_green() && verdict.compared == 50, "{verdict:?}");
}

/// Secrets, queue, table and topic are asked through the proxy of the settings, at a service whose certificate only `ca_file` knows.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack and tinyproxy: run `cargo xtask test`"]
async fn what_aws_is_asked_goes_through_the_proxy() {
    let mut pair = ministacks().await;
    let cloud = Server::ministack_tls(&venv()).await.unwrap();
    for n in 0..50 {
        put(&pair.source, &format!("k{n:02}"), vec![n; 100]).await;
    }
    for (name, server) in [("dth/from", pair.source_server()), ("dth/to", pair.sink_server())] {
        cloud.python(&venv(), PUT_SECRET, &[name, &key_secret(server.keys())]).await.unwrap();
    }
    let topic = cloud.python(&venv(), MAKE_TOPIC, &["told"]).await.unwrap();
    let [port] = reserve_ports().unwrap();
    let proxy = Tinyproxy::start(pair.folder.path(), port).await;
    let through = Proxy::Url {
        url: format!("http://127.0.0.1:{port}"),
        user: Some("mover".into()),
        password: Some(Secret::new("secret1")),
        no_proxy: None,
    };
    let settings = &mut pair.settings;
    settings.state = None;
    settings.source.credentials = in_secret(&cloud, "dth/from");
    settings.destination.credentials = in_secret(&cloud, "dth/to");
    let cluster = Cluster { queue: "jobs".into(), create: true, region: Some("us-east-1".into()), ..Cluster::default() };
    settings.cluster = Some(Cluster { endpoint: Some(cloud.endpoint.clone()), ..cluster });
    settings.alarms.sns = Some(topic.trim().to_owned());
    settings.alarms.endpoint = Some(cloud.endpoint.clone());

    // The ways of all four; the place of each is another one in turn.
    let ways = |settings: &mut Settings, odd: Option<usize>, wrong: (&Proxy, Option<String>)| {
        let of = |n| if odd == Some(n) { (wrong.0.clone(), wrong.1.clone()) } else { (through.clone(), cloud.ca_file.clone()) };
        (settings.source.proxy, settings.source.ca_file) = of(0);
        (settings.destination.proxy, settings.destination.ca_file) = of(1);
        let cluster = settings.cluster.as_mut().unwrap();
        (cluster.proxy, cluster.ca_file) = of(2);
        (settings.alarms.proxy, settings.alarms.ca_file) = of(3);
    };
    let start = async |pair: &Pair| {
        let config = write_config(pair);
        // Settings that are written down have no secrets in them.
        let text = std::fs::read_to_string(&config).unwrap().replace("***", "secret1");
        std::fs::write(&config, text).unwrap();
        let out = run(env!("CARGO_BIN_EXE_transfer"), &config, &[]).await;
        (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    };
    let nowhere = Proxy::Url { url: "http://127.0.0.1:9".into(), user: None, password: None, no_proxy: None };
    ways(&mut pair.settings, None, (&nowhere, None));
    let (ended_well, text) = start(&pair).await;
    assert!(ended_well && !text.contains("could not"), "{text}");
    let verdict = referee(&pair);
    assert!(verdict.is_green() && verdict.compared == 50, "{verdict:?}");
    let told = cloud.python(&venv(), RECEIVE_ALL, &["told"]).await.unwrap();
    assert!(told.contains("run_ended"), "{told}");
    let asked = format!("CONNECT {}", cloud.endpoint.trim_start_matches("https://"));
    assert!(proxy.log().contains(&asked), "{}", proxy.log());

    for (odd, place) in ["secret dth/from", "secret dth/to", "jobs"].into_iter().enumerate() {
        ways(&mut pair.settings, Some(odd), (&nowhere, cloud.ca_file.clone()));
        let (ended_well, text) = start(&pair).await;
        assert!(!ended_well && text.contains(place), "{place}, without a proxy: {text}");
        ways(&mut pair.settings, Some(odd), (&through, None));
        let (ended_well, text) = start(&pair).await;
        assert!(!ended_well && text.contains("certificate"), "{place}, with a certificate that nobody knows: {text}");
    }
    ways(&mut pair.settings, Some(3), (&nowhere, cloud.ca_file.clone()));
    let (_, text) = start(&pair).await;
    assert!(text.contains("a notice could not be sent"), "{text}");
}

/// A key that is replaced in the middle of a run: the store refuses the old one, the secret has the new one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn a_secret_is_read_again_when_its_key_is_refused() {
    const ROTATE: &str = r#"
iam = client("iam")
if len(sys.argv) > 1:
    iam.delete_access_key(UserName="dth", AccessKeyId=sys.argv[1])
else:
    key = iam.create_access_key(UserName="dth")["AccessKey"]
    print(json.dumps({"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}))
"#;
    let mut pair = ministacks().await;
    let cloud = Server::ministack(&venv()).await.unwrap();
    for n in 0..300 {
        put(&pair.source, &format!("k{n:03}"), vec![1; 100]).await;
    }
    let first = pair.sink_server().python(&venv(), ROTATE, &[]).await.unwrap();
    cloud.python(&venv(), PUT_SECRET, &["dth/to", first.trim()]).await.unwrap();
    cloud.python(&venv(), PUT_SECRET, &["dth/from", &key_secret(pair.source_server().keys())]).await.unwrap();
    pair.settings.source.credentials = in_secret(&cloud, "dth/from");
    pair.settings.destination.credentials = in_secret(&cloud, "dth/to");
    pair.settings.worker.transfer.requests_per_second = Some(15);
    let config = write_config(&pair);
    let replace = async {
        let begun = Instant::now();
        while crate::support::contents(&pair.sink, false).await.len() < 20 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing arrives");
            sleep(Duration::from_millis(200)).await;
        }
        let second = pair.sink_server().python(&venv(), ROTATE, &[]).await.unwrap();
        cloud.python(&venv(), PUT_SECRET, &["dth/to", second.trim()]).await.unwrap();
        let old: Value = serde_json::from_str(&first).unwrap();
        pair.sink_server().python(&venv(), ROTATE, &[old["access_key_id"].as_str().unwrap()]).await.unwrap();
        assert!(crate::support::contents(&pair.sink, false).await.len() < 300, "it was over before the key was replaced");
    };
    let (out, ()) = tokio::join!(run(env!("CARGO_BIN_EXE_transfer"), &config, &[]), replace);
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let verdict = referee(&pair);
    assert!(verdict.is_green() && verdict.compared == 300, "{verdict:?}");
}

/// Two accounts, two regions of two partitions: each side has a role of its own, assumed with keys of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn each_side_has_a_role_of_its_own() {
    const MAKE_BUCKET: &str = r#"
bucket, region = sys.argv[1:]
s3 = client("s3", region)
try:
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
except s3.exceptions.BucketAlreadyOwnedByYou:
    pass
"#;
    let pair = ministacks().await;
    let side = async |server: &Server, store: &S3Config, role: &str, region: &str| {
        let arn = server.python(&venv(), MAKE_ROLE, &[role]).await.unwrap();
        let bucket = format!("{}-{region}", store.bucket);
        server.python(&venv(), MAKE_BUCKET, &[&bucket, region]).await.unwrap();
        let root = CredentialsConfig::Static { access_key_id: "test".into(), secret_access_key: Secret::new("test"), session_token: None };
        let credentials = CredentialsConfig::AssumeRole {
            role: arn.trim().to_owned(),
            external_id: Some("given".into()),
            session_name: None,
            region: None,
            endpoint: Some(server.endpoint.clone()),
            base: Box::new(root),
        };
        S3Config { bucket, region: region.into(), credentials, ..store.clone() }
    };
    let mut settings = pair.settings.clone();
    settings.source = side(pair.source_server(), &settings.source, "reader", "cn-north-1").await;
    settings.destination = side(pair.sink_server(), &settings.destination, "writer", "eu-west-1").await;
    // Both sides by what stands in a file.
    let settings: dth_examples::Settings = {
        let mut text = toml::to_string(&settings).unwrap();
        // Secrets are written as stars.
        text = text.replace("***", "test");
        toml::from_str(&text).unwrap()
    };
    let (source, sink) = (settings.source_bucket().unwrap(), settings.destination_bucket().unwrap());
    for n in 0..20 {
        put(&source, &format!("k{n:02}"), vec![n; 1000]).await;
    }
    let report = settings.task().await.unwrap().run().await.unwrap();
    assert!(report.is_success() && report.run.outcomes_like("copied").objects == 20, "{report}");
    assert_eq!(crate::support::contents(&source, true).await, crate::support::contents(&sink, true).await);
    // Who may not assume it gets no further, and the error names the role.
    let mut wrong = settings.destination.clone();
    if let CredentialsConfig::AssumeRole { base, .. } = &mut wrong.credentials {
        **base = CredentialsConfig::Static { access_key_id: "AKIANOBODY".into(), secret_access_key: Secret::new("x"), session_token: None };
    }
    let error = S3Store::new(wrong).unwrap().head(&"k00".into(), None).await.unwrap_err();
    assert!(error.chain().contains("writer"), "{}", error.chain());
    for given in [None, Some("another".to_owned())] {
        let mut wrong = settings.destination.clone();
        if let CredentialsConfig::AssumeRole { external_id, .. } = &mut wrong.credentials {
            *external_id = given;
        }
        let error = S3Store::new(wrong).unwrap().head(&"k00".into(), None).await.unwrap_err();
        assert!(error.chain().contains("writer"), "{}", error.chain());
    }
}

/// People hear of dead letters, of the end of a run and of a finder that cannot go on, by SNS and by a webhook.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn people_are_told_by_topic_and_webhook() {
    let mut pair = ministacks().await;
    let cloud = Server::ministack(&venv()).await.unwrap();
    let topic = cloud.python(&venv(), MAKE_TOPIC, &["alarms"]).await.unwrap();
    let (url, _hook, posted) = hook().await;
    put(&pair.source, "good", vec![1; 10]).await;
    put(&pair.source, "other", vec![1; 10]).await;
    let alarms = &mut pair.settings.alarms;
    alarms.task = "photos".into();
    alarms.log = true;
    alarms.sns = Some(topic.trim().to_owned());
    alarms.endpoint = Some(cloud.endpoint.clone());
    let text = toml::to_string(&pair.settings).unwrap().replace("[alarms]\n", &format!("[alarms]\nwebhook = \"{url}\"\n"));
    let (key, secret) = (pair.source_server().keys().1.to_owned(), pair.sink_server().keys().1.to_owned());
    // Secrets are written as stars, in the order of the sides.
    let text = text.replacen("***", &key, 1).replacen("***", &secret, 1);
    let config = pair.folder.path().join("task.toml");
    std::fs::write(&config, &text).unwrap();
    // A poisonous message lies in the queue.
    let state = pair.settings.open_state().unwrap();
    let poison = [dth_core::queue::Message { body: "{not json".into(), delay: Duration::ZERO }];
    state.send(&poison).await.unwrap();
    drop(state);
    let out = run(env!("CARGO_BIN_EXE_transfer"), &config, &[]).await;
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stderr).contains("photos: 1 job was given up"), "{}", String::from_utf8_lossy(&out.stderr));
    let missing = text.replace("bucket = \"source\"", "bucket = \"no-such-bucket\"");
    std::fs::write(&config, missing).unwrap();
    let out = run(env!("CARGO_BIN_EXE_finder"), &config, &[]).await;
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("photos: the finder failed"), "{}", String::from_utf8_lossy(&out.stderr));

    let by_topic: Vec<String> = serde_json::from_str(&cloud.python(&venv(), RECEIVE_ALL, &["alarms"]).await.unwrap()).unwrap();
    let by_topic: Vec<Value> = by_topic
        .iter()
        .map(|body| {
            let envelope: Value = serde_json::from_str(body).unwrap();
            assert!(envelope["Subject"].as_str().unwrap().starts_with("photos: "), "{envelope}");
            serde_json::from_str(envelope["Message"].as_str().unwrap()).unwrap()
        })
        .collect();
    let by_hook: Vec<Value> = posted.lock().unwrap().iter().map(|body| serde_json::from_slice(body).unwrap()).collect();
    for told in [by_topic, by_hook] {
        let mut kinds: Vec<&str> = told.iter().map(|notice| notice["kind"].as_str().unwrap()).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, ["dead_letters", "finder_failed", "run_ended"], "{told:?}");
        let of = |kind: &str| told.iter().find(|n| n["kind"] == kind).unwrap();
        assert_eq!(of("dead_letters")["count"], 1);
        assert_eq!(of("run_ended")["report"]["run"]["totals"]["listed"]["objects"], 2);
        assert!(of("finder_failed")["cause"].as_str().unwrap().contains("no-such-bucket"), "{told:?}");
    }
}

type Posted = Arc<std::sync::Mutex<Vec<bytes::Bytes>>>;

/// A web server that keeps what is posted.
async fn hook() -> (String, dth_core::scope::TaskScope, Posted) {
    use http_body_util::{BodyExt, Empty};
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (posted, mut scope) = (Posted::default(), dth_core::scope::TaskScope::new());
    let kept = posted.clone();
    scope.spawn(async move {
        let mut connections = dth_core::scope::TaskScope::new();
        while let Ok((socket, _)) = listener.accept().await {
            let kept = kept.clone();
            let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let kept = kept.clone();
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    kept.lock().unwrap().push(body);
                    Ok::<_, hyper::Error>(hyper::Response::new(Empty::<bytes::Bytes>::new()))
                }
            });
            connections.spawn(async move {
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(hyper_util::rt::TokioIo::new(socket), service).await;
            });
        }
    });
    (url, scope, posted)
}

/// A bucket tells a queue of its changes, and a worker takes them from there: no finder runs.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn notifications_of_a_bucket_reach_the_destination() {
    const NOTIFY: &str = r#"
sqs, s3 = client("sqs"), client("s3")
url = sqs.get_queue_url(QueueName="jobs")["QueueUrl"]
arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
allow = {"Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"}, "Action": "sqs:SendMessage", "Resource": arn}
sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps({"Version": "2012-10-17", "Statement": [allow]})})
events = {"QueueArn": arn, "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}
s3.put_bucket_versioning(Bucket="source", VersioningConfiguration={"Status": "Enabled"})
s3.put_bucket_notification_configuration(Bucket="source", NotificationConfiguration={"QueueConfigurations": [events]})
"#;
    const CHANGE: &str = r#"
import random
s3, r = client("s3"), random.Random(7)
for n in range(400):
    key = "a b+c %2F é/{}".format(r.randrange(60))
    if r.random() < 0.3:
        s3.delete_object(Bucket="source", Key=key)
    else:
        s3.put_object(Bucket="source", Key=key, Body=str(n).encode())
# An older version is removed for good: what is current stays.
for key in ["versions/kept", "versions/deleted"]:
    older = s3.put_object(Bucket="source", Key=key, Body=b"older")["VersionId"]
    s3.put_object(Bucket="source", Key=key, Body=b"current")
    s3.delete_object(Bucket="source", Key=key, VersionId=older)
s3.delete_object(Bucket="source", Key="versions/deleted")
print(len(s3.list_objects_v2(Bucket="source").get("Contents", [])))
"#;
    let mut pair = ministacks().await;
    let cloud = pair.source_server();
    let config = cloud.aws(None).await;
    let queue = SqsQueue::create(&config, "jobs").await.unwrap();
    let state = DynamoStore::create(&config, "state", "events").await.unwrap();
    cloud.python(&venv(), NOTIFY, &[]).await.unwrap();
    let left = cloud.python(&venv(), CHANGE, &[]).await.unwrap();
    pair.settings.state = None;
    pair.settings.worker.events.deletes = true;
    pair.settings.worker.events.bucket = Some("source".into());
    let stores = Stores { queue: Arc::new(queue), state: Arc::new(state) };
    let worker = pair.settings.task_on(&stores).await.unwrap().worker().unwrap();
    let mut scope = dth_core::scope::TaskScope::new();
    scope.spawn(async move { worker.run(tokio_util::sync::CancellationToken::new()).await });
    let begun = Instant::now();
    while stores.queue.depth().await.unwrap().pending() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", stores.queue.depth().await);
        sleep(Duration::from_millis(300)).await;
    }
    let verdict = referee(&pair);
    println!("{} objects are left after 400 changes, told of by the bucket: {verdict:?}", left.trim());
    assert!(verdict.is_green() && verdict.compared.to_string() == left.trim(), "{verdict:?}");
    assert_eq!(read(&pair.sink, "versions/kept", ReadOptions::default()).await, b"current");
    assert_eq!(stores.queue.depth().await.unwrap().dead, 0);
}

/// What the original system knew becomes records, and its table is kept up to date by ours.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn the_job_table_of_the_original_is_taken_over() {
    const MAKE_TABLE: &str = r#"
db = client("dynamodb")
try:
    db.create_table(TableName="old", BillingMode="PAY_PER_REQUEST", KeySchema=[{"AttributeName": "ObjectKey", "KeyType": "HASH"}],
                    AttributeDefinitions=[{"AttributeName": "ObjectKey", "AttributeType": "S"}])
except db.exceptions.ResourceInUseException:
    pass
for row in sys.argv[1:]:
    db.put_item(TableName="old", Item=json.loads(row))
for n in range(300):
    db.put_item(TableName="old", Item={"ObjectKey": {"S": "many/%03d" % n}, "JobStatus": {"S": "DONE"}, "Size": {"N": "1"}})
"#;
    const READ_TABLE: &str = r#"
db = client("dynamodb")
print(json.dumps({row["ObjectKey"]["S"]: row for row in db.scan(TableName="old")["Items"]}))
"#;
    let mut pair = ministacks().await;
    let cloud = Server::ministack(&venv()).await.unwrap();
    let rows = ["done", "started", "error", "cancel", "split-done", "part-done", "part-error"].map(|name| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dth-state/fixtures/job-table");
        std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap()
    });
    let odd = r#"{"ObjectKey":{"S":"odd"},"JobStatus":{"S":"WHATEVER"}}"#;
    let arguments: Vec<&str> = rows.iter().map(String::as_str).chain([odd]).collect();
    cloud.python(&venv(), MAKE_TABLE, &arguments).await.unwrap();

    // A task on the names of the original system in the environment, as its users have them.
    pair.settings.state = None;
    let mut environment = own_rights();
    environment.extend(crate::chaos::keys_by_environment(&mut pair));
    for (name, value) in [("JOB_QUEUE_NAME", "jobs"), ("JOB_TABLE_NAME", "old"), ("AWS_ENDPOINT_URL", cloud.endpoint.as_str())] {
        environment.push((name.to_owned(), value.to_owned()));
    }
    let config_file = write_config(&pair);
    let start = async |binary: &str, arguments: &[&str]| run_as(binary, &config_file, arguments, environment.clone()).await;
    let shown = async || -> Value { serde_json::from_str(&cloud.python(&venv(), READ_TABLE, &[]).await.unwrap()).unwrap() };
    let before = shown().await;
    let out = start(env!("CARGO_BIN_EXE_runs"), &["list"]).await;
    assert!(!out.status.success(), "who only looks makes nothing: {out:?}");
    for told in ["307 rows imported, 0 objects were known already", "0 rows imported, 307 objects were known already"] {
        let out = start(env!("CARGO_BIN_EXE_runs"), &["import"]).await;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.starts_with(told) && text.contains("WHATEVER"), "{out:?}");
    }
    assert_eq!(shown().await, before, "what was imported is left as it was");
    let config = cloud.aws(None).await;
    let table = JobTable::open(&config, "old").await.unwrap();
    let state = DynamoStore::open(&config, "old-dth", "default").await.unwrap();
    let failed = state.query(&RecordQuery { status: Some(Status::Failed), ..RecordQuery::default() }, 10).await.unwrap();
    assert_eq!(failed.len(), 1);
    // It works for any store.
    assert_eq!(table.import(&MemoryState::new(), &SystemEnv).await.unwrap().imported, 307);
    // Ours is none of theirs.
    assert!(JobTable::open(&config, "old-dth").await.unwrap_err().chain().contains("ObjectKey"));

    // What our task does shows in the old table.
    put(&pair.source, "photos/2022/b.jpg", vec![7; 500]).await;
    put(&pair.source, "new/é", vec![8; 9]).await;
    let out = start(env!("CARGO_BIN_EXE_transfer"), &[]).await;
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let shown = shown().await;
    for (key, size) in [("photos/2022/b.jpg", "500"), ("new/é", "9")] {
        let row = &shown[key];
        assert_eq!((row["JobStatus"]["S"].as_str(), row["Size"]["N"].as_str()), (Some("DONE"), Some(size)), "{row}");
        for attribute in ["Etag", "StartTimestamp", "StartTime", "EndTimestamp", "EndTime", "SpentTime"] {
            assert!(row.get(attribute).is_some(), "{attribute} in {row}");
        }
    }
    let read = table.rows(&[ObjectKey::from("new/é"), ObjectKey::from("nothing")]).await.unwrap();
    assert_eq!((read.len(), read[0].status), (1, JobStatus::Done));
}
