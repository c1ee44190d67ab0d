//! PID 1, as in `src/init`: starts a crashed agent again, and kills everything when the fence deadline passes.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

use howdah::clock::Boottime;

use crate::{
    exec::{Bell, MS, Proc, SECOND, Sim, race},
    mutants::Mutant,
    world::World,
};

#[derive(Default)]
pub(crate) struct Init {
    pub(crate) proc: Cell<Option<Proc>>,
    fence: Cell<Option<(Boottime, i64)>>,
    armed: Bell,
    restarts: RefCell<VecDeque<Boottime>>,
}

impl Init {
    pub(crate) fn set_fence(&self, sim: &Sim, fence: Option<(Boottime, i64)>) {
        if self.proc.get().is_some() {
            self.fence.set(fence);
            self.armed.ring(sim);
        }
    }

    pub(crate) fn fence(&self) -> Option<(Boottime, i64)> {
        self.fence.get()
    }

    pub(crate) fn reset(&self) {
        self.proc.set(None);
        self.fence.set(None);
        self.restarts.borrow_mut().clear();
    }
}

/// The watch on the deadline, for the life of the container.
pub(crate) async fn guard(world: Rc<World>, node: usize) {
    let host = &world.nodes[node];
    loop {
        let mut seen = host.init.armed.count();
        match host.init.fence() {
            Some(_) if world.mutant == Some(Mutant::NoFence) => {
                host.init.armed.rung(&world.sim, &mut seen).await
            }
            Some((at, _)) if at <= host.local(&world) => {
                // From the look at the clock to the last signal.
                world.sim.sleep(world.between(0, 8 * MS)).await;
                world.say(node, || {
                    "init: fence deadline passed, killing everything".to_owned()
                });
                world.cover(node, "event:fenced");
                world.container_ends(node, Some(world.between(SECOND, 4 * SECOND)));
                return;
            }
            Some((at, _)) => {
                let left = at.since(host.local(&world));
                race(
                    host.init.armed.rung(&world.sim, &mut seen),
                    world.local_sleep(node, left),
                )
                .await;
            }
            None => host.init.armed.rung(&world.sim, &mut seen).await,
        }
    }
}

/// The agent died: it is started again within a budget, with the record of its lease.
pub(crate) fn agent_crashed(world: &Rc<World>, node: usize) {
    let host = &world.nodes[node];
    let now = host.local(world);
    let used = {
        let mut restarts = host.init.restarts.borrow_mut();
        while restarts
            .front()
            .is_some_and(|at| now.since(*at) >= Duration::from_secs(60))
        {
            restarts.pop_front();
        }
        let used = restarts.len();
        restarts.push_back(now);
        used
    };
    if used >= 5 || host.stopping.get() {
        world.say(node, || "init: restart budget of the agent spent".to_owned());
        world.container_ends(node, Some(world.between(SECOND, 4 * SECOND)));
        return;
    }
    let pause = if used == 0 { 0 } else { (100 * MS) << (used - 1) };
    let Some(proc) = host.init.proc.get() else { return };
    let world = Rc::clone(world);
    world.sim.clone().spawn(proc, async move {
        world.sim.sleep(pause + world.between(20 * MS, 150 * MS)).await;
        super::start_agent(&world, node);
    });
}
