//! What a plan's steps and jobs do to the model.

use super::*;
use crate::ha::Failure;

impl World {
    /// Carries out one step; `false` ends the turn.
    pub(super) fn act(&mut self, name: &str, view: &View, action: &Action) -> bool {
        let now = self.now;
        let me = MemberName::from(name);
        let reachable = !self.nodes[name].cut_off;
        let mine = self.cluster.is_leader(&me);
        match action {
            Action::AcquireLock if reachable && self.cluster.leader.is_none() => {
                self.version += 1;
                self.cluster.leader = Some(Leader {
                    name: me,
                    version: Version(self.version),
                    lease: 7,
                });
                self.take_hold(name);
                self.wake();
            }
            Action::RenewLock if reachable && mine => self.take_hold(name),
            Action::ReleaseLock(end) if reachable => self.release(name, *end),
            Action::ClaimInitialize if reachable && self.cluster.initialize.is_none() => {
                self.version += 1;
                self.cluster.initialize = Some(String::new());
                self.cluster.initialize_version = Some(Version(self.version));
            }
            Action::WriteInitialize(id, version) if self.cluster.initialize_version == *version => {
                self.cluster.initialize = Some(id.0.clone());
                self.cluster.initialize_version = Some(Version(self.version));
            }
            Action::AbandonInitialize(version) if self.cluster.initialize_version == Some(*version) => {
                (self.cluster.initialize, self.cluster.initialize_version) = (None, None);
            }
            Action::WriteConfig => self.cluster.config = Some(serde_json::Map::new()),
            Action::ClearFailover if reachable => self.cluster.failover = None,
            Action::LeaderDuties => {
                if let Some(data) = &self.nodes[name].data {
                    self.cluster.status.optime = Lsn(data.position);
                    self.cluster.history = Some(data.history.clone());
                    let members = self.cluster.members.iter().map(|m| m.name.slot());
                    self.cluster.status.retain_slots = Some(members.collect());
                }
            }
            Action::Follow(up) => {
                self.node(name).upstream = up.as_ref().map(|up| up.member.clone());
            }
            Action::Begin(job) => {
                assert!(view.job.is_none(), "{name}: the job slot is taken");
                let running = RunningJob {
                    job: job.clone(),
                    since: now,
                };
                let node = self.node(name);
                node.job = Some((running, now + JOB_TIME));
                node.next = now;
            }
            Action::CancelJob => {
                let node = self.node(name);
                if let Some((running, _)) = node.job.take() {
                    node.finished = Some(Finished {
                        job: running.job,
                        outcome: Err(Failure::Cancelled("by the plan".into())),
                    });
                    node.next = now;
                }
            }
            Action::Exit(exit) => {
                self.node(name).log.push(format!("exit {exit:?}"));
                self.kill(name);
            }
            _ => return false,
        }
        true
    }

    fn take_hold(&mut self, name: &str) {
        let now = self.now;
        self.lease_end = now + TTL;
        self.node(name).hold = Some(Hold {
            sent_at: now,
            ttl: TTL,
            lease: 7,
        });
    }

    fn release(&mut self, name: &str, end: Option<Lsn>) {
        let node = self.node(name);
        let may_write = node.pg == Pg::Primary || (node.pg == Pg::Replica && node.promote_requested);
        assert!(
            !may_write,
            "{name} releases the lock and may write\n{}",
            self.report()
        );
        self.node(name).hold = None;
        if self.cluster.is_leader(&name.into()) {
            self.cluster.leader = None;
            if let Some(end) = end {
                self.cluster.status.optime = end;
            }
            self.wake();
        }
    }

    pub(super) fn finish_job(&mut self, name: &str) {
        let now = self.now;
        let Some((running, _)) = self.node(name).job.take_if(|(_, end)| *end <= now) else {
            return;
        };
        let outcome = self.carry_out(name, &running.job).map_err(Failure::from);
        let node = self.node(name);
        node.next = now;
        node.finished = Some(Finished {
            job: running.job,
            outcome,
        });
    }

    fn carry_out(&mut self, name: &str, job: &Job) -> Result<(), String> {
        let source = |world: &Self, up: &MemberName| {
            let running = world.facts(&up.0).is_ok();
            let data = world.nodes.get(&up.0).and_then(|n| n.data.clone());
            data.filter(|_| running).ok_or("the source is gone")
        };
        match job {
            Job::Bootstrap => {
                let node = self.node(name);
                node.data = Some(Data {
                    timeline: 1,
                    position: 100,
                    history: Vec::new(),
                    state: DbState::InProduction,
                    standby_signal: false,
                });
                node.pg = Pg::Primary;
                let view = view().view;
                if !self.act(name, &view, &Action::AcquireLock) {
                    return Err("the lock is taken".to_owned());
                }
                let version = self.cluster.initialize_version;
                self.act(
                    name,
                    &view,
                    &Action::WriteInitialize(SystemId(SYSTEM.into()), version),
                );
            }
            // The model's cluster follows nobody and has no archive.
            Job::BootstrapStandby | Job::Restore => return Err("not in this model".to_owned()),
            Job::Clone { from: up, .. } | Job::Rewind(up) => {
                self.node(name).stopped();
                let data = source(self, &up.member)?;
                let node = self.node(name);
                let same_number = node
                    .data
                    .as_ref()
                    .is_some_and(|own| own.timeline == data.timeline);
                if matches!(job, Job::Rewind(_)) && same_number {
                    return Ok(()); // pg_rewind sees nothing to do
                }
                node.wal_is_gone = false;
                self.node(name).data = Some(Data {
                    state: DbState::InArchiveRecovery,
                    standby_signal: true,
                    ..data
                });
            }
            Job::Start(StartAs::Primary) => self.started(name, Pg::Primary),
            Job::Start(StartAs::Replica(up)) => {
                self.node(name).upstream = up.as_ref().map(|up| up.member.clone());
                self.started(name, Pg::Replica);
            }
            Job::CopySlots { .. } => self.node(name).stopped(),
            Job::Restart => self.node(name).hung = false,
            Job::Promote => {
                let used = self.cluster.timeline().0;
                let node = self.node(name);
                let data = node.data.as_mut().ok_or("no data")?;
                if node.pg != Pg::Replica {
                    return Err("no replica".to_owned());
                }
                node.promote_requested = true;
                if node.promotion_stalls {
                    return Err("not promoted in time".to_owned());
                }
                data.history.push(HistoryRow {
                    timeline: Timeline(data.timeline),
                    lsn: Lsn(data.position),
                    ..history(2).remove(0)
                });
                // Never a number the cluster has used: two timelines of one number cannot be told apart, so no member
                // would notice that it has diverged. PostgreSQL itself only knows the history files it can see.
                data.timeline = data.timeline.max(used) + 1;
                self.started(name, Pg::Primary);
            }
            Job::Demote { mode, .. } => {
                let node = self.node(name);
                let primary = node.pg == Pg::Primary;
                node.stopped();
                let hard = matches!(mode, DemoteMode::Immediate | DemoteMode::ImmediateNoLock);
                if let Some(data) = node.data.as_mut().filter(|_| !hard) {
                    data.state = if primary {
                        DbState::ShutDown
                    } else {
                        DbState::ShutDownInRecovery
                    };
                }
                let end = node.data.as_ref().map(|data| Lsn(data.position));
                if primary && !hard {
                    self.flush(name);
                }
                if !matches!(mode, DemoteMode::ImmediateNoLock | DemoteMode::Offline)
                    && !self.nodes[name].cut_off
                {
                    self.release(name, end.filter(|_| !hard));
                }
            }
        }
        Ok(())
    }

    /// A postgres that is stopped in order first sends everything to those who stream from it.
    fn flush(&mut self, name: &str) {
        let Some(data) = self.nodes[name].data.clone() else {
            return;
        };
        for node in self.nodes.values_mut() {
            let follows = node.streaming && node.upstream == Some(name.into());
            if let Some(theirs) = node.data.as_mut().filter(|_| follows && !node.frozen) {
                theirs.position = data.position;
            }
        }
    }

    fn started(&mut self, name: &str, pg: Pg) {
        let node = self.node(name);
        node.pg = pg;
        if let Some(data) = &mut node.data {
            data.standby_signal = pg == Pg::Replica;
            data.state = match pg {
                Pg::Replica => DbState::InArchiveRecovery,
                _ => DbState::InProduction,
            };
        }
    }
}
