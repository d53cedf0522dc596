//! The rights that `docs/cluster.md` names are enough, and `doctor` names those that are missing.

use super::cloud::{MAKE_TOPIC, RECEIVE_ALL, run_as, write_config};
use crate::{
    chaos::{keys_by_environment, referee},
    support::{ministacks, put, venv},
};
use dth_core::{
    queue::{Delivery, Message, Queue},
    state::{RecordQuery, StateStore, Status},
};
use dth_examples::{servers::Server, settings::Cluster};
use dth_state::{DynamoStore, SqsQueue};
use std::{process::Stdio, time::Duration};
use tokio::time::{Instant, sleep};

/// Makes a user with these rights, and prints its key pair.
const MAKE_USER: &str = r#"
iam = client("iam")
name, statements = sys.argv[1], json.loads(sys.argv[2])
try:
    iam.create_user(UserName=name)
except iam.exceptions.EntityAlreadyExistsException:
    pass
iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": statements}))
key = iam.create_access_key(UserName=name)["AccessKey"]
print(json.dumps([key["AccessKeyId"], key["SecretAccessKey"]]))
"#;

/// What a row of the page grants, by column.
fn granted(row: &str) -> [Vec<String>; 3] {
    let page = include_str!("../../../../docs/cluster.md");
    let rights = page.split("## Rights").nth(1).expect("the page has the chapter");
    let line = rights.lines().find(|line| line.starts_with(&format!("| {row} |"))).unwrap_or_else(|| panic!("no row `{row}`"));
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    [2, 3, 4].map(|column| {
        let quoted = cells[column].split('`').skip(1).step_by(2);
        quoted.filter(|text| text.contains(':')).map(str::to_owned).collect()
    })
}

/// Statements of a policy for these rights on a queue, its dead-letter queue and a table.
fn statements(rights: &[Vec<String>; 3]) -> String {
    let account = "us-east-1:000000000000";
    let table = format!("arn:aws:dynamodb:{account}:table/state");
    let resources = [
        vec![format!("arn:aws:sqs:{account}:jobs")],
        vec![format!("arn:aws:sqs:{account}:jobs-dead-letters")],
        vec![format!("{table}/index/status"), table],
    ];
    // AWS asks for the right of the single call, and of each item of a transaction; the emulator for one of the batch.
    // <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html>
    let batches = |actions: &Vec<String>| -> Vec<String> {
        let batch = |action: &String| match action.as_str() {
            "sqs:SendMessage" | "sqs:DeleteMessage" | "sqs:ChangeMessageVisibility" => Some(format!("{action}Batch")),
            "dynamodb:ConditionCheckItem" => Some("dynamodb:TransactWriteItems".to_owned()),
            _ => None,
        };
        actions.iter().cloned().chain(actions.iter().filter_map(batch)).collect()
    };
    let statement = |(actions, resources)| serde_json::json!({"Effect": "Allow", "Action": batches(actions), "Resource": resources});
    serde_json::Value::from(rights.iter().filter(|a| !a.is_empty()).zip(resources).map(statement).collect::<Vec<_>>()).to_string()
}

async fn user(cloud: &Server, name: &str, rights: &[Vec<String>; 3]) -> Vec<(String, String)> {
    let made = cloud.python(&venv(), MAKE_USER, &[name, &statements(rights)]).await.unwrap();
    let [key, secret]: [String; 2] = serde_json::from_str(&made).unwrap();
    let region = ("AWS_REGION".to_owned(), "us-east-1".to_owned());
    vec![("AWS_ACCESS_KEY_ID".into(), key), ("AWS_SECRET_ACCESS_KEY".into(), secret), region]
}

/// The message that lies in the queue. The long poll that a worker left behind may have got it, and nobody else for a lease.
async fn the_message(queue: &SqsQueue) -> Delivery {
    let begun = Instant::now();
    loop {
        if let Some(delivery) = queue.receive(1, Duration::from_secs(30), Duration::from_secs(5)).await.unwrap().pop() {
            return delivery;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "no message: {:?}", queue.depth().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack: run `cargo xtask test`"]
async fn the_rights_that_are_named_are_enough() {
    let mut pair = ministacks().await;
    let cloud = Server::ministack(&venv()).await.unwrap();
    for n in 0..300 {
        put(&pair.source, &format!("k{n:03}"), vec![1; 100]).await;
    }
    let config = cloud.aws(None).await;
    let queue = SqsQueue::create(&config, "jobs").await.unwrap();
    let state = DynamoStore::create(&config, "state", "rights").await.unwrap();
    pair.settings.state = None;
    let cluster = Cluster { queue: "jobs".into(), table: "state".into(), task: "rights".into(), ..Cluster::default() };
    pair.settings.cluster = Some(Cluster { endpoint: Some(cloud.endpoint.clone()), ..cluster });
    // Parts as jobs, too.
    pair.settings.worker.giant_threshold = 6 << 20;
    pair.settings.worker.transfer.hold_max = 1 << 20;
    pair.settings.worker.transfer.single_max = 1 << 20;
    pair.settings.worker.transfer.part_size = 5 << 20;
    put(&pair.source, "giant", crate::support::bytes(21 << 20, 3)).await;
    let keys = keys_by_environment(&mut pair);
    let with_keys = |mut user: Vec<(String, String)>| {
        user.extend(keys.iter().cloned());
        user
    };
    let file = write_config(&pair);
    let [worker, finder] = [user(&cloud, "worker", &granted("`worker`")).await, user(&cloud, "finder", &granted("`finder`")).await];
    let poison = [Message { body: "{not json".into(), delay: Duration::ZERO }];
    queue.send(&poison).await.unwrap().remove(0).unwrap();

    let mut working = tokio::process::Command::new(env!("CARGO_BIN_EXE_worker"));
    working.arg("--config").arg(&file).envs(with_keys(worker.clone())).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let working = working.spawn().unwrap();
    let found = run_as(env!("CARGO_BIN_EXE_finder"), &file, &["--wait"], with_keys(finder));
    let found = tokio::time::timeout(Duration::from_secs(180), found).await.expect("a right is missing: it waits for ever");
    let text = format!("{}{}", String::from_utf8_lossy(&found.stdout), String::from_utf8_lossy(&found.stderr));
    let begun = Instant::now();
    while found.status.success() && queue.depth().await.unwrap().dead == 0 && begun.elapsed() < Duration::from_secs(30) {
        sleep(Duration::from_millis(300)).await;
    }
    // It drains, and tells what it could not do.
    std::process::Command::new("kill").arg(working.id().unwrap().to_string()).status().unwrap();
    let log = working.wait_with_output().await.unwrap();
    let log = String::from_utf8_lossy(&log.stderr).into_owned();
    assert!(found.status.success() && text.contains("the ledger closes"), "{text}{log}");
    assert!(!log.contains("access denied"), "{log}");
    assert_eq!(queue.depth().await.unwrap().dead, 1);
    let verdict = referee(&pair);
    assert!(verdict.is_green() && verdict.compared == 301, "{verdict:?}");
    let done = RecordQuery { status: Some(Status::Done), ..RecordQuery::default() };
    assert_eq!(state.query(&done, 1000).await.unwrap().len(), 301);

    // Something to be sent again.
    let again = [Message { body: r#"{"key":"k001","size":100}"#.into(), delay: Duration::ZERO }];
    queue.send(&again).await.unwrap().remove(0).unwrap();
    let delivery = the_message(&queue).await;
    queue.dead_letter(&delivery, "why not").await.unwrap();
    let looker = with_keys(user(&cloud, "looker", &granted("`runs`, `verify`, `explain`")).await);
    for (binary, arguments, told) in [
        (env!("CARGO_BIN_EXE_runs"), vec!["list"], "finished"),
        (env!("CARGO_BIN_EXE_runs"), vec!["failed"], "dead letter"),
        (env!("CARGO_BIN_EXE_runs"), vec!["redrive", "--only", "why not"], "1 jobs are queued again"),
        (env!("CARGO_BIN_EXE_runs"), vec!["retry"], "nothing failed"),
        (env!("CARGO_BIN_EXE_runs"), vec!["forget", "--days", "0"], "1 runs forgotten"),
        (env!("CARGO_BIN_EXE_runs"), vec!["cancel", "RUN"], ""),
        (env!("CARGO_BIN_EXE_runs"), vec!["show", "RUN"], "cancelled"),
        (env!("CARGO_BIN_EXE_verify"), vec![], "301 as recorded on both sides"),
        (env!("CARGO_BIN_EXE_explain"), vec!["k007"], "\"done\""),
    ] {
        let run = state.runs(1).await.unwrap().first().map_or(String::new(), |run| run.id.to_string());
        let arguments: Vec<&str> = arguments.into_iter().map(|a| if a == "RUN" { run.as_str() } else { a }).collect();
        let out = run_as(binary, &file, &arguments, looker.clone()).await;
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && text.contains(told), "{arguments:?}: {text}");
    }

    // The message of the run that was called off.
    let left = the_message(&queue).await;
    queue.ack(&left.receipt).await.unwrap();

    // The doctor finds nothing missing, and names what is.
    let topic = cloud.python(&venv(), MAKE_TOPIC, &["alarms"]).await.unwrap();
    pair.settings.alarms.sns = Some(topic.trim().to_owned());
    pair.settings.alarms.endpoint = Some(cloud.endpoint.clone());
    let file = write_config(&pair);
    let doctor = async |as_whom: Vec<(String, String)>, arguments: &[&str]| {
        let out = run_as(env!("CARGO_BIN_EXE_doctor"), &file, arguments, with_keys(as_whom)).await;
        (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    };
    let root = super::cloud::own_rights();
    let (well, text) = doctor(root.clone(), &["--write"]).await;
    assert!(well && !text.contains("FAIL"), "{text}");
    for told in [
        "queue: extend",
        "queue: delete",
        "table: write a record",
        "table: forget parts",
        "alarms: a test notice by SnsNotifier",
        "conditional writes are honoured",
    ] {
        assert!(text.lines().any(|line| line.starts_with("ok ") && line.contains(told)), "{told} in {text}");
    }
    assert_eq!(queue.depth().await.unwrap().pending(), 0, "its test message is gone");
    assert!(state.records(&[".dth-doctor".into()]).await.unwrap()[0].is_none(), "and it wrote no record");
    let told = cloud.python(&venv(), RECEIVE_ALL, &["alarms"]).await.unwrap();
    assert!(told.contains("this is a test"), "{told}");
    let (well, text) = doctor(worker, &["--write"]).await;
    assert!(!well && text.contains("needs sns:Publish"), "{text}");
    for missing in ["sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "dynamodb:PutItem", "dynamodb:BatchWriteItem"] {
        let rights = granted("`worker`").map(|actions| actions.into_iter().filter(|a| a != missing).collect());
        let (well, text) = doctor(user(&cloud, "less", &rights).await, &["--write"]).await;
        assert!(!well && text.lines().any(|line| line.starts_with("FAIL") && line.contains(missing)), "{missing}: {text}");
    }
    pair.settings.cluster = Some(Cluster { queue: "new".into(), create: true, ..pair.settings.cluster.clone().unwrap() });
    let file = write_config(&pair);
    let out = run_as(env!("CARGO_BIN_EXE_doctor"), &file, &[], with_keys(root)).await;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("FAIL  queue and table") && text.contains("`create = true` makes them"), "{text}");
    assert!(SqsQueue::open(&config, "new").await.is_err(), "without --write it makes nothing");
}
