//! What is done to the leader, or to the store.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{
    cluster::{Cluster, Mode, TTL},
    net::Cut,
    node::{Node, descendants},
};

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillNode,
    KillPostmaster,
    KillAgent,
    FreezeAgent,
    FreezeNode,
    CutFromStore,
    CutFromEverything,
    CutOneWay,
    StoreAway,
    StoreWiped,
    Switchover,
    Stop,
}

pub const ALL: [Fault; 12] = [
    Fault::KillNode,
    Fault::KillPostmaster,
    Fault::KillAgent,
    Fault::FreezeAgent,
    Fault::FreezeNode,
    Fault::CutFromStore,
    Fault::CutFromEverything,
    Fault::CutOneWay,
    Fault::StoreAway,
    Fault::StoreWiped,
    Fault::Switchover,
    Fault::Stop,
];

/// What must be true of it beyond what is true of all.
pub struct Demands {
    /// The leader stays, its postgres is not restarted.
    pub no_demotion: bool,
    /// Nothing acknowledged is lost even without synchronous replication.
    pub lossless: bool,
    /// No longer without commits than this.
    pub gap: Duration,
}

impl Fault {
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillNode => "kill-node",
            Self::KillPostmaster => "kill-postmaster",
            Self::KillAgent => "kill-agent",
            Self::FreezeAgent => "freeze-agent",
            Self::FreezeNode => "freeze-node",
            Self::CutFromStore => "cut-from-store",
            Self::CutFromEverything => "cut-from-everything",
            Self::CutOneWay => "cut-one-way",
            Self::StoreAway => "store-away",
            Self::StoreWiped => "store-wiped",
            Self::Switchover => "switchover",
            Self::Stop => "stop",
        }
    }

    /// Bounds are for a machine that has other things to do, too.
    pub const fn demands(self, mode: Mode) -> Demands {
        // In strict mode commits wait for the last standby there is. It may have received more than the standby that
        // leads now, which is no commit that anybody was told of; then it is rewound first.
        let rewind = if matches!(mode, Mode::Strict) { 15 } else { 0 };
        let failover = Duration::from_secs(TTL.as_secs() + 5 + rewind);
        let (no_demotion, lossless, gap) = match self {
            Self::KillNode | Self::FreezeNode | Self::CutFromEverything | Self::FreezeAgent => {
                (false, false, failover)
            }
            Self::KillPostmaster => (false, false, Duration::from_secs(10)),
            Self::KillAgent => (true, true, Duration::from_secs(2)),
            Self::CutFromStore | Self::CutOneWay | Self::StoreAway => (true, true, Duration::from_secs(2)),
            Self::StoreWiped => (true, true, Duration::from_secs(3)),
            Self::Switchover | Self::Stop => (false, true, Duration::from_secs(5)),
        };
        Demands {
            no_demotion,
            lossless,
            gap,
        }
    }

    /// Does it, and takes it back; the cluster then has to heal by itself.
    pub async fn inflict(self, cluster: &mut Cluster, leader: usize) -> Result<(), String> {
        match self {
            Self::KillNode => {
                cluster.nodes[leader].kill_node();
                cluster.other_leader(leader).await?;
                cluster.nodes[leader].start();
            }
            Self::KillPostmaster => {
                let pid = cluster.nodes[leader].postmaster_pid().ok_or("no postmaster")?;
                signal(pid, Signal::KILL);
                cluster.writes_again().await?;
            }
            Self::KillAgent => {
                let pid = cluster.nodes[leader].agent_pid().ok_or("no agent")?;
                signal(pid, Signal::KILL);
                pause(TTL).await;
            }
            Self::FreezeAgent => {
                let pid = cluster.nodes[leader].agent_pid().ok_or("no agent")?;
                signal(pid, Signal::STOP);
                pause(TTL * 2).await;
                // Nobody was there to demote, so init ended everything.
                ended(&mut cluster.nodes[leader]).await?;
                cluster.nodes[leader].start();
            }
            Self::FreezeNode => {
                let frozen = freeze(&cluster.nodes[leader]);
                pause(TTL * 2).await;
                cluster.thawed = Some(Instant::now());
                for pid in &frozen {
                    signal(*pid, Signal::CONT);
                }
                ended(&mut cluster.nodes[leader]).await?;
                cluster.nodes[leader].start();
            }
            Self::CutFromStore => cut(cluster, leader, &Cut::From(crate::net::HUB.to_owned())).await,
            Self::CutOneWay => cut(cluster, leader, &Cut::OneWayTo(crate::net::HUB.to_owned())).await,
            Self::CutFromEverything => {
                cut(cluster, leader, &Cut::Everything).await;
                cluster.revive(leader);
            }
            Self::StoreAway => {
                cluster.etcd.freeze();
                pause(TTL * 3).await;
                cluster.etcd.thaw();
            }
            Self::StoreWiped => {
                cluster.etcd.kill();
                cluster.etcd.wipe();
                cluster.etcd.start_again();
            }
            Self::Switchover => switch(cluster, leader).await?,
            Self::Stop => {
                let _clean = cluster.nodes[leader].stop(Duration::from_secs(20)).await;
                cluster.other_leader(leader).await?;
                cluster.nodes[leader].start();
            }
        }
        Ok(())
    }
}

async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

async fn cut(cluster: &Cluster, leader: usize, cut: &Cut) {
    cluster.places[leader].cut(cut);
    pause(TTL * 2).await;
    cluster.places[leader].mend();
}

async fn switch(cluster: &Cluster, leader: usize) -> Result<(), String> {
    let node = &cluster.nodes[leader];
    let body = json!({"leader": node.name});
    let (code, answer) = node.request("POST", "/switchover", body).await?;
    if code == 200 {
        Ok(())
    } else {
        Err(format!("the switchover was refused: {code} {answer}"))
    }
}

/// The whole member ended by itself.
async fn ended(node: &mut Node) -> Result<(), String> {
    let start = Instant::now();
    loop {
        if node.exited().is_some() {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(5) {
            return Err(format!("{} was not ended although its time was up", node.name));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Everything stands still, as in a paused virtual machine; init first, so that it starts nothing meanwhile.
fn freeze(node: &Node) -> Vec<i32> {
    let init = node.init_pid();
    let mut frozen = vec![init];
    signal(init, Signal::STOP);
    // What was started meanwhile is seen in the next round.
    for _ in 0..3 {
        for pid in descendants(init) {
            if !frozen.contains(&pid) {
                signal(pid, Signal::STOP);
                frozen.push(pid);
            }
        }
    }
    frozen
}

fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself meanwhile.
        let _gone = kill_process(pid, signal);
    }
}
