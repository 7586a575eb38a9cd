//! The binary against a pretended cluster: exit codes, and byte by byte what it writes where.

#![allow(clippy::unwrap_used)] // all of it is test

mod fake;

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use fake::{Cluster, Fault};
use serde_json::{Value, json};
use tonic::Code;

/// The binary, with no variables of Larder's own around it.
fn larder(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

/// A cluster and how to run commands on it.
struct Bed {
    cluster: Cluster,
    endpoints: String,
}

impl Bed {
    async fn new(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes, 0).await;
        let endpoints = cluster.endpoints();
        Self { cluster, endpoints }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = larder(arguments);
        command.env("LARDER_ENDPOINTS", &self.endpoints);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs with standard input.
    fn feed(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs what must succeed, and gives its standard output.
    fn ok(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        assert_eq!(exit(&output), 0, "{arguments:?}: {}", stderr(&output));
        output.stdout
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ok(&[arguments, &["--output", "json"]].concat());
        serde_json::from_slice(&output).unwrap()
    }
}

fn exit(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn error_json(output: &Output) -> Value {
    let value: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    value["error"].clone()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_writes_the_value_and_one_newline_and_nothing_else() {
    let bed = Bed::new(1).await;
    let set = bed.run(&["set", "greeting", "hello"]);
    assert_eq!((exit(&set), set.stdout.as_slice()), (0, &b""[..]));
    assert_eq!(stderr(&set), "set greeting at version 1\n");
    let got = bed.run(&["get", "greeting"]);
    assert_eq!((exit(&got), got.stdout.as_slice(), got.stderr.as_slice()), (0, &b"hello\n"[..], &b""[..]));
    assert_eq!(
        bed.json(&["get", "greeting"]),
        json!({"key": "greeting", "value": "hello", "version": 1, "revision": 1})
    );
    assert_eq!(bed.ok(&["get", "greeting", "--local"]), b"hello\n");
    // Bytes, not text, in and out.
    let bytes = [&b"\xff\x00\n"[..], &[7; 70_000]].concat();
    assert_eq!(exit(&bed.feed(&["set", "bytes", "-"], &bytes)), 0);
    assert_eq!(bed.ok(&["get", "bytes"]), [&bytes[..], b"\n"].concat());
    assert_eq!(exit(&bed.feed(&["set", "small", "-"], b"\xff")), 0);
    assert_eq!(bed.json(&["get", "small"])["value_base64"], "/w==");
    assert_eq!(exit(&bed.feed(&["set", "big", "-"], &vec![0; (1 << 20) + 1])), 1);
    // What begins with a dash.
    assert_eq!(exit(&bed.run(&["set", "--", "-k", "-v"])), 0);
    assert_eq!(bed.ok(&["get", "--", "-k"]), b"-v\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_or_does_not_hold_is_exit_code_3() {
    let bed = Bed::new(1).await;
    let missing = bed.run(&["get", "nothing"]);
    assert_eq!((exit(&missing), missing.stdout.as_slice()), (3, &b""[..]));
    assert_eq!(stderr(&missing), "larder: there is no key nothing\n");
    let missing = bed.run(&["get", "nothing", "--output", "json"]);
    assert_eq!(exit(&missing), 3);
    assert_eq!(
        error_json(&missing),
        json!({"code": "NOT_FOUND", "reason": "NOT_FOUND", "message": "there is no key nothing", "applied": "NO"})
    );
    assert_eq!(exit(&bed.run(&["del", "nothing"])), 3);
    assert_eq!(exit(&bed.run(&["set", "a", "1", "--if-present"])), 3);
    bed.ok(&["set", "a", "1", "--if-absent"]);
    let failed = bed.run(&["set", "a", "2", "--if-absent", "--output", "json"]);
    assert_eq!(exit(&failed), 3);
    assert_eq!(error_json(&failed)["reason"], "CONDITION_FAILED");
    assert_eq!(exit(&bed.run(&["set", "a", "2", "--if-version", "9"])), 3);
    assert_eq!(bed.ok(&["set", "a", "2", "--if-version", "1", "--return-previous"]), b"1\n");
    let set = bed.json(&["set", "a", "3", "--return-previous"]);
    assert_eq!(
        set,
        json!({"key": "a", "version": 3, "revision": 3, "previous": {"value": "2", "version": 2}})
    );
    assert_eq!(bed.json(&["set", "b", "3", "--return-previous"])["previous"], Value::Null);
    assert_eq!(exit(&bed.run(&["del", "a", "--if-version", "1"])), 3);
    assert_eq!(bed.json(&["del", "a", "--if-version", "3"])["deleted"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incr_writes_the_sum() {
    let bed = Bed::new(1).await;
    assert_eq!(bed.ok(&["incr", "n"]), b"1\n");
    assert_eq!(bed.ok(&["incr", "n", "-5"]), b"-4\n");
    assert_eq!(bed.ok(&["incr", "m", "2", "--initial", "-10"]), b"-8\n");
    assert_eq!(bed.json(&["incr", "n", "10"]), json!({"key": "n", "value": 6, "version": 4, "revision": 4}));
    bed.ok(&["set", "text", "x"]);
    let failed = bed.run(&["incr", "text", "--output", "json"]);
    assert_eq!((exit(&failed), error_json(&failed)["reason"].as_str()), (1, Some("NOT_A_NUMBER")));
    assert_eq!(exit(&bed.run(&["incr", "n", "much"])), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_say_whether_the_write_was_applied() {
    let bed = Bed::new(1).await;
    bed.cluster.nodes[0].fail([Fault::ApplyThenCut]);
    let unknown = bed.run(&["incr", "n", "--output", "json"]);
    assert_eq!(exit(&unknown), 1);
    let error = error_json(&unknown);
    assert_eq!((&error["code"], &error["applied"]), (&json!("UNKNOWN"), &json!("UNKNOWN")));
    assert_eq!(bed.ok(&["get", "n"]), b"1\n");
    bed.cluster.nodes[0].fail([Fault::Refuse(Code::InvalidArgument, "INVALID", "NO")]);
    let invalid = bed.run(&["set", "k", "v", "--output", "json"]);
    assert_eq!((exit(&invalid), error_json(&invalid)["applied"].as_str()), (1, Some("NO")));
}

#[test]
fn usage_and_help() {
    for arguments in [
        &["get"][..],
        &["set", "a", "b", "--if-absent", "--if-present"],
        &["set", "a", "b", "--if-version", "0"],
        &["get", "a", "--endpoints", "nowhere"],
        &["get", "a", "--timeout", "0s"],
        &["dev", "--nodes", "2"],
        &["member"],
        &["member", "retire"],
        &["prestop", "--statefulset", "larder"],
        &["prestop", "--client-addr", "7400"],
        &["healthcheck", "--ready", "--live"],
        &["healthcheck", "--http-addr", "nowhere"],
        &["init-dir", "/tmp"],
        &["init-dir", "/tmp", "--owner", "larder"],
        &["check", "--expect-voters", "0"],
        &["dev", "--base-port", "65530"],
        &["serve", "--heartbeat-ms", "fast"],
        &["frobnicate"],
        &[],
    ] {
        let output = larder(arguments).output().unwrap();
        assert_eq!(exit(&output), 2, "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    let wrong = larder(&["get", "a", "--endpoints", "nowhere", "--output", "json"]).output().unwrap();
    let error = error_json(&wrong);
    assert_eq!((exit(&wrong), error["reason"].as_str()), (2, Some("USAGE")));
    assert!(error["message"].as_str().unwrap().contains("host:port"), "{error}");
    let wrong = larder(&["get", "a"]).env("LARDER_TIMEOUT", "soon").output().unwrap();
    assert_eq!(exit(&wrong), 2);
    for arguments in [&["--help"][..], &["load", "--help"], &["--version"]] {
        let output = larder(arguments).output().unwrap();
        assert_eq!(exit(&output), 0);
        assert!(!output.stdout.is_empty());
    }
    let help = String::from_utf8(larder(&["--help"]).output().unwrap().stdout).unwrap();
    assert!(help.contains("Exit codes: 0 done, 1 error, 2 wrong usage, 3 not found"), "{help}");
}

#[test]
fn nobody_there_is_exit_code_1_at_once_and_names_the_endpoint() {
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = held.local_addr().unwrap().to_string();
    for arguments in [&["get", "a"][..], &["set", "a", "1"], &["status"], &["member", "list"]] {
        let output = larder(arguments).env("LARDER_ENDPOINTS", &endpoint).output().unwrap();
        assert_eq!(exit(&output), 1, "{arguments:?}");
        assert!(stderr(&output).contains(&endpoint), "{arguments:?}: {}", stderr(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_are_read_and_unknown_ones_are_a_warning_at_most() {
    let bed = Bed::new(1).await;
    bed.ok(&["set", "a", "1"]);
    let output = bed.command(&["get", "a"]).env("LARDER_OUTPUT", "json").output().unwrap();
    assert!(output.stdout.starts_with(b"{"));
    let output = bed
        .command(&["get", "a"])
        .env("LARDER_TIMEOT", "5s")
        .env("LARDER_PORT", "tcp://10.0.0.1:7400")
        .env("LARDER_SERVICE_HOST", "10.0.0.1")
        .env("LARDER_0_PORT_7400_TCP", "tcp://10.0.0.2:7400")
        .output()
        .unwrap();
    assert_eq!((exit(&output), output.stdout.as_slice()), (0, &b"1\n"[..]));
    let warnings = stderr(&output);
    assert_eq!(warnings.lines().count(), 1, "{warnings}");
    assert!(warnings.contains("LARDER_TIMEOT"), "{warnings}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_every_node_also_one_that_is_gone() {
    let mut bed = Bed::new(3).await;
    bed.endpoints = bed.cluster.nodes[1].address.to_string();
    bed.cluster.nodes[2].kill().await;
    let output = bed.run(&["status"]);
    assert_eq!(exit(&output), 0);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let rows: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        ["SLOT", "ID", "ROLE", "TERM", "APPLIED", "LAG", "KEYS", "BYTES", "READY", "ENDPOINT"],
        "{text}"
    );
    let address = |node: usize| bed.cluster.nodes[node].address.to_string();
    assert_eq!(rows[1], ["0", "1", "leader", "7", "0", "1", "0", "0", "yes", &address(0)]);
    assert_eq!(rows[2], ["1", "2", "follower", "7", "0", "1", "0", "0", "yes", &address(1)]);
    assert_eq!(rows[3], ["2", "3", "unreachable", "-", "-", "-", "-", "-", "no", &address(2)]);
    assert!(stderr(&output).contains("2 does not answer"), "{}", stderr(&output));
    let value = bed.json(&["status"]);
    assert_eq!(value["cluster_id"], bed.cluster.id.as_str());
    let reachable: Vec<_> =
        value["nodes"].as_array().unwrap().iter().map(|node| &node["reachable"]).collect();
    assert_eq!(reachable, [true, true, false]);

    let members = String::from_utf8(bed.ok(&["member", "list"])).unwrap();
    assert_eq!(members.lines().count(), 4, "{members}");
    assert!(members.contains("peer-2:7401"), "{members}");
    assert_eq!(bed.json(&["member", "list"])["members"][0]["leader"], true);
    let moved = bed.run(&["transfer-leader", "1"]);
    assert_eq!((exit(&moved), stderr(&moved).as_str()), (0, "slot 1 (id 2) leads now\n"));
    assert_eq!(bed.json(&["transfer-leader", "0"]), json!({"leader": {"slot": "0", "id": 1}}));
    assert_eq!(exit(&bed.run(&["transfer-leader", "9"])), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_retired_and_promoted_by_slot() {
    let bed = Bed::new(3).await;
    bed.cluster.members.lock().unwrap().insert(2, false);
    let promoted = bed.run(&["member", "promote", "1"]);
    assert_eq!((exit(&promoted), stderr(&promoted).as_str()), (0, "slot 1 votes now\n"));
    assert_eq!(bed.json(&["member", "retire", "2"]), json!({"retired": "2"}));
    assert_eq!(bed.cluster.slots(), ["0", "1"]);
    let unknown = bed.run(&["member", "retire", "2", "--output", "json"]);
    assert_eq!((exit(&unknown), error_json(&unknown)["code"].as_str()), (1, Some("INVALID_ARGUMENT")));
    // What a key would tell of a write, the list tells of a member.
    bed.cluster.nodes[0].fail([Fault::ApplyThenCut]);
    let cut = bed.run(&["member", "retire", "1"]);
    assert_eq!(exit(&cut), 1);
    let said = stderr(&cut);
    assert!(said.contains("larder member list") && !said.contains("read the key"), "{said}");
    assert_eq!(bed.cluster.slots(), ["0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_looks_at_every_node_and_leaves_nothing_behind() {
    let bed = Bed::new(3).await;
    let text = String::from_utf8(bed.ok(&["check", "--expect-voters", "3"])).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("[+]")).count(), 5, "{text}");
    assert!(text.contains("read from 3 members"), "{text}");
    assert!(bed.cluster.store.lock().unwrap().entries.is_empty());
    assert!(bed.cluster.revision() >= 2, "a key was written and deleted");
    // Each member is asked, not only the leader: one that lacks the key is named.
    bed.cluster.nodes[2].fail([Fault::Lose]);
    let lost = bed.run(&["check", "--timeout", "100ms"]);
    assert_eq!(exit(&lost), 1, "{}", stderr(&lost));
    let text = String::from_utf8(lost.stdout).unwrap();
    assert!(text.contains("[-]data: slot 2 does not have the key"), "{text}");
    assert!(bed.cluster.store.lock().unwrap().entries.is_empty());
    // It looks again until it holds.
    bed.cluster.nodes[1].fail([Fault::Lose]);
    assert_eq!(bed.json(&["check"])["healthy"], true);

    let four = bed.run(&["check", "--expect-voters", "4", "--timeout", "100ms"]);
    assert_eq!(exit(&four), 1);
    assert!(String::from_utf8_lossy(&four.stdout).contains("[-]voters: 3 vote, and 4 should"));
    assert!(stderr(&four).contains("(voters, data)"), "{}", stderr(&four));
    bed.cluster.nodes[2].kill().await;
    let missing = bed.run(&["check", "--timeout", "1s", "--output", "json"]);
    assert_eq!((exit(&missing), error_json_beside(&missing)["reason"].as_str()), (1, Some("UNHEALTHY")));
    let said: Value = serde_json::from_slice(&missing.stdout).unwrap();
    assert_eq!((&said["healthy"], &said["findings"][0]["name"]), (&json!(false), &json!("nodes")));
    assert!(said["findings"][0]["text"].as_str().unwrap().contains("slot 2 does not answer"), "{said}");
}

/// The error on standard error, of a command that also answered.
fn error_json_beside(output: &Output) -> Value {
    serde_json::from_slice::<Value>(&output.stderr).unwrap()["error"].clone()
}

/// Serves these paths on a port of its own, and answers `address:port`.
async fn http(app: axum::Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn healthcheck_is_the_probes_answer_as_an_exit_code() {
    use axum::{http::StatusCode, routing::get};
    let body = "[+]running ok\n[-]leader: no leader is known\nnot ready\n";
    let app = axum::Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async move || (StatusCode::SERVICE_UNAVAILABLE, body)));
    let address = http(app).await;
    let run = |arguments: &[&str]| {
        larder(&[&["healthcheck"], arguments].concat()).env("LARDER_HTTP_ADDR", &address).output().unwrap()
    };
    let live = run(&["--live"]);
    assert_eq!((exit(&live), live.stdout.as_slice()), (0, &b"ok\n"[..]));
    for arguments in [&["--ready"][..], &[]] {
        let ready = run(arguments);
        let said = "larder: the node is not healthy: leader: no leader is known\n";
        assert_eq!((exit(&ready), stderr(&ready).as_str()), (1, said));
    }
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = run(&["--http-addr", &held.local_addr().unwrap().to_string()]);
    assert_eq!(exit(&nobody), 1);
    assert!(stderr(&nobody).contains("does not answer /readyz"), "{}", stderr(&nobody));
    // What listens and says nothing.
    let silent = held.listen(8).unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let late = run(&["--timeout", "200ms", "--http-addr", &address]);
    assert_eq!(exit(&late), 1);
    assert!(stderr(&late).contains("no answer within 200ms"), "{}", stderr(&late));
}

/// A pod of the StatefulSet `cache/larder`, on the node of this slot.
struct Pod<'a> {
    bed: &'a Bed,
    dir: tempfile::TempDir,
}

impl<'a> Pod<'a> {
    /// Its API server says that so many replicas are wanted; without a number it refuses.
    async fn new(bed: &'a Bed, replicas: Option<u32>) -> Self {
        use axum::{http::StatusCode, routing::get};
        let failure = |code: StatusCode, reason: &str, message: &str| {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message, "reason": reason, "code": code.as_u16(),
            });
            (code, status.to_string())
        };
        let statefulset = |replicas: u32| {
            json!({
                "kind": "StatefulSet", "apiVersion": "apps/v1",
                "metadata": {"name": "larder", "namespace": "cache", "uid": "u"},
                "spec": {"replicas": replicas, "serviceName": "s", "selector": {}, "template": {}},
            })
        };
        let answer = match replicas {
            Some(replicas) => (StatusCode::OK, statefulset(replicas).to_string()),
            None => failure(StatusCode::FORBIDDEN, "Forbidden", "the account may not"),
        };
        let missing = failure(StatusCode::NOT_FOUND, "NotFound", "no such StatefulSet");
        let app = axum::Router::new()
            .route("/apis/apps/v1/namespaces/cache/statefulsets/larder", get(async move || answer.clone()))
            .fallback(async move || missing.clone());
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": format!("http://{}", http(app).await)}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        Self { bed, dir }
    }

    fn prestop(&self, slot: usize, arguments: &[&str]) -> Output {
        larder(&[&["prestop", "--drain", "0s"], arguments].concat())
            .env("LARDER_SLOT", slot.to_string())
            .env("LARDER_CLIENT_ADDR", self.bed.cluster.nodes[slot].address.to_string())
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            .output()
            .unwrap()
    }

    fn leads(&self) -> u64 {
        self.bed.cluster.leader.load(std::sync::atomic::Ordering::SeqCst) - 1
    }
}

const STATEFULSET: &[&str] = &["--statefulset", "cache/larder"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prestop_leaves_when_scaled_down_and_only_then() {
    let bed = Bed::new(5).await;
    // A restart of a follower, of the leader, and a StatefulSet that is gone.
    let pod = Pod::new(&bed, Some(5)).await;
    let follower = pod.prestop(4, STATEFULSET);
    assert_eq!((exit(&follower), pod.leads()), (0, 0));
    assert!(stderr(&follower).starts_with("prestop: restart: 5 are wanted"), "{}", stderr(&follower));
    let leader = pod.prestop(0, STATEFULSET);
    assert_eq!((exit(&leader), pod.leads()), (0, 1), "{}", stderr(&leader));
    assert!(stderr(&leader).contains("slot 1 leads now"), "{}", stderr(&leader));
    let gone = pod.prestop(4, &["--statefulset", "cache/other"]);
    assert!(stderr(&gone).contains("restart: the StatefulSet is deleted"), "{}", stderr(&gone));
    // Scaled to nothing, and an API that refuses.
    for (replicas, why) in [(Some(0), "scaled to 0"), (None, "the account may not")] {
        let output = Pod::new(&bed, replicas).await.prestop(4, STATEFULSET);
        assert_eq!(exit(&output), 0);
        assert!(stderr(&output).contains("prestop: restart: "), "{}", stderr(&output));
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
    // Nobody to ask; and the file that says it instead.
    assert!(stderr(&pod.prestop(4, &[])).contains("restart: nobody says"));
    let scale = pod.dir.path().join("scale.toml");
    let by_file = ["--scale-file", path(&scale)];
    assert!(stderr(&pod.prestop(4, &by_file)).contains("restart: how many nodes are wanted is not known"));
    std::fs::write(&scale, "seeds = \"0,1,2\"\nreplicas = 5\n").unwrap();
    assert!(stderr(&pod.prestop(4, &by_file)).contains("restart: 5 are wanted"));
    assert_eq!(bed.cluster.slots(), ["0", "1", "2", "3", "4"], "nobody has left so far");
    std::fs::write(&scale, "seeds = \"0,1,2\"\nreplicas = 4\n").unwrap();
    assert!(stderr(&pod.prestop(4, &by_file)).contains("it is no member any more"));
    assert_eq!(bed.cluster.slots(), ["0", "1", "2", "3"]);

    let pod = Pod::new(&bed, Some(3)).await;
    let left = pod.prestop(3, &[STATEFULSET, &["--output", "json"]].concat());
    let said: Value = serde_json::from_slice(&left.stdout).unwrap();
    assert_eq!((&said["decision"], &said["done"]), (&json!("leave"), &json!(true)), "{said}");
    assert_eq!(exit(&pod.prestop(2, STATEFULSET)), 0);
    assert_eq!(bed.cluster.slots(), ["0", "1", "2"], "only what is above the replicas");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prestop_ends_with_0_whatever_comes_of_it() {
    let bed = Bed::new(3).await;
    let pod = Pod::new(&bed, Some(1)).await;
    // A leader is there again in time.
    bed.cluster.nodes[2].fail(vec![Fault::Refuse(Code::Unavailable, "UNAVAILABLE", "NO"); 3]);
    assert_eq!(exit(&pod.prestop(2, STATEFULSET)), 0);
    assert_eq!(bed.cluster.slots(), ["0", "1"]);
    // It is not.
    bed.cluster.nodes[1].fail(vec![Fault::Hang; 3]);
    let late = pod.prestop(1, &[STATEFULSET, &["--leave-timeout", "1200ms"]].concat());
    assert_eq!(exit(&late), 0);
    assert!(stderr(&late).contains("not done: it is not known whether it has left"), "{}", stderr(&late));
    // The own node is down; no other one is asked.
    bed.cluster.nodes[1].kill().await;
    let down = pod.prestop(1, STATEFULSET);
    assert_eq!(exit(&down), 0);
    assert!(stderr(&down).contains("the leader retires it once"), "{}", stderr(&down));
    assert_eq!(bed.cluster.slots(), ["0", "1"]);
}

#[test]
fn init_dir_makes_a_directory_and_refuses_a_link() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let root = tempfile::tempdir().unwrap();
    let own = std::fs::metadata(root.path()).unwrap();
    let owner = format!("{}:{}", own.uid(), own.gid());
    let dir = root.path().join("data");
    for said in ["belongs to", "belongs already to"] {
        let output = larder(&["init-dir", path(&dir), "--owner", &owner]).output().unwrap();
        assert_eq!(exit(&output), 0, "{}", stderr(&output));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
    }
    let link = root.path().join("link");
    symlink(&dir, &link).unwrap();
    let refused = larder(&["init-dir", path(&link), "--owner", &owner]).output().unwrap();
    assert_eq!(exit(&refused), 1);
    assert!(stderr(&refused).contains("a symbolic link"), "{}", stderr(&refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dumped_can_be_loaded_byte_for_byte() {
    let from = Bed::new(1).await;
    for (key, value) in [("a", "text \" \u{2603}\n"), ("b", ""), ("c", "x"), ("d", "y"), ("user:1", "z")] {
        from.ok(&["set", key, value]);
    }
    assert_eq!(exit(&from.feed(&["set", "bytes", "-"], b"\xff\x00\x80")), 0);
    {
        let mut store = from.cluster.store.lock().unwrap();
        store.entries.insert(b"\xfekey\x00"[..].into(), (b"v"[..].into(), 99));
    }
    // Cut off once on the way.
    from.cluster.nodes[0].fail([Fault::CutScan(1)]);
    let dumped = from.ok(&["dump"]);
    assert_eq!(dumped.iter().filter(|byte| **byte == b'\n').count(), 7);
    let to = Bed::new(1).await;
    let loaded = to.feed(&["load", "-"], &dumped);
    assert_eq!(exit(&loaded), 0, "{}", stderr(&loaded));
    assert_eq!(stderr(&loaded), "loaded 7 lines\n");
    let values = |bed: &Bed| -> Vec<_> {
        let store = bed.cluster.store.lock().unwrap();
        store.entries.iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect()
    };
    assert_eq!(values(&from), values(&to));
    assert_eq!(to.ok(&["dump"]), dumped);
    assert_eq!(to.ok(&["dump", "--prefix", "user:"]), b"{\"key\":\"user:1\",\"value\":\"z\"}\n");
    assert_eq!(to.ok(&["dump", "--keys-only", "--limit", "1"]), b"{\"key\":\"a\"}\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_pipe_is_no_error() {
    let bed = Bed::new(1).await;
    {
        let mut store = bed.cluster.store.lock().unwrap();
        for number in 0..2000_u32 {
            store.entries.insert(number.to_be_bytes().to_vec().into(), (vec![b'v'; 1000].into(), 1));
        }
    }
    let mut command = bed.command(&["dump"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((exit(&output), stderr(&output).as_str()), (0, ""));
}

fn lines(count: usize) -> String {
    (1..=count).map(|number| format!("{{\"key\":\"k{number}\",\"value\":\"v{number}\"}}\n")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_line_is_named_and_the_lines_before_it_are_written() {
    let bed = Bed::new(1).await;
    let input = format!("{}\n{{\"key\":\"bad\"}}\n{}", lines(3), lines(5));
    let output = bed.feed(&["load", "-", "--output", "json"], input.as_bytes());
    let error = error_json(&output);
    assert_eq!((exit(&output), error["code"].as_str()), (1, Some("INVALID_ARGUMENT")));
    assert!(error["message"].as_str().unwrap().starts_with("line 5: it has neither value"), "{error}");
    assert_eq!(bed.cluster.store.lock().unwrap().entries.len(), 3);
    assert_eq!(exit(&bed.run(&["load", "/nowhere/file"])), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_several_lines_for_a_key_counts() {
    let bed = Bed::new(1).await;
    let input: String =
        (0..100).map(|number| format!("{{\"key\":\"k\",\"value\":\"{number}\"}}\n")).collect();
    for batch in ["1", "7", "256"] {
        let output = bed.feed(&["load", "-", "--batch", batch], input.as_bytes());
        assert_eq!(exit(&output), 0);
        assert_eq!(bed.cluster.value("k").unwrap(), "99");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_stopped_goes_on_where_it_was() {
    let bed = Bed::new(1).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.jsonl");
    let progress = directory.path().join("keys.jsonl.larder-progress");
    std::fs::write(&file, lines(100)).unwrap();
    let load = &["load", path(&file), "--batch", "10", "--in-flight", "1"][..];
    // Three batches are taken, the fourth is not.
    let refused = Fault::Refuse(Code::InvalidArgument, "INVALID", "NO");
    bed.cluster.nodes[0].fail([Fault::None, Fault::None, Fault::None, refused.clone()]);
    let output = bed.run(load);
    assert_eq!(exit(&output), 1);
    assert!(stderr(&output).contains("stopped behind line 30"), "{}", stderr(&output));
    assert!(progress.exists());
    assert_eq!(bed.cluster.revision(), 30);

    let output = bed.run(load);
    assert_eq!((exit(&output), stderr(&output).as_str()), (0, "going on behind line 30\nloaded 70 lines\n"));
    assert_eq!(bed.cluster.revision(), 100);
    assert!(!progress.exists());

    // Another file under the name begins anew, as does another cluster, and --restart.
    for how in ["file", "cluster", "restart", "damaged"] {
        bed.cluster.nodes[0].fail([Fault::None, refused.clone()]);
        assert_eq!(exit(&bed.run(load)), 1);
        assert!(progress.exists());
        let before = bed.cluster.revision();
        match how {
            "file" => std::fs::write(&file, lines(101)).unwrap(),
            "damaged" => std::fs::write(&progress, "{").unwrap(),
            _ => {}
        }
        if how == "cluster" {
            let other = Cluster::named("eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee", 1, 0).await;
            let output = larder(load).env("LARDER_ENDPOINTS", other.endpoints()).output().unwrap();
            assert!(stderr(&output).contains("does not count, it is of the cluster"), "{}", stderr(&output));
            assert_eq!((exit(&output), other.revision()), (0, 101));
            continue;
        }
        let restart = [load, &["--restart"]].concat();
        let output = bed.run(if how == "restart" { &restart } else { load });
        assert_eq!(exit(&output), 0, "{how}: {}", stderr(&output));
        assert_eq!(bed.cluster.revision(), before + 101, "{how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_sets_again_what_is_unknown_or_was_refused_for_now() {
    let bed = Bed::new(3).await;
    bed.cluster.nodes[0].fail([
        Fault::ApplyThenCut,
        Fault::Refuse(Code::Unknown, "OUTCOME_UNKNOWN", "UNKNOWN"),
        Fault::Refuse(Code::Unavailable, "UNAVAILABLE", "NO"),
        Fault::Bare,
    ]);
    let output = bed.feed(&["load", "-", "--batch", "10"], lines(55).as_bytes());
    assert_eq!(exit(&output), 0, "{}", stderr(&output));
    let store = bed.cluster.store.lock().unwrap();
    assert_eq!(store.entries.len(), 55);
    assert!(store.entries.iter().all(|(key, (value, _))| key[1..] == value[1..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recover_asks_for_a_confirmation_and_for_one_node() {
    let bed = Bed::new(1).await;
    let look = bed.run(&["recover"]);
    let said = stderr(&look);
    assert_eq!((exit(&look), look.stdout.as_slice()), (2, &b""[..]), "{said}");
    let present = bed.json(&["status"])["cluster_id"].as_str().unwrap().to_owned();
    assert!(said.contains("nothing was changed") && said.contains(&format!("--confirm {present}")), "{said}");
    assert!(said.contains("keys at revision"), "{said}");

    let wrong = bed.run(&["recover", "--confirm", "another"]);
    assert_eq!(exit(&wrong), 1, "{}", stderr(&wrong));

    let done = bed.run(&["recover", "--confirm", &present]);
    assert_eq!((exit(&done), done.stdout), (0, format!("{}\n", "ab".repeat(16)).into_bytes()));
    assert_eq!(
        bed.json(&["recover", "--confirm", &present]),
        json!({
            "former_cluster_id": present, "cluster_id": "ab".repeat(16), "revision": 3, "keys": 2, "last_log_index": 12
        })
    );

    let three = Bed::new(3).await;
    let many = three.run(&["recover", "--confirm", &present]);
    assert_eq!(exit(&many), 2);
    assert!(stderr(&many).contains("--endpoints"), "{}", stderr(&many));
}
