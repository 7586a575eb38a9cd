use super::*;

fn sentence<T: fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(Error::Invalid(sentence)) => sentence,
        other => panic!("not refused: {other:?}"),
    }
}

fn raw() -> RawConfig {
    RawConfig {
        slot: Some("0".into()),
        peers: Some("0=a:7401,1=b:7401,2=c:7401".into()),
        data_dir: Some("/data".into()),
        ..RawConfig::default()
    }
}

fn config(raw: RawConfig) -> ServeConfig {
    ServeConfig::new(raw, &Machine::default()).unwrap()
}

/// The settings of a pod, as far as they must be given.
fn pod() -> RawConfig {
    RawConfig {
        peer_template: Some("larder-{slot}.larder-headless.ns.svc.cluster.local.:7401".into()),
        data_dir: Some("/data".into()),
        seeds: Some("0,1,2".into()),
        ..RawConfig::default()
    }
}

fn machine(hostname: &str) -> Machine {
    Machine { hostname: hostname.into(), ..Machine::default() }
}

fn refused_pod(hostname: &str, change: impl FnOnce(&mut RawConfig)) -> String {
    let mut raw = pod();
    change(&mut raw);
    sentence(ServeConfig::new(raw, &machine(hostname)))
}

fn refused(change: impl FnOnce(&mut RawConfig)) -> String {
    let mut raw = raw();
    change(&mut raw);
    sentence(ServeConfig::new(raw, &Machine::default()))
}

#[test]
fn defaults_are_those_of_the_code() {
    let config = config(raw());
    assert_eq!(config.client_addr.to_string(), "0.0.0.0:7400");
    assert_eq!(config.peer_addr.to_string(), "0.0.0.0:7401");
    assert_eq!(config.http_addr.to_string(), "0.0.0.0:7402");
    assert_eq!(config.advertised_client(), "a:7400");
    assert_eq!(
        (config.heartbeat_ms, config.election_timeout_min_ms, config.election_timeout_max_ms),
        (100, 500, 1000)
    );
    assert_eq!((config.snapshot_log_bytes, config.memory_limit_bytes), (64 << 20, None));
    assert_eq!((config.log_level.as_str(), config.log_format), ("info", LogFormat::Text));
    assert_eq!(config.seeds().unwrap(), ["0", "1", "2"]);
    assert_eq!((config.max_voters, config.ephemeral), (5, false));
    assert_eq!(config.on_majority_lost, OnMajorityLost::Wait);
    assert_eq!((config.statefulset, config.scale_file), (None, None));
}

#[test]
fn a_later_source_wins_and_an_earlier_one_fills_in() {
    let file = RawConfig::from_toml(
        "slot = 1\nheartbeat_ms = 50\nmemory_limit = \"512Mi\"\nsnapshot_log_bytes = 2097152\n\
         [peers]\n0 = \"a:1\"\n1 = \"b:2\"\n2 = \"c:3\"\n",
        "larder.toml",
    )
    .unwrap();
    let flags = RawConfig {
        slot: Some("2".into()),
        data_dir: Some("/d".into()),
        advertise_client: Some("[2001:db8::1]:7400".into()),
        ..RawConfig::default()
    };
    let config = config(RawConfig::default().merge(file).merge(flags));
    assert_eq!((config.slot.as_str(), config.heartbeat_ms), ("2", 50));
    assert_eq!(config.memory_limit_bytes, Some(512 << 20));
    assert_eq!(config.snapshot_log_bytes, 2 << 20);
    assert_eq!(config.discovery.place("1").unwrap().to_string(), "b:2");
    assert_eq!(config.advertised_client(), "[2001:db8::1]:7400");
}

#[test]
fn every_key_of_a_file_is_a_field() {
    let all = "slot='0'\npeers='0=a:1'\npeer_template='{slot}:1'\nseeds='0'\nscale_file='s'\nstatefulset='n/l'\nmax_voters=3\n\
               data_dir='d'\nephemeral=true\non_majority_lost='recover'\nclient_addr='127.0.0.1:1'\npeer_addr='127.0.0.1:2'\n\
               http_addr='127.0.0.1:3'\nadvertise_client='h:1'\nlog_level='warn'\nlog_format='json'\n\
               memory_limit='1Gi'\nsnapshot_log_bytes='8Mi'\nheartbeat_ms=10\nelection_timeout_min_ms=100\n\
               election_timeout_max_ms=200\nretire_after_ms=5\n";
    assert_eq!(all.lines().count(), RawConfig::KEYS.len());
    for (line, key) in all.lines().zip(RawConfig::KEYS) {
        assert!(line.starts_with(&format!("{key}=")), "{line}");
    }
    let raw = RawConfig::from_toml(all, "f").unwrap();
    // The one or the other.
    let config = config(RawConfig { peer_template: None, ..raw });
    assert_eq!((config.max_voters, config.ephemeral, config.retire_after_ms), (3, true, 5));
    assert_eq!(config.on_majority_lost, OnMajorityLost::Recover);
    assert_eq!((config.statefulset.unwrap().name.as_str(), config.scale_file), ("l", Some("s".into())));
    assert_eq!((config.log_format, config.http_addr.port()), (LogFormat::Json, 3));
}

#[test]
fn an_unknown_key_names_itself_the_file_and_the_nearest() {
    let sentence = sentence(RawConfig::from_toml("hartbeat_ms = 5", "/etc/larder.toml"));
    assert_eq!(sentence, "/etc/larder.toml: there is no key `hartbeat_ms`; did you mean `heartbeat_ms`?");
}

#[test]
fn a_file_that_is_not_right_is_refused_with_its_place() {
    for (text, part) in [
        ("slot = ", "larder.toml:"),
        ("heartbeat_ms = \"fast\"", "heartbeat_ms"),
        ("heartbeat_ms = -1", "heartbeat_ms"),
        ("memory_limit = \"lots\"", "512Mi"),
        ("peers = 7", "slot=host:port"),
    ] {
        let sentence = sentence(RawConfig::from_toml(text, "larder.toml"));
        assert!(sentence.contains(part), "{text}: {sentence}");
    }
    assert!(
        self::sentence(RawConfig::from_file(Path::new("/nowhere/larder.toml")))
            .contains("/nowhere/larder.toml")
    );
}

#[test]
fn bad_values_name_the_key_the_value_and_what_is_allowed() {
    let cases: [(String, &[&str]); 14] = [
        (refused(|r| r.slot = None), &["slot is missing", "--slot", "LARDER_SLOT"]),
        (refused(|r| r.data_dir = None), &["data_dir is missing", "--data-dir", "LARDER_DATA_DIR"]),
        (refused(|r| r.slot = Some("7".into())), &["peers", "slot 7", "0, 1, 2"]),
        (refused(|r| r.peers = None), &["peers is missing", "--peers", "LARDER_PEERS", "peer_template"]),
        (
            refused(|r| r.client_addr = Some("localhost".into())),
            &["client_addr = \"localhost\"", "0.0.0.0:7400"],
        ),
        (
            refused(|r| r.http_addr = Some("0.0.0.0:7400".into())),
            &["http_addr = 0.0.0.0:7400", "client_addr is the same"],
        ),
        (refused(|r| r.advertise_client = Some("a".into())), &["advertise_client", "\"a\"", "host:port"]),
        (refused(|r| r.log_level = Some("loud".into())), &["log_level", "\"loud\"", "info"]),
        (refused(|r| r.log_format = Some("xml".into())), &["log_format", "\"xml\"", "text or json"]),
        (refused(|r| r.memory_limit = Some(ByteSize(5))), &["memory_limit = 5", "64Mi"]),
        (refused(|r| r.snapshot_log_bytes = Some(ByteSize(5))), &["snapshot_log_bytes = 5", "1Mi"]),
        (refused(|r| r.heartbeat_ms = Some(0)), &["heartbeat_ms = 0", "1 to"]),
        (refused(|r| r.heartbeat_ms = Some(200)), &["election_timeout_min_ms = 500", "600 or more"]),
        (refused(|r| r.election_timeout_max_ms = Some(500)), &["election_timeout_max_ms = 500", "above"]),
    ];
    for (sentence, parts) in cases {
        for part in parts {
            assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
        }
    }
}

#[test]
fn a_pod_takes_its_slot_from_its_name() {
    let config = ServeConfig::new(pod(), &machine("larder-7")).unwrap();
    assert_eq!(config.slot, "7");
    assert_eq!(config.advertised_client(), "larder-7.larder-headless.ns.svc.cluster.local:7400");
    assert_eq!(config.seeds().unwrap(), ["0", "1", "2"]);
    let told = RawConfig { slot: Some("3".into()), ..pod() };
    assert_eq!(ServeConfig::new(told, &machine("larder-7")).unwrap().slot, "3");
    let node = RawConfig {
        slot: Some("node-a.example".into()),
        peer_template: Some("{slot}:7401".into()),
        seeds: Some("node-b".into()),
        ..pod()
    };
    let node = ServeConfig::new(node, &machine("larder-xyz")).unwrap();
    assert_eq!(node.advertised_client(), "node-a.example:7400");
    assert_eq!(node.seeds().unwrap(), ["node-b"]);
}

#[test]
fn a_pod_that_is_told_too_little_or_too_much_says_so() {
    let cases: [(String, &[&str]); 6] = [
        (refused_pod("larder", |_| ()), &["slot", "hostname \"larder\"", "--slot"]),
        (refused_pod("a-0", |r| r.slot = Some("A".into())), &["slot", "\"A\"", "a-z"]),
        (
            refused_pod("a-0", |r| r.peers = Some("0=a:1".into())),
            &["peers and peer_template", "LARDER_PEERS"],
        ),
        (refused_pod("a-0", |r| r.peer_template = Some("a:1".into())), &["peer_template", "no {slot}"]),
        (
            refused_pod("a-0", |r| r.seeds = None),
            &["seeds is missing", "--seeds", "LARDER_SEEDS", "--scale-file"],
        ),
        (
            refused_pod("a-0", |r| r.slot = Some("a".repeat(253))),
            &["peer_template", "longer than any DNS name"],
        ),
    ];
    for (sentence, parts) in cases {
        for part in parts {
            assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
        }
    }
}

#[test]
fn membership_settings_name_what_is_allowed() {
    for bad in [0, 2, 4, 10, 11] {
        let sentence = refused(|r| r.max_voters = Some(bad));
        assert!(
            sentence.starts_with(&format!("max_voters = {bad}: give an odd number from 1 to 9")),
            "{sentence}"
        );
    }
    let cases: [(String, &[&str]); 7] = [
        (refused(|r| r.seeds = Some("0,1".into())), &["seeds", "2 seeds", "1 or 3"]),
        (refused(|r| r.seeds = Some("0,1,2,3".into())), &["seeds", "4 seeds", "1 or 3"]),
        (refused(|r| r.seeds = Some("0,1,1".into())), &["seeds", "seed 1 is named twice"]),
        (
            refused(|r| r.seeds = Some("0,1,7".into())),
            &["seeds", "seed 7 is not in the list of peers", "0, 1, 2"],
        ),
        (
            refused(|r| r.statefulset = Some("larder".into())),
            &["statefulset", "\"larder\"", "NAMESPACE/NAME"],
        ),
        (
            refused(|r| r.on_majority_lost = Some("hope".into())),
            &["on_majority_lost", "\"hope\"", "wait or recover"],
        ),
        (
            refused(|r| r.on_majority_lost = Some("recover".into())),
            &["on_majority_lost", "only with ephemeral"],
        ),
    ];
    for (sentence, parts) in cases {
        for part in parts {
            assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
        }
    }
}

#[test]
fn the_scale_file_says_the_seeds_each_time_unless_somebody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scale.toml");
    let from_file = config(RawConfig { scale_file: Some(path.clone()), ..raw() });
    assert!(sentence(from_file.seeds()).contains("scale.toml cannot be read"));
    for (seeds, list) in [(vec!["0"], "0"), (vec!["2", "1", "0"], "2,1,0")] {
        fs::write(&path, format!("seeds = \"{list}\"\nreplicas = 3\n")).unwrap();
        assert_eq!(from_file.seeds().unwrap(), seeds);
        assert_eq!(from_file.wanted_replicas(), Some(3));
    }
    fs::write(&path, "seeds = \"7\"").unwrap();
    assert_eq!((from_file.wanted_replicas(), config(raw()).wanted_replicas()), (None, None));
    assert!(sentence(from_file.seeds()).contains("seed 7 is not in the list of peers"));
    let told = RawConfig { scale_file: Some(path), seeds: Some("1".into()), ..raw() };
    assert_eq!(config(told).seeds().unwrap(), ["1"]);
}

#[test]
fn the_memory_limit_is_the_machines_unless_it_is_given() {
    let machine = Machine { memory_limit_bytes: Some(256 << 20), ..Machine::default() };
    let limit = |raw| ServeConfig::new(raw, &machine).unwrap().memory_limit_bytes;
    assert_eq!(limit(raw()), Some(256 << 20));
    assert_eq!(limit(RawConfig { memory_limit: Some(ByteSize(1 << 30)), ..raw() }), Some(1 << 30));
}

#[test]
fn byte_sizes_have_units_and_no_surprises() {
    for (text, bytes) in
        [("0", 0), ("1024", 1024), ("512Mi", 512 << 20), ("1Gi", 1 << 30), ("2 Ki", 2048), ("3M", 3_000_000)]
    {
        assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
    }
    for bad in ["", "Mi", "-1", "1.5Gi", "1GB", "1mi", "18446744073709551615Ki", "1 2", "é"] {
        assert!(sentence(bad.parse::<ByteSize>()).contains("512Mi"), "{bad}");
    }
}
