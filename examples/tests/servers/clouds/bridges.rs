//! The functions of `docs/bridges`, from the vendors' samples to the destination.

use super::Cloud;
use crate::support::{bytes, contents, put, venv};
use dth_core::{memory::MemoryState, queue::Queue, scope::TaskScope, sync::Sync};
use dth_examples::servers::Server;
use dth_s3::{Profile, S3Store};
use dth_state::SqsQueue;
use std::{path::Path, process::Command, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Calls a function as its cloud does, with the sample of the cloud's documents.
const CALL: &str = r#"
import io, json, sys
sys.path.insert(0, sys.argv[2])
if sys.argv[1] == "oss":
    import oss
    event = {"events": [{"eventName": "ObjectCreated:PutObject", "eventSource": "acs:oss", "eventVersion": "1.0",
        "oss": {"bucket": {"name": "fc-with-oss-trigger"}, "ossSchemaVersion": "1.0",
            "object": {"deltaSize": 122539, "eTag": "688A7BF4F233DC9C88A80BF985AB7329", "key": "source/serverless.png", "size": 122539}}}]}
    oss.handler(json.dumps(event).encode(), None)
elif sys.argv[1] == "cos":
    import cos
    event = {"Records": [{"cos": {"cosSchemaVersion": "1.0", "cosBucket": {"region": "cd", "name": "testpic", "appid": "1253970026"},
        "cosObject": {"meta": {}, "vid": "", "key": "/1253970026/testpic/testfile", "size": 1029}},
        "event": {"eventName": "cos:ObjectCreated:*", "eventVersion": "1.0", "eventTime": 1545205770, "eventSource": "qcs::cos"}}]}
    cos.main_handler(event, None)
else:
    import kodo
    message = {"event": "put", "time": 1547551207786351434, "bucket": "bucket_name", "key": "event1_tets.txt", "fsize": 6}
    body = json.dumps({"Message": json.dumps(message), "Subject": "Qiniu KODO Notification"}).encode()
    status = []
    kodo.application({"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}, lambda s, h: status.append(s))
    assert status == ["200 OK"], status
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ministack and the vendor's SDK: run `cargo xtask test`"]
async fn bridges_bring_events_of_other_clouds() {
    let aws = Server::ministack(&venv()).await.unwrap();
    let config = aws.aws(None).await;
    let bridges = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bridges");
    for (profile, key) in [(Profile::Oss, "source/serverless.png"), (Profile::Cos, "testfile"), (Profile::Kodo, "event1_tets.txt")] {
        let name = profile.as_str();
        let (cloud, queue) = tokio::join!(Cloud::start(profile), SqsQueue::create(&config, name));
        let queue = Arc::new(queue.unwrap());
        let source = cloud.bucket("source-1250000000").await;
        let sink = S3Store::new(aws.bucket(name)).unwrap();
        sink.create_bucket().await.unwrap();
        put(&source, key, bytes(5000, 1)).await;
        put(&source, "not told of", bytes(10, 2)).await;
        let mut call = Command::new(venv().join("bin/python"));
        call.args(["-c", CALL, name]).arg(&bridges).env("PYTHONDONTWRITEBYTECODE", "1");
        call.env("DTH_QUEUE_URL", queue.url()).env("DTH_QUEUE_ENDPOINT", &aws.endpoint).env("AWS_REGION", "us-east-1");
        call.env("AWS_DEFAULT_REGION", "us-east-1").env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        let out = call.output().unwrap();
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        let task = Sync::new(Arc::new(source), Arc::new(sink.clone())).with_state(queue.clone(), Arc::new(MemoryState::new()));
        let worker = task.worker().unwrap();
        let mut scope = TaskScope::new();
        scope.spawn(async move { worker.run(CancellationToken::new()).await });
        let begun = tokio::time::Instant::now();
        while contents(&sink, false).await.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{name}: {:?}", queue.depth().await);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(contents(&sink, false).await.keys().map(|k| k.as_str().to_owned()).collect::<Vec<_>>(), [key], "{name}");
    }
}
