//! A network of our own: one namespace for every member, all on one bridge, cut at will.
//!
//! The whole process runs in namespaces of its own (`unshare`), so that nothing of this is seen outside, and nothing is
//! left when it ends, however it ends.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

/// Set for the process that is inside already.
const INSIDE: &str = "HOWDAH_CHAOS_INSIDE";
/// The network of the store and of the tests.
pub const HUB: &str = "10.213.0.1";

/// Goes on in namespaces of its own; returns there.
pub fn enter() -> Result<(), String> {
    if std::env::var_os(INSIDE).is_none() {
        let me = std::env::current_exe().map_err(|error| error.to_string())?;
        let error = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "--"])
            .arg(me)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .exec();
        return Err(format!("cannot run unshare (are you root?): {error}"));
    }
    std::fs::create_dir_all("/run/netns").map_err(|error| error.to_string())?;
    run(&["mount", "-t", "tmpfs", "tmpfs", "/run/netns"])?;
    ip("link set lo up")?;
    ip("link add hub type bridge forward_delay 0")?;
    ip(&format!("addr add {HUB}/24 dev hub"))?;
    ip("link set hub up")
}

/// A member's place in the network.
#[derive(Debug)]
pub struct Place {
    pub address: String,
    namespace: String,
}

/// Whom a member cannot reach, and who cannot reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// Nobody at all.
    Everything,
    /// This address only.
    From(String),
    /// What it sends to this address is lost; what that sends arrives.
    OneWayTo(String),
}

impl Place {
    pub fn new(number: usize) -> Result<Self, String> {
        let namespace = format!("m{number}");
        let address = format!("10.213.0.{}", 10 + number);
        // From a cluster before this one; its interface goes with it.
        let _absent = ip(&format!("netns delete {namespace}"));
        let _absent = ip(&format!("link delete v{number}"));
        ip(&format!("netns add {namespace}"))?;
        ip(&format!(
            "link add v{number} type veth peer name eth0 netns {namespace}"
        ))?;
        ip(&format!("link set v{number} master hub up"))?;
        ip(&format!("-n {namespace} addr add {address}/24 dev eth0"))?;
        ip(&format!("-n {namespace} link set eth0 up"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        Ok(Self { address, namespace })
    }

    /// The way in, for a command.
    pub fn wrapper(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace].map(str::to_owned).into()
    }

    /// Packets vanish without a word, as when a cable is drawn.
    pub fn cut(&self, cut: &Cut) {
        match cut {
            Cut::Everything => {
                self.iptables("-A INPUT ! -i lo -j DROP");
                self.iptables("-A OUTPUT ! -o lo -j DROP");
            }
            Cut::From(address) => {
                self.iptables(&format!("-A INPUT -s {address} -j DROP"));
                self.iptables(&format!("-A OUTPUT -d {address} -j DROP"));
            }
            Cut::OneWayTo(address) => self.iptables(&format!("-A OUTPUT -d {address} -j DROP")),
        }
    }

    pub fn mend(&self) {
        self.iptables("-F");
    }

    fn iptables(&self, rule: &str) {
        let mut command: Vec<&str> = vec!["ip", "netns", "exec", &self.namespace, "iptables", "-w"];
        command.extend(rule.split(' '));
        run(&command).expect("change the member's network");
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    let mut command = vec!["ip"];
    command.extend(arguments.split(' '));
    run(&command)
}

fn run(command: &[&str]) -> Result<(), String> {
    let output = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", command[0]))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{}: {why}", command.join(" ")))
}
