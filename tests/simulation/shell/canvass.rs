//! Asking the other members to accept this primary while the store does not answer (`src/agent/canvass.rs`), and their
//! answers (`src/api/failsafe.rs`).

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use howdah::{
    ha::{
        failsafe::{self, Answers, Members, Question, Said, Sight},
        lease::{Right, interval},
    },
    model::MemberName,
};

use super::Agent;
use crate::{
    exec::{Bell, First, race},
    mutants::Mutant,
    world::World,
};

const OPEN_MAX: usize = 8;
const THANKS_LIMIT: Duration = Duration::from_secs(2);

/// One round of questions.
pub(super) struct Round {
    of: Members,
    number: u64,
    answers: RefCell<Answers>,
    open: Cell<usize>,
    heard: Bell,
    over: Cell<bool>,
}

impl Agent {
    pub(super) fn failsafe_sight(&self) -> Sight {
        let mut round = self.round.borrow_mut();
        round.take_if(|round| round.over.get());
        Sight {
            promise: self.lease.promised(),
            answers: round
                .as_ref()
                .map(|round| round.answers.borrow().clone())
                .unwrap_or_default(),
        }
    }

    pub(super) fn ask_consent(&self, of: &Members) {
        let mut present = self.round.borrow_mut();
        present.take_if(|round| round.over.get());
        if present.as_ref().is_some_and(|round| round.of == *of) {
            return;
        }
        if let Some(old) = present.take() {
            old.over.set(true);
        }
        let round = Rc::new(Round {
            of: of.clone(),
            number: self.world.sim.now(),
            answers: RefCell::default(),
            open: Cell::new(0),
            heard: Bell::default(),
            over: Cell::new(false),
        });
        *present = Some(Rc::clone(&round));
        let agent = self.world.nodes[self.node].agent.borrow().clone();
        if let Some(agent) = agent {
            self.world.sim.spawn(self.proc, async move {
                canvass(&agent, &round).await;
                round.over.set(true);
            });
        }
    }
}

async fn canvass(agent: &Rc<Agent>, round: &Rc<Round>) {
    let (world, lease) = (&agent.world, &agent.lease);
    let Some(begun_with) = lease.right() else { return };
    let ttl = begun_with.hold().ttl;
    let mut number = 0;
    let mut next = agent.now();
    loop {
        let (mut heard, mut changed) = (round.heard.count(), lease.changed.count());
        if agent.now() >= next {
            next = agent.now() + interval(ttl);
            number += 1;
            if round.open.get() < OPEN_MAX * round.of.len() {
                for name in round.of.keys() {
                    ask(agent, round, name, number, failsafe::usable(ttl));
                }
            }
        }
        if over(&begun_with, lease.right().as_ref()) || round.over.get() {
            break;
        }
        let now = agent.now();
        let consent = match world.mutant {
            Some(Mutant::FailsafeIgnoresNo) => Some(now),
            _ => failsafe::consent(&round.of, &round.answers.borrow(), now),
        };
        if let Some(asked_at) = consent {
            lease.extend(asked_at);
        }
        race(
            race(
                round.heard.rung(&world.sim, &mut heard),
                lease.changed.rung(&world.sim, &mut changed),
            ),
            world.local_sleep(agent.node, next.since(agent.now())),
        )
        .await;
    }
    if lease.lost_to().is_none() || lease.right().is_some() {
        for name in round.of.keys() {
            give_back(
                agent,
                name,
                Question {
                    round: round.number,
                    number,
                },
            );
        }
    }
}

/// Asking has an end: the lock was renewed since, or there is no right that could be extended.
fn over(begun_with: &Right, now: Option<&Right>) -> bool {
    match now {
        None => true,
        Some(Right::Lease(hold)) => hold.sent_at > begun_with.hold().sent_at,
        Some(Right::Consent { .. }) => false,
    }
}

/// `POST /failsafe`.
fn ask(agent: &Rc<Agent>, round: &Rc<Round>, name: &MemberName, number: u64, limit: Duration) {
    let (agent, round, name) = (Rc::clone(agent), Rc::clone(round), name.clone());
    let world = Rc::clone(&agent.world);
    round.open.set(round.open.get() + 1);
    world.sim.clone().spawn(agent.proc, async move {
        let asked_at = agent.now();
        let question = Question {
            round: round.number,
            number,
        };
        let ttl = agent.dynamic.borrow().timing.ttl;
        let answer = race(
            exchange(&world, agent.node, &name, question, ttl),
            world.local_sleep(agent.node, limit),
        );
        let said = match answer.await {
            First::One(true) => Said::Yes(asked_at),
            First::One(false) => Said::No("Running as a leader".to_owned()),
            First::Two(()) => Said::No("no answer".to_owned()),
        };
        let newer = match (round.answers.borrow().get(&name), &said) {
            (Some(Said::Yes(old)), Said::Yes(new)) => new > old,
            _ => true,
        };
        if newer {
            round.answers.borrow_mut().insert(name, said);
        }
        round.open.set(round.open.get() - 1);
        round.heard.ring(&world.sim);
    });
}

async fn exchange(
    world: &Rc<World>,
    from: usize,
    name: &MemberName,
    question: Question,
    theirs: Duration,
) -> bool {
    let Some(to) = world.index_of(name) else {
        return false;
    };
    world.net.transit(&world.sim, from, to).await;
    let Some(other) = world.nodes[to].agent.borrow().clone() else {
        return false;
    };
    let reply = crate::exec::Reply::new();
    let (answer, sim, me) = (
        Rc::clone(&reply),
        world.sim.clone(),
        world.nodes[from].name.clone(),
    );
    world.sim.spawn(other.proc, async move {
        let accepted = accept(&other, me, question, theirs);
        answer.send(&sim, accepted);
    });
    let accepted = reply.wait(&world.sim).await;
    world.net.transit(&world.sim, to, from).await;
    accepted
}

fn accept(agent: &Agent, to: MemberName, question: Question, theirs: Duration) -> bool {
    let dynamic = agent.dynamic.borrow().clone();
    if !dynamic.failsafe_mode || agent.snapshot.borrow().primary {
        return false;
    }
    let ttl = theirs.clamp(
        dynamic.timing.ttl,
        Duration::from_secs(3600).max(dynamic.timing.ttl),
    );
    let accepted = agent.lease.promise(to.clone(), question, ttl);
    if accepted {
        agent
            .world
            .say(agent.node, || format!("promises {to} not to lead"));
    }
    accepted
}

/// `DELETE /failsafe`: at best effort.
fn give_back(agent: &Rc<Agent>, name: &MemberName, question: Question) {
    let world = Rc::clone(&agent.world);
    let Some(to) = world.index_of(name) else { return };
    let (from, me) = (agent.node, world.nodes[agent.node].name.clone());
    world.sim.clone().spawn(agent.proc, async move {
        let told = async {
            world.net.transit(&world.sim, from, to).await;
            let other = world.nodes[to].agent.borrow().clone();
            if let Some(other) = other {
                let task = Rc::clone(&other);
                world.sim.spawn(other.proc, async move {
                    task.lease.take_promise_back(&me, question);
                });
            }
        };
        race(told, world.local_sleep(from, THANKS_LIMIT)).await;
    });
}
