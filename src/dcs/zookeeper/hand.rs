//! The session that the lock and the member key hang on.
//!
//! Until when it lasts is for the ensemble's leader to say, and a server beside it answers without asking there: neither
//! a ping nor a read proves that the leader heard of us, and a write does not count as a sign of life either. What does
//! is going on with the session on a new connection: the server has the leader check it, which counts the whole
//! timeout anew from then. A transaction that is carried out on the same connection afterwards proves that a quorum
//! still follows that leader. So to extend the session is to connect again, and nothing else here extends it. (A later
//! leader gives all sessions their whole timeout anew.)

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Failure, ZooKeeper,
    jute::{Change, code},
    lock, node_of,
    wire::{Ask, Session, Wire},
};
use crate::{
    clock::Boottime,
    dcs::{DcsError, Hold, Lock},
};

/// Between a connection that broke and the next one.
const PAUSE: Duration = Duration::from_millis(50);
/// A session is replaced when its ttl changes or it was lost; a key that hangs on an older one is long gone.
const OURS_MAX: usize = 16;

/// The session, and a connection of it.
#[derive(Default)]
pub(super) struct Hand {
    session: Option<Session>,
    wire: Option<Wire>,
    /// When it was extended last.
    sent_at: Boottime,
    told: bool,
}

/// What is done with it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work<'a> {
    /// Take the lock.
    Take,
    /// Keep it.
    Keep,
    /// Give it up, with this status.
    Drop(Option<&'a str>),
    /// Publish the member.
    Member(&'a str),
}

impl Hand {
    pub(super) fn id(&self) -> i64 {
        self.session.as_ref().map_or(0, |session| session.id)
    }

    pub(super) fn wire(&mut self) -> Option<&mut Wire> {
        self.wire.as_mut()
    }

    /// What an extension just now is worth.
    pub(super) fn hold(&self) -> Hold {
        Hold {
            sent_at: self.sent_at,
            ttl: self
                .session
                .as_ref()
                .map_or(Duration::ZERO, |session| session.ttl),
            lease: self.id(),
        }
    }
}

impl ZooKeeper {
    /// Does something with the hand, again while connections break, until the deadline: all that is done with it looks
    /// first at what is there.
    pub(super) async fn with_hand(
        &self,
        work: Work<'_>,
        deadline: Instant,
    ) -> Result<Option<Lock>, DcsError> {
        let begun = Instant::now();
        let mut hand = timeout_at(deadline, self.hand.lock())
            .await
            .map_err(|_| self.timeout(begun.elapsed()))?;
        loop {
            let error = match timeout_at(deadline, self.work(&mut hand, work, deadline)).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(Failure::Broken(error))) => error,
                Ok(Err(other)) => return Err(self.error(other)),
                Err(_) => {
                    hand.wire = None;
                    return Err(self.timeout(begun.elapsed()));
                }
            };
            hand.wire = None;
            if deadline.saturating_duration_since(Instant::now()) <= PAUSE {
                return Err(error);
            }
            sleep(PAUSE).await;
        }
    }

    /// Work that answers with the lock.
    pub(super) async fn lock_work(&self, work: Work<'_>, deadline: Instant) -> Result<Lock, DcsError> {
        let done = self.with_hand(work, deadline).await?;
        done.ok_or_else(|| self.timeout(Duration::ZERO))
    }

    async fn work(
        &self,
        hand: &mut Hand,
        work: Work<'_>,
        deadline: Instant,
    ) -> Result<Option<Lock>, Failure> {
        match work {
            Work::Take => self.take_lock(hand, deadline).await.map(Some),
            Work::Keep => self.keep_lock(hand, deadline).await.map(Some),
            Work::Drop(status) => self.drop_lock(hand, status, deadline).await.map(|()| None),
            Work::Member(value) => self.put_member(hand, value, deadline).await.map(|()| None),
        }
    }

    /// Extends the session, or makes one. What it is worth is proven by a transaction on the connection that follows.
    pub(super) async fn extend<'a>(
        &self,
        hand: &'a mut Hand,
        deadline: Instant,
    ) -> Result<&'a mut Wire, Failure> {
        hand.wire = None;
        let ttl = self.timing().ttl;
        if hand.session.as_ref().is_some_and(|session| session.asked != ttl) {
            // The old one is left to expire: what hangs on it has to be moved first.
            hand.session = None;
        }
        loop {
            let connected = self
                .ensemble
                .connect(hand.session.as_ref(), ttl, deadline)
                .await?;
            let Some((wire, session, sent_at)) = connected else {
                hand.session = None;
                continue;
            };
            if hand.session.is_none() {
                self.note_session(&session);
                if session.ttl != ttl && !std::mem::replace(&mut hand.told, true) {
                    tracing::warn!(
                        ?ttl,
                        "zookeeper counts with {:?} instead (minSessionTimeout, maxSessionTimeout)",
                        session.ttl
                    );
                }
            }
            hand.session = Some(session);
            hand.sent_at = sent_at;
            return Ok(hand.wire.insert(wire));
        }
    }

    fn note_session(&self, session: &Session) {
        tracing::debug!(session = format_args!("{:x}", session.id), ttl = ?session.ttl, "made a new session");
        let mut ours = lock(&self.ours);
        if ours.len() >= OURS_MAX {
            ours.remove(0);
        }
        ours.push(session.id);
    }

    pub(super) async fn put_member(
        &self,
        hand: &mut Hand,
        value: &str,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let timing = self.timing();
        let due = Boottime::now().since(hand.sent_at) >= timing.ttl / 3;
        let other = hand
            .session
            .as_ref()
            .is_none_or(|session| session.asked != timing.ttl);
        if due || other || hand.wire.is_none() {
            self.extend(hand, deadline).await?;
        }
        let id = hand.id();
        if lock(&self.member)
            .as_ref()
            .is_some_and(|(old, bound)| old == value && *bound == id)
        {
            return Ok(());
        }
        let Some(wire) = hand.wire.as_mut() else {
            return Ok(());
        };
        let path = self.member_path();
        loop {
            let seen = node_of(wire.ask(&[Ask::Data(&path)]).await?.into_iter().next())?;
            let create = Change::Create {
                path: path.clone(),
                value: value.to_owned(),
                ephemeral: true,
            };
            let changes = match seen {
                None => vec![create],
                Some(node) if node.stat.owner == id => vec![Change::Set {
                    path: path.clone(),
                    value: value.to_owned(),
                    version: None,
                }],
                Some(_) => vec![Change::Delete { path: path.clone() }, create],
            };
            match self.change(wire, &changes).await {
                Ok(_) => break,
                Err(Failure::Refused(code::NODE_EXISTS)) => {}
                Err(Failure::Refused(code::NO_NODE)) => self.make_folders(wire).await?,
                Err(error) => return Err(error),
            }
        }
        *lock(&self.member) = Some((value.to_owned(), id));
        Ok(())
    }
}
