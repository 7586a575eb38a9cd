//! One `larder serve` process.

use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{rpc::Rpc, wait::eventually};

/// The `larder` binary, with no setting of the caller's environment.
pub fn larder() -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// How a process ended.
#[derive(Debug)]
pub struct Exit {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote in this run.
    pub log: String,
}

/// A node: its place, its data, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    /// Its slot.
    pub slot: usize,
    /// Its cluster's loopback address.
    pub address: String,
    /// Its data directory.
    pub data: PathBuf,
    /// Where its output goes, run after run.
    pub log: PathBuf,
    /// The arguments of `larder`.
    pub args: Vec<String>,
    /// A program, with arguments, that runs `larder`; empty: none.
    pub wrapper: Vec<String>,
    child: Option<Child>,
    /// Where the present run begins in the log.
    log_start: u64,
}

impl Node {
    /// A node that does not run yet.
    pub fn new(slot: usize, address: &str, home: &Path, peers: &str, more: &[String]) -> Self {
        let port = |kind: u16| format!("{address}:{}", Self::port(slot, kind));
        let data = home.join(format!("data-{slot}"));
        let mut args = ["serve", "--log-format", "text"].map(str::to_owned).to_vec();
        args.extend(["--slot".to_owned(), slot.to_string()]);
        args.extend(["--peers".to_owned(), peers.to_owned()]);
        args.extend(["--data-dir".to_owned(), data.display().to_string()]);
        args.extend(["--client-addr".to_owned(), port(0), "--peer-addr".to_owned(), port(1)]);
        args.extend(["--http-addr".to_owned(), port(2)]);
        args.extend_from_slice(more);
        let log = home.join(format!("node-{slot}.log"));
        let (address, wrapper) = (address.to_owned(), Vec::new());
        Self { slot, address, data, log, args, wrapper, child: None, log_start: 0 }
    }

    /// The port of a slot: kind 0 for clients, 1 for peers, 2 for HTTP.
    pub fn port(slot: usize, kind: u16) -> u16 {
        7400 + u16::try_from(slot).unwrap() * 10 + kind
    }

    /// Points the node at another data directory.
    pub fn set_data_dir(&mut self, dir: &Path) {
        let at = self.args.iter().position(|arg| arg == "--data-dir").expect("every node has one");
        self.args[at + 1] = dir.display().to_string();
        self.data = dir.to_owned();
    }

    /// `host:port` for clients.
    pub fn endpoint(&self) -> String {
        format!("{}:{}", self.address, Self::port(self.slot, 0))
    }

    /// Starts the process. It may take a while to be ready, or may end at once.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "node {} runs already", self.slot);
        let log: File = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        self.log_start = log.metadata().unwrap().len();
        let plain = larder();
        let mut command = match self.wrapper.split_first() {
            None => plain,
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(plain.get_program()).stdin(Stdio::null());
                plain.get_envs().filter(|(_, set)| set.is_none()).for_each(|(name, _)| {
                    command.env_remove(name);
                });
                command
            }
        };
        command.args(&self.args).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Whether it was started and not ended by this harness.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// The process id of what [`start`](Self::start) spawned.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// SIGKILL without waiting for the end, so that several die in one moment. [`reap`](Self::reap) after it.
    pub fn strike(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().unwrap();
        }
    }

    /// Waits for the end of a process that was struck.
    pub fn reap(&mut self) -> Option<ExitStatus> {
        self.child.take().map(|mut child| child.wait().unwrap())
    }

    /// kill -9. A node that had ended by itself is a failure: nothing but this harness may end one.
    pub fn kill(&mut self) {
        let ended = self.child.as_mut().expect("the node runs").try_wait().unwrap();
        assert!(ended.is_none(), "node {} ended by itself: {ended:?}\n{}", self.slot, self.output());
        self.strike();
        self.reap();
    }

    /// Whether the process ended by itself and [`exit`](Self::exit) was not asked yet.
    pub fn ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some())
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        signal("TERM", self.pid());
    }

    /// Waits until the process ends by itself, and says how.
    pub async fn exit(&mut self, deadline: Duration) -> Exit {
        let what = format!("the end of node {}", self.slot);
        let status =
            eventually(&what, deadline, async || match self.child.as_mut().unwrap().try_wait().unwrap() {
                Some(status) => Ok(status),
                None => Err("it runs".to_owned()),
            })
            .await;
        self.child = None;
        Exit { code: status.code(), log: self.output() }
    }

    /// What the present, or last, run wrote.
    pub fn output(&self) -> String {
        let all = fs::read(&self.log).unwrap_or_default();
        let from = usize::try_from(self.log_start).unwrap().min(all.len());
        String::from_utf8_lossy(&all[from..]).into_owned()
    }

    /// Empties the data directory, as a lost volume would.
    pub fn wipe(&self) {
        for entry in fs::read_dir(&self.data).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
    }

    /// GET on the HTTP port: the status code and the body.
    pub async fn http(&self, path: &str) -> Result<(u16, String), String> {
        let address = format!("{}:{}", self.address, Self::port(self.slot, 2));
        let asked = async {
            let mut stream = TcpStream::connect(&address).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = match tokio::time::timeout(Duration::from_secs(5), asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => return Err(format!("http of node {}: {e}", self.slot)),
            Err(_) => return Err(format!("http of node {} does not answer", self.slot)),
        };
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status code")?;
        Ok((code, body.to_owned()))
    }

    /// `Ok` once `/readyz` answers 200, else why not.
    pub async fn ready(&self) -> Result<(), String> {
        match self.http("/readyz").await? {
            (200, _) => Ok(()),
            (code, body) => Err(format!("node {} is not ready ({code}): {body}", self.slot)),
        }
    }

    /// Waits until the node takes traffic.
    pub async fn wait_ready(&self, deadline: Duration) {
        eventually(&format!("node {} ready", self.slot), deadline, async || self.ready().await).await;
    }

    /// Bytes on disk of everything in the data directory.
    pub fn disk_bytes(&self) -> u64 {
        bytes_below(&self.data)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends a signal by name to a process of ours.
pub fn signal(name: &str, pid: u32) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap();
    assert!(sent.success(), "kill -{name} {pid}: {sent}");
}

/// The bytes of all files below a directory; files that vanish meanwhile count nothing.
fn bytes_below(dir: &Path) -> u64 {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return 0,
        Err(e) => panic!("{}: {e}", dir.display()),
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(m) if m.is_dir() => bytes_below(&entry.path()),
        Ok(m) => m.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// The binary under test: what users run if `tests/run` names it, else the one built along with this test.
fn binary() -> std::ffi::OsString {
    std::env::var_os("LARDER_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder").into())
}

/// A client of one node that knows no other.
pub fn only(node: &Node) -> Rpc {
    Rpc::new(vec![node.endpoint()], 0)
}

/// What a command said on standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Copies a data directory, as nobody should.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
