//! The rule of leaving, the names, the fake; and the real client against a server that answers as the API server does.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;

#[test]
fn only_scaling_down_makes_a_member_leave() {
    let deleting = Desired { deleting: true, ..Desired::replicas(3) };
    for (ordinal, desired, leaves) in [
        (0, Desired::replicas(3), false),
        (2, Desired::replicas(3), false),
        (3, Desired::replicas(3), true),
        (4, Desired::replicas(3), true),
        (1, Desired::replicas(1), true),
        (0, Desired::replicas(1), false),
        // Scaled to nothing, being deleted, gone: the data stays, and so do the members.
        (0, Desired::replicas(0), false),
        (4, Desired::replicas(0), false),
        (4, deleting, false),
        (4, Desired::ABSENT, false),
        (4, Desired { exists: false, ..Desired::replicas(3) }, false),
        (u32::MAX, Desired::replicas(u32::MAX), true),
    ] {
        assert_eq!(leaving(ordinal, &desired), leaves, "{ordinal} of {desired:?}");
    }
}

#[test]
fn names_are_read_and_written_alike() {
    let name: StatefulSetName = "cache-1/larder".parse().unwrap();
    assert_eq!((name.namespace.as_str(), name.name.as_str()), ("cache-1", "larder"));
    assert_eq!((name.to_string().as_str(), name.claim().as_str()), ("cache-1/larder", "larder-cluster"));
    let long = format!("a/{}", "b".repeat(64));
    for wrong in ["", "larder", "/larder", "a/", "a/b/c", "A/b", "a/-b", "a/b-", "a b/c", "a/b.c", &long] {
        let error = wrong.parse::<StatefulSetName>().unwrap_err().to_string();
        assert!(error.contains("write NAMESPACE/NAME"), "{wrong:?}: {error}");
    }
}

/// How the pretended API server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// From what it holds.
    Answers,
    /// Every request with this status.
    Refuses(u16),
    /// Never.
    Hangs,
    /// With something that is no JSON.
    Babbles,
}

/// An API server with a StatefulSet and ConfigMaps of one namespace.
#[derive(Debug)]
struct Held {
    mood: Mood,
    statefulset: Option<Value>,
    configmap: Option<Value>,
}

type Shared = Arc<Mutex<Held>>;

fn status(code: u16, reason: &str) -> (StatusCode, String) {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("as ordered: {reason}"), "reason": reason, "code": code,
    });
    (StatusCode::from_u16(code).unwrap(), body.to_string())
}

fn found(object: Option<&Value>) -> (StatusCode, String) {
    object.map_or_else(|| status(404, "NotFound"), |object| (StatusCode::OK, object.to_string()))
}

async fn answer(State(held): State<Shared>, method: Method, uri: Uri, body: Bytes) -> (StatusCode, String) {
    let mood = held.lock().unwrap().mood;
    match mood {
        Mood::Answers => {}
        Mood::Refuses(401) => return status(401, "Unauthorized"),
        Mood::Refuses(403) => return status(403, "Forbidden"),
        Mood::Refuses(code) => return status(code, "InternalError"),
        Mood::Hangs => std::future::pending().await,
        Mood::Babbles => return (StatusCode::OK, "<html>a proxy's page</html>".into()),
    }
    let mut held = held.lock().unwrap();
    match (method.as_str(), uri.path()) {
        ("GET", "/apis/apps/v1/namespaces/cache/statefulsets/larder") => found(held.statefulset.as_ref()),
        ("GET", "/api/v1/namespaces/cache/configmaps/larder-cluster") => found(held.configmap.as_ref()),
        ("POST", "/api/v1/namespaces/cache/configmaps") if held.configmap.is_some() => {
            status(409, "AlreadyExists")
        }
        ("POST", "/api/v1/namespaces/cache/configmaps") => {
            let object: Value = serde_json::from_slice(&body).unwrap();
            held.configmap = Some(object.clone());
            (StatusCode::CREATED, object.to_string())
        }
        other => panic!("the role allows no {other:?}"),
    }
}

fn statefulset(replicas: Option<i32>) -> Value {
    let mut object = json!({
        "kind": "StatefulSet", "apiVersion": "apps/v1",
        "metadata": {"name": "larder", "namespace": "cache", "uid": "5e7-1d"},
        "spec": {
            "serviceName": "larder-headless",
            "selector": {"matchLabels": {"app": "larder"}},
            "template": {"metadata": {}},
        },
    });
    if let Some(replicas) = replicas {
        object["spec"]["replicas"] = replicas.into();
    }
    object
}

/// The server, and a client that was told of it by a kubeconfig.
struct Bed {
    held: Shared,
    api: Api,
    _dir: tempfile::TempDir,
}

impl Bed {
    async fn new() -> Self {
        let held = Arc::new(Mutex::new(Held { mood: Mood::Answers, statefulset: None, configmap: None }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (dir, path) = kubeconfig(&format!("http://{}", listener.local_addr().unwrap()));
        let app = Router::new().fallback(answer).with_state(held.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let api = Api::from_kubeconfig("cache/larder".parse().unwrap(), &path).await.unwrap();
        Self { held, api, _dir: dir }
    }

    fn set(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held.lock().unwrap());
    }
}

/// A kubeconfig file that names this server.
fn kubeconfig(server: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    });
    std::fs::write(&path, text.to_string()).unwrap();
    (dir, path)
}

#[tokio::test]
async fn the_statefulset_is_read_as_the_api_server_has_it() {
    let bed = Bed::new().await;
    assert_eq!(bed.api.desired().await, Ok(Desired::ABSENT));
    bed.set(|held| held.statefulset = Some(statefulset(Some(5))));
    assert_eq!(bed.api.desired().await, Ok(Desired::replicas(5)));
    // What is not said is one.
    bed.set(|held| held.statefulset = Some(statefulset(None)));
    assert_eq!(bed.api.desired().await, Ok(Desired::replicas(1)));
    bed.set(|held| {
        let mut object = statefulset(Some(3));
        object["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
        held.statefulset = Some(object);
    });
    assert_eq!(bed.api.desired().await, Ok(Desired { deleting: true, ..Desired::replicas(3) }));
}

#[tokio::test]
async fn a_claim_is_made_once_and_belongs_to_the_statefulset() {
    let bed = Bed::new().await;
    assert_eq!(bed.api.claim().await, Ok(None));
    let Err(ApiError::Unreachable(why)) = bed.api.create_claim("0123").await else {
        panic!("nobody owns it")
    };
    assert!(why.contains("no StatefulSet cache/larder"), "{why}");
    bed.set(|held| held.statefulset = Some(statefulset(Some(3))));
    assert_eq!(bed.api.create_claim("0123").await, Ok(()));
    assert_eq!(bed.api.claim().await, Ok(Some("0123".into())));
    let made = bed.held.lock().unwrap().configmap.clone().unwrap();
    assert_eq!(made["metadata"]["labels"], json!({"app.kubernetes.io/managed-by": "larder"}));
    assert_eq!(
        made["metadata"]["ownerReferences"],
        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "larder", "uid": "5e7-1d"}])
    );
    // Another one finds it: 409 is as good, and changes nothing.
    assert_eq!(bed.api.create_claim("4567").await, Ok(()));
    assert_eq!(bed.api.claim().await, Ok(Some("0123".into())));
    bed.set(|held| held.configmap = Some(json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {}})));
    let Err(ApiError::Unreachable(why)) = bed.api.claim().await else { panic!("an empty claim was read") };
    assert!(why.contains("larder-cluster") && why.contains("delete it"), "{why}");
}

#[tokio::test]
async fn a_refusal_and_a_failure_are_told_apart() {
    let bed = Bed::new().await;
    for code in [401, 403] {
        bed.set(|held| held.mood = Mood::Refuses(code));
        for error in [
            bed.api.desired().await.unwrap_err(),
            bed.api.claim().await.unwrap_err(),
            bed.api.create_claim("1").await.unwrap_err(),
        ] {
            assert!(matches!(error, ApiError::Denied(_)), "{code}: {error}");
            assert!(error.to_string().contains("rbac.create"), "{error}");
            assert!(error.to_string().contains(&code.to_string()), "{error}");
        }
    }
    for mood in [Mood::Refuses(500), Mood::Babbles] {
        bed.set(|held| held.mood = mood);
        let error = bed.api.desired().await.unwrap_err();
        assert!(matches!(error, ApiError::Unreachable(_)), "{mood:?}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let bed = Bed::new().await;
    bed.set(|held| held.mood = Mood::Hangs);
    let asked = tokio::time::Instant::now();
    let Err(ApiError::Unreachable(why)) = bed.api.desired().await else { panic!("it answered") };
    assert!(asked.elapsed() >= CALL_TIMEOUT && asked.elapsed() < 3 * CALL_TIMEOUT, "{:?}", asked.elapsed());
    assert!(why.contains("no answer within"), "{why}");
}

#[tokio::test]
async fn nobody_there_and_no_configuration_are_said() {
    let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_dir, path) = kubeconfig(&format!("http://{}", held.local_addr().unwrap()));
    drop(held);
    let api = Api::from_kubeconfig("cache/larder".parse().unwrap(), &path).await.unwrap();
    let error = api.desired().await.unwrap_err();
    assert!(matches!(&error, ApiError::Unreachable(why) if why.contains("refused")), "{error}");
    let missing = Api::from_kubeconfig("cache/larder".parse().unwrap(), &path.with_file_name("none")).await;
    let error = missing.unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
}

#[tokio::test]
async fn the_fake_behaves_like_the_server() {
    let fake = Fake::new(Desired::replicas(3));
    assert_eq!(fake.desired().await, Ok(Desired::replicas(3)));
    assert_eq!(fake.claim().await, Ok(None));
    assert_eq!(fake.create_claim("a").await, Ok(()));
    assert_eq!(fake.create_claim("b").await, Ok(()));
    assert_eq!(fake.claim().await, Ok(Some("a".into())));
    let denied = ApiError::Denied("403".into());
    fake.fail(Some(denied.clone()));
    assert_eq!(fake.desired().await, Err(denied.clone()));
    assert_eq!(fake.claim().await, Err(denied.clone()));
    assert_eq!(fake.create_claim("c").await, Err(denied));
    fake.fail(None);
    // The claim goes with the StatefulSet, and there is no new one without it.
    fake.set_desired(Desired::ABSENT);
    assert_eq!(fake.claim().await, Ok(None));
    assert!(fake.create_claim("d").await.is_err());
}
