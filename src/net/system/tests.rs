use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, rdata::SOA},
};
use tempfile::TempDir;
use tokio::net::UdpSocket;

use super::*;

/// An hour: whoever keeps an answer keeps it past any test.
const TTL: u32 = 3600;

/// Full names and their addresses. No addresses: the name exists, and has none. Not in it: no such name.
type Zone = BTreeMap<&'static str, Vec<IpAddr>>;

/// A DNS server, and the files of a machine that asks it.
struct Machine {
    dir: TempDir,
    resolver: SystemResolver,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Machine {
    async fn new(hosts: &str, resolv_conf: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let resolver = SystemResolver {
            hosts: dir.path().join("hosts"),
            resolv_conf: dir.path().join("resolv.conf"),
            dns_port: socket.local_addr().unwrap().port(),
        };
        let (zone, asked) = (Arc::<Mutex<Zone>>::default(), Arc::<Mutex<Vec<String>>>::default());
        tokio::spawn(serve(socket, zone.clone(), asked.clone()));
        let machine = Self { dir, resolver, zone, asked };
        machine.write("hosts", hosts);
        machine.write("resolv.conf", resolv_conf);
        machine
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.path().join(file), text).unwrap();
    }

    fn set(&self, name: &'static str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        self.zone.lock().unwrap().insert(name, addresses);
    }

    async fn resolve(&self, host: &str) -> Result<Vec<String>, String> {
        let found = self.resolver.resolve(host, 7401).await?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    /// Which names were asked for, once each and in order, since the last call.
    fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.dedup();
        asked
    }
}

/// Answers every question from the zone, and asks others to remember the answer.
async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>, asked: Arc<Mutex<Vec<String>>>) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let question = Message::from_vec(&buffer[..length]).unwrap();
        let query = question.queries[0].clone();
        let name = query.name().to_string().to_lowercase();
        asked.lock().unwrap().push(name.clone());
        let mut answer = question.into_response();
        let found = zone.lock().unwrap().get(name.as_str()).cloned();
        if found.is_none() {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        let records = found.unwrap_or_default().into_iter().map(RData::from);
        let records = records.filter(|data| data.record_type() == query.query_type());
        answer.answers = records.map(|data| Record::from_rdata(query.name().clone(), TTL, data)).collect();
        let start = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, TTL);
        answer.authorities = vec![Record::from_rdata(Name::root(), TTL, RData::SOA(start))];
        socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
    }
}

const POD: &str = "search ns.svc.cluster.local svc.cluster.local\nnameserver 127.0.0.1\noptions ndots:5\n";
const FULL: &str = "larder-0.larder-headless.ns.svc.cluster.local.";

#[tokio::test]
async fn an_address_stands_for_itself() {
    let machine = Machine::new("", POD).await;
    assert_eq!(machine.resolve("10.0.0.1").await.unwrap(), ["10.0.0.1:7401"]);
    assert_eq!(machine.resolve("::1").await.unwrap(), ["[::1]:7401"]);
    assert!(machine.asked().is_empty());
}

#[tokio::test]
async fn neither_a_failure_nor_an_answer_is_remembered() {
    let machine = Machine::new("", POD).await;
    assert_eq!(machine.resolve(FULL).await.unwrap_err(), "there is no such name (asked 127.0.0.1)");
    machine.set(FULL, &[]);
    assert_eq!(machine.resolve(FULL).await.unwrap_err(), "the name has no address (asked 127.0.0.1)");
    for address in ["10.78.1.2", "10.78.3.4"] {
        machine.set(FULL, &[address]);
        assert_eq!(machine.resolve(FULL).await.unwrap(), [format!("{address}:7401")]);
    }
    assert_eq!(machine.asked(), [FULL], "a name that ends in a dot is looked for nowhere else");
}

#[tokio::test]
async fn both_families_are_found_and_ipv4_comes_first() {
    let machine = Machine::new("", POD).await;
    machine.set(FULL, &["2001:db8::1", "10.78.1.2"]);
    assert_eq!(machine.resolve(FULL).await.unwrap(), ["10.78.1.2:7401", "[2001:db8::1]:7401"]);
    machine.set(FULL, &["2001:db8::1"]);
    assert_eq!(machine.resolve(FULL).await.unwrap(), ["[2001:db8::1]:7401"]);
}

#[tokio::test]
async fn a_short_name_is_looked_for_along_the_search_list() {
    let machine = Machine::new("", POD).await;
    machine.set(FULL, &["10.78.1.2"]);
    assert_eq!(machine.resolve("larder-0.larder-headless").await.unwrap(), ["10.78.1.2:7401"]);
    assert_eq!(machine.asked()[0], FULL);
    machine.set("larder.example.", &["10.78.1.3"]);
    assert_eq!(machine.resolve("larder.example").await.unwrap(), ["10.78.1.3:7401"]);
    let search = ["larder.example.ns.svc.cluster.local.", "larder.example.svc.cluster.local."];
    assert_eq!(machine.asked().last().unwrap(), "larder.example.", "as it is, at the end");
    machine.write("resolv.conf", "search ns.svc.cluster.local svc.cluster.local\nnameserver 127.0.0.1\n");
    assert_eq!(machine.resolve("larder.example").await.unwrap(), ["10.78.1.3:7401"]);
    assert!(
        !machine.asked().iter().any(|name| search.contains(&name.as_str())),
        "enough dots: as it is, first"
    );
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_is_read_each_time() {
    let machine = Machine::new("10.0.0.7 node-a.example node-a # this one\n::1 node-a\n", POD).await;
    machine.set("node-a.ns.svc.cluster.local.", &["10.9.9.9"]);
    assert_eq!(machine.resolve("node-a").await.unwrap(), ["10.0.0.7:7401", "[::1]:7401"]);
    assert_eq!(machine.resolve("Node-A.example").await.unwrap(), ["10.0.0.7:7401"]);
    assert!(machine.asked().is_empty());
    machine.write("hosts", "10.0.0.8 node-a\n");
    assert_eq!(machine.resolve("node-a").await.unwrap(), ["10.0.0.8:7401"]);
    machine.write("hosts", "");
    assert_eq!(machine.resolve("node-a").await.unwrap(), ["10.9.9.9:7401"]);
}

#[tokio::test]
async fn without_settings_the_machines_own_server_is_asked() {
    let machine = Machine::new("", "# nothing\n").await;
    machine.set("node-a.", &["10.0.0.7"]);
    assert_eq!(machine.resolve("node-a").await.unwrap(), ["10.0.0.7:7401"]);
    fs::remove_file(machine.dir.path().join("resolv.conf")).unwrap();
    fs::remove_file(machine.dir.path().join("hosts")).unwrap();
    assert_eq!(machine.resolve("node-a").await.unwrap(), ["10.0.0.7:7401"]);
    assert_eq!(machine.resolve("localhost").await.unwrap(), ["127.0.0.1:7401", "[::1]:7401"]);
}

#[tokio::test]
async fn names_as_people_write_them_are_asked_for() {
    let machine = Machine::new("", "nameserver 127.0.0.1\n").await;
    machine.set("node_a.", &["10.0.0.7"]);
    assert_eq!(machine.resolve("node_a").await.unwrap(), ["10.0.0.7:7401"]);
    let long = format!("{}.example", "a".repeat(64));
    assert!(machine.resolve(&long).await.unwrap_err().starts_with("it is no DNS name: "));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let machine = Machine::new("", POD).await;
    // Nobody listens on the port of a socket that is gone.
    let port = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let resolver = SystemResolver { dns_port: port, ..machine.resolver.clone() };
    let why = resolver.resolve(FULL, 7401).await.unwrap_err();
    assert!(why.ends_with("(asked 127.0.0.1)"), "{why}");
    machine.write("resolv.conf", "nameserver nonsense\n");
    let why = machine.resolve(FULL).await.unwrap_err();
    assert!(why.contains("resolv.conf is not understood"), "{why}");
}
