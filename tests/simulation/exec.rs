//! A deterministic executor with simulated time: one thread, tasks that belong to processes, and processes that can be
//! killed (their tasks are dropped where they stand) or frozen (their tasks are not polled until the thaw).
//!
//! Futures of this world register the running task themselves ([`Sim::wake_at`], [`Bell`]), so the `Waker` of the
//! standard library is not used, and no future from elsewhere that needs one can be awaited here.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Simulated time in nanoseconds since the begin of the run: the true time, which no member sees.
pub(crate) type Nanos = u64;

pub(crate) const MS: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000 * MS;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TaskId {
    index: u32,
    generation: u32,
}

/// A process: what is killed and frozen together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Proc(usize);

type Work = Pin<Box<dyn Future<Output = ()>>>;

struct Slot {
    generation: u32,
    proc: Proc,
    queued: bool,
    work: Option<Work>,
}

#[derive(Default)]
struct ProcState {
    dead: bool,
    frozen: bool,
    deferred: Vec<TaskId>,
    tasks: Vec<TaskId>,
}

struct Inner {
    now: Cell<Nanos>,
    seq: Cell<u64>,
    polls: Cell<u64>,
    current: Cell<TaskId>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<TaskId>>,
    timers: RefCell<BinaryHeap<Reverse<(Nanos, u64, TaskId)>>>,
    procs: RefCell<Vec<ProcState>>,
}

/// A handle on the executor.
#[derive(Clone)]
pub(crate) struct Sim(Rc<Inner>);

const NOBODY: TaskId = TaskId {
    index: u32::MAX,
    generation: 0,
};

impl Sim {
    pub(crate) fn new() -> Self {
        Self(Rc::new(Inner {
            now: Cell::new(0),
            seq: Cell::new(0),
            polls: Cell::new(0),
            current: Cell::new(NOBODY),
            slots: RefCell::default(),
            free: RefCell::default(),
            ready: RefCell::default(),
            timers: RefCell::default(),
            procs: RefCell::default(),
        }))
    }

    pub(crate) fn now(&self) -> Nanos {
        self.0.now.get()
    }

    pub(crate) fn polls(&self) -> u64 {
        self.0.polls.get()
    }

    pub(crate) fn process(&self) -> Proc {
        let mut procs = self.0.procs.borrow_mut();
        procs.push(ProcState::default());
        Proc(procs.len() - 1)
    }

    pub(crate) fn alive(&self, proc: Proc) -> bool {
        !self.0.procs.borrow()[proc.0].dead
    }

    pub(crate) fn frozen(&self, proc: Proc) -> bool {
        self.0.procs.borrow()[proc.0].frozen
    }

    /// Starts a task; nothing happens in a process that is dead.
    pub(crate) fn spawn(&self, proc: Proc, work: impl Future<Output = ()> + 'static) {
        if !self.alive(proc) {
            return;
        }
        let mut slots = self.0.slots.borrow_mut();
        let index = self.0.free.borrow_mut().pop();
        let index = index.unwrap_or_else(|| {
            slots.push(Slot {
                generation: 0,
                proc,
                queued: false,
                work: None,
            });
            u32::try_from(slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut slots[index as usize];
        slot.proc = proc;
        slot.work = Some(Box::pin(work));
        slot.queued = true;
        let id = TaskId {
            index,
            generation: slot.generation,
        };
        self.0.ready.borrow_mut().push_back(id);
        let tasks = &mut self.0.procs.borrow_mut()[proc.0].tasks;
        if tasks.len() >= 32 {
            tasks.retain(|id| slots[id.index as usize].generation == id.generation);
        }
        tasks.push(id);
    }

    /// `kill -9`.
    pub(crate) fn kill(&self, proc: Proc) {
        let tasks = {
            let mut procs = self.0.procs.borrow_mut();
            let state = &mut procs[proc.0];
            state.dead = true;
            state.deferred.clear();
            std::mem::take(&mut state.tasks)
        };
        let mut dropped = Vec::new();
        for id in tasks {
            dropped.push(self.retire(id));
        }
        // Destructors may ring bells: nothing is borrowed here.
        drop(dropped);
    }

    fn retire(&self, id: TaskId) -> Option<Work> {
        let mut slots = self.0.slots.borrow_mut();
        let slot = &mut slots[id.index as usize];
        if slot.generation != id.generation {
            return None;
        }
        slot.generation += 1;
        slot.queued = false;
        let work = slot.work.take();
        self.0.free.borrow_mut().push(id.index);
        work
    }

    /// SIGSTOP.
    pub(crate) fn freeze(&self, proc: Proc) {
        self.0.procs.borrow_mut()[proc.0].frozen = true;
    }

    /// SIGCONT; its tasks go on after `delay`.
    pub(crate) fn thaw(&self, proc: Proc, delay: Nanos) {
        let deferred = {
            let mut procs = self.0.procs.borrow_mut();
            procs[proc.0].frozen = false;
            std::mem::take(&mut procs[proc.0].deferred)
        };
        for id in deferred {
            self.timer(self.now() + delay, id);
        }
    }

    pub(crate) fn wake(&self, id: TaskId) {
        let mut slots = self.0.slots.borrow_mut();
        let Some(slot) = slots.get_mut(id.index as usize) else {
            return;
        };
        if slot.generation == id.generation && !slot.queued {
            slot.queued = true;
            self.0.ready.borrow_mut().push_back(id);
        }
    }

    pub(crate) fn current(&self) -> TaskId {
        self.0.current.get()
    }

    fn timer(&self, at: Nanos, id: TaskId) {
        let seq = self.0.seq.get();
        self.0.seq.set(seq + 1);
        self.0.timers.borrow_mut().push(Reverse((at, seq, id)));
    }

    /// The running task is polled again at that time.
    pub(crate) fn wake_at(&self, at: Nanos) {
        self.timer(at, self.current());
    }

    /// Until the true time `at`.
    pub(crate) fn until(&self, at: Nanos) -> Sleep {
        Sleep {
            sim: self.clone(),
            at,
            registered: false,
        }
    }

    pub(crate) fn sleep(&self, time: Nanos) -> Sleep {
        self.until(self.now().saturating_add(time))
    }

    /// Runs everything up to the true time `end`, or until `stop` says so.
    pub(crate) fn run(&self, end: Nanos, stop: &dyn Fn() -> bool) {
        loop {
            while let Some(id) = self.next_ready() {
                self.poll(id);
                if stop() {
                    return;
                }
            }
            let due = {
                let mut timers = self.0.timers.borrow_mut();
                match timers.peek() {
                    Some(Reverse((at, ..))) if *at <= end => timers.pop(),
                    _ => None,
                }
            };
            let Some(Reverse((at, _, id))) = due else {
                self.0.now.set(end);
                return;
            };
            self.0.now.set(at.max(self.now()));
            self.wake(id);
        }
    }

    fn next_ready(&self) -> Option<TaskId> {
        self.0.ready.borrow_mut().pop_front()
    }

    fn poll(&self, id: TaskId) {
        let work = {
            let mut slots = self.0.slots.borrow_mut();
            let slot = &mut slots[id.index as usize];
            if slot.generation != id.generation {
                return;
            }
            slot.queued = false;
            let proc = &mut self.0.procs.borrow_mut()[slot.proc.0];
            if proc.frozen {
                if !proc.deferred.contains(&id) {
                    proc.deferred.push(id);
                }
                return;
            }
            slot.work.take()
        };
        let Some(mut work) = work else { return };
        self.0.polls.set(self.0.polls.get() + 1);
        let before = self.0.current.replace(id);
        let done = work
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready();
        self.0.current.set(before);
        let mut slots = self.0.slots.borrow_mut();
        let slot = &mut slots[id.index as usize];
        if slot.generation == id.generation && !done {
            slot.work = Some(work);
            return;
        }
        let finished = slot.generation == id.generation;
        drop(slots);
        if finished {
            let _nothing = self.retire(id);
        }
        drop(work);
    }

    /// Ends what every process still does. Tasks and their world hold each other.
    pub(crate) fn end(&self) {
        let procs = self.0.procs.borrow().len();
        for proc in 0..procs {
            self.kill(Proc(proc));
        }
    }
}

/// See [`Sim::until`].
pub(crate) struct Sleep {
    sim: Sim,
    at: Nanos,
    registered: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.sim.now() >= self.at {
            return Poll::Ready(());
        }
        if !self.registered {
            self.registered = true;
            self.sim.wake_at(self.at);
        }
        Poll::Pending
    }
}

/// Something to wait for that happens again and again. Whoever waits remembers what it has seen, so nothing that
/// happens meanwhile is missed.
#[derive(Default)]
pub(crate) struct Bell {
    count: Cell<u64>,
    waiting: RefCell<Vec<TaskId>>,
}

impl Bell {
    pub(crate) fn ring(&self, sim: &Sim) {
        self.count.set(self.count.get() + 1);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for id in waiting {
            sim.wake(id);
        }
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count.get()
    }

    /// Resolves once it has rung since `seen`, and updates that.
    pub(crate) async fn rung(&self, sim: &Sim, seen: &mut u64) {
        poll_fn(|_| {
            if self.count.get() != *seen {
                *seen = self.count.get();
                return Poll::Ready(());
            }
            let me = sim.current();
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.contains(&me) {
                waiting.push(me);
            }
            Poll::Pending
        })
        .await;
    }

    /// Resolves with the next ring.
    pub(crate) async fn next(&self, sim: &Sim) {
        let mut seen = self.count();
        self.rung(sim, &mut seen).await;
    }
}

/// Which of two futures was first.
pub(crate) enum First<A, B> {
    One(A),
    Two(B),
}

/// Waits for the first of two; the first is looked at first.
pub(crate) async fn race<A, B>(one: impl Future<Output = A>, two: impl Future<Output = B>) -> First<A, B> {
    let mut one = pin!(one);
    let mut two = pin!(two);
    poll_fn(|context| {
        if let Poll::Ready(done) = one.as_mut().poll(context) {
            return Poll::Ready(First::One(done));
        }
        if let Poll::Ready(done) = two.as_mut().poll(context) {
            return Poll::Ready(First::Two(done));
        }
        Poll::Pending
    })
    .await
}

/// Waits for both.
pub(crate) async fn both<A, B>(one: impl Future<Output = A>, two: impl Future<Output = B>) -> (A, B) {
    let mut one = pin!(one);
    let mut two = pin!(two);
    let (mut first, mut second) = (None, None);
    poll_fn(|context| {
        if first.is_none()
            && let Poll::Ready(done) = one.as_mut().poll(context)
        {
            first = Some(done);
        }
        if second.is_none()
            && let Poll::Ready(done) = two.as_mut().poll(context)
        {
            second = Some(done);
        }
        match (first.take(), second.take()) {
            (Some(one), Some(two)) => Poll::Ready((one, two)),
            (one, two) => {
                (first, second) = (one, two);
                Poll::Pending
            }
        }
    })
    .await
}

/// A place for one answer.
pub(crate) struct Reply<T> {
    value: RefCell<Option<T>>,
    bell: Bell,
}

impl<T> Reply<T> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            value: RefCell::new(None),
            bell: Bell::default(),
        })
    }

    pub(crate) fn send(&self, sim: &Sim, value: T) {
        *self.value.borrow_mut() = Some(value);
        self.bell.ring(sim);
    }

    pub(crate) async fn wait(&self, sim: &Sim) -> T {
        loop {
            let mut seen = self.bell.count();
            if let Some(value) = self.value.borrow_mut().take() {
                return value;
            }
            self.bell.rung(sim, &mut seen).await;
        }
    }
}
